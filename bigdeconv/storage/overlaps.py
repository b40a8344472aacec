"""Overlap slabs on disk: what a block leaves in the scratch folder for its upper neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bigdeconv.storage.atomic import replaced_file

if TYPE_CHECKING:
    from bigdeconv.geometry import Triple


def write_overlap(scratch: str | Path, block: int, direction: Triple, slab: np.ndarray) -> None:
    """Write the slab that a block leaves for its neighbour in a direction.

    Parameters
    ----------
    scratch : str or Path
        Folder of the slabs of a run.
    block : int
        Index of the block.
    direction : tuple of int, z y x
        0 or 1 per axis.
    slab : ndarray, ``z y x``
        float32; an empty one for a block without data.
    """
    path = _path(scratch, block, direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path, sync=True) as building:
        np.save(building, slab, allow_pickle=False)


def read_overlap(scratch: str | Path, block: int, direction: Triple) -> np.ndarray:
    """Read a slab, ``z y x`` float32; see `write_overlap`."""
    slab: np.ndarray = np.load(_path(scratch, block, direction), allow_pickle=False)
    return slab


def drop_overlap(scratch: str | Path, block: int, direction: Triple) -> None:
    """Remove a slab that its neighbour has merged."""
    _path(scratch, block, direction).unlink(missing_ok=True)


def _path(scratch: str | Path, block: int, direction: Triple) -> Path:
    z, y, x = direction
    return Path(scratch) / f"{block // 1000:06d}" / f"{block}-{z}{y}{x}.npy"
