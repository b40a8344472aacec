"""Overlap slabs on disk: what a block leaves in the scratch folder for its upper neighbours.

A slab is a line of JSON, which names block, direction, shape and checksum, and the float32 values behind it.  So a slab that was
cut off, changed, or put in the place of another is known, wherever it is read.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdeconv.errors import DamagedOverlapError
from bigdeconv.storage.atomic import replaced_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bigdeconv.geometry import Triple

MAX_HEADER_BYTES = 2**22
"""Length of a header that is a line of JSON in any case: a window reads thousands of files at most."""


def write_overlap(
    scratch: str | Path, block: int, direction: Triple, slab: np.ndarray, absent: Sequence[Sequence[int]] = ()
) -> None:
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
    absent : sequence of (int, int)
        Ranges of files of the input that were read as fill for it.
    """
    path = _path(scratch, block, direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.ascontiguousarray(slab, dtype="<f4").tobytes()
    header = json.dumps(_header(block, direction, slab.shape, values, absent)).encode() + b"\n"
    with replaced_file(path, sync=True) as building, building.open("wb") as file:
        file.write(header)
        file.write(values)


def read_overlap(scratch: str | Path, block: int, direction: Triple) -> np.ndarray:
    """Read a slab, ``z y x`` float32; see `write_overlap`.

    Raises
    ------
    DamagedOverlapError
        If it is missing, or not as the block left it; a damaged one is removed, so that the block is solved again for it.
    """
    path = _path(scratch, block, direction)
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline(MAX_HEADER_BYTES))
            values = file.read()
        shape = tuple(header["shape"])
        slab = np.frombuffer(values, "<f4").reshape(shape)
        is_sound = header == _header(block, direction, shape, values, header["absent"])
    except FileNotFoundError as error:
        raise DamagedOverlapError(f"the overlap slab {path.name} is missing", (block,)) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        path.unlink(missing_ok=True)
        raise DamagedOverlapError(f"the overlap slab {path.name} was damaged ({error})", (block,)) from error
    if not is_sound:
        path.unlink(missing_ok=True)
        raise DamagedOverlapError(f"the overlap slab {path.name} does not match its checksum", (block,))
    return slab


def absent_from_overlap(scratch: str | Path, block: int, direction: Triple) -> list[tuple[int, int]]:
    """Return the ranges of files of the input that were read as fill for a slab, which `read_overlap` has found sound."""
    with _path(scratch, block, direction).open("rb") as file:
        return [(int(start), int(stop)) for start, stop in json.loads(file.readline())["absent"]]


def has_overlap(scratch: str | Path, block: int, direction: Triple) -> bool:
    """Tell whether a slab is there; whether it is sound shows when it is read."""
    return _path(scratch, block, direction).exists()


def drop_overlap(scratch: str | Path, block: int, direction: Triple) -> None:
    """Remove a slab that its neighbour has merged."""
    _path(scratch, block, direction).unlink(missing_ok=True)


def _header(
    block: int, direction: Triple, shape: tuple[int, ...], values: bytes, absent: Sequence[Sequence[int]]
) -> dict[str, Any]:
    header = {"block": block, "direction": list(direction), "shape": list(shape), "absent": [list(r) for r in absent]}
    return {**header, "checksum": zlib.crc32(values, zlib.crc32(json.dumps(header).encode()))}


def _path(scratch: str | Path, block: int, direction: Triple) -> Path:
    z, y, x = direction
    return Path(scratch) / f"{block // 1000:06d}" / f"{block}-{z}{y}{x}.slab"
