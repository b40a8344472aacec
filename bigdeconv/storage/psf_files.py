"""PSFs from files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import tifffile

from bigdeconv.errors import InvalidInputError
from bigdeconv.storage.locations import masked

MAX_VOXELS = 2**28
"""Voxels of a PSF file, all views together: ten times a stack of 32 views of 101³."""


def read_psf(path: str | Path) -> np.ndarray:
    """Read a PSF from a TIFF or ``.npy`` file.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    ndarray, ``y x``, ``z y x`` or ``v z y x``
        Stored values, in the order of the file's axes.

    Raises
    ------
    InvalidInputError
        If the file is missing, cannot be read, or does not hold real numbers.
    """
    path = Path(path)
    shown = repr(masked(str(path)))
    if not path.is_file():
        raise InvalidInputError(f"psf: there is no file {shown}; give a TIFF or .npy file.")
    try:
        array = _read_npy(path) if path.suffix == ".npy" else _read_tiff(path)
    except Exception as error:  # whatever a damaged file makes the readers raise
        reason = str(error) or type(error).__name__
        raise InvalidInputError(f"psf: {shown} cannot be read ({reason}); give a TIFF or .npy file.") from error
    if array.dtype.kind not in "iuf":
        raise InvalidInputError(f"psf: {shown} holds {array.dtype}; expected real numbers.")
    return array


def _read_npy(path: Path) -> np.ndarray:
    # Mapped first: the header of a small file may speak of any number of voxels.
    mapped = np.load(path, allow_pickle=False, mmap_mode="r")
    if not isinstance(mapped, np.ndarray):
        raise TypeError("it holds several arrays")
    _require_small(mapped.shape)
    return np.array(mapped)


def _read_tiff(path: Path) -> np.ndarray:
    with tifffile.TiffFile(path) as file:
        _require_small(file.series[0].shape)
        array: np.ndarray = file.asarray()
    return array


def _require_small(shape: tuple[int, ...]) -> None:
    if math.prod(shape) > MAX_VOXELS:
        raise ValueError(f"it is an array of shape {shape}, expected at most {MAX_VOXELS} voxels")
