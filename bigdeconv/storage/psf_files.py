"""PSFs from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from bigdeconv.errors import InvalidInputError


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
    if not path.is_file():
        raise InvalidInputError(f"psf: there is no file {str(path)!r}; give a TIFF or .npy file.")
    try:
        if path.suffix == ".npy":
            array: np.ndarray = np.load(path, allow_pickle=False)
        else:
            array = tifffile.imread(path)
    except (OSError, ValueError, EOFError, tifffile.TiffFileError) as error:
        raise InvalidInputError(f"psf: {str(path)!r} cannot be read ({error}); give a TIFF or .npy file.") from error
    if array.dtype.kind not in "iuf":
        raise InvalidInputError(f"psf: {str(path)!r} holds {array.dtype}; expected real numbers.")
    return array
