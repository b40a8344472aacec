"""Files of an input that are absent: by zarr's convention they hold fill; a broken mount or a lost upload looks the same.

Sparse volumes rely on the convention, so an absent file is no error.  But it is known: each file is called by its number in the
grid of all files of an array, in the order of the stored axes, and looked for again when the run ends.
"""

from __future__ import annotations

import asyncio
import math
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from zarr.core.sync import sync

from bigdeconv.errors import StoreError
from bigdeconv.geometry import ceil_div
from bigdeconv.storage.arrays import index_of_box, open_described
from bigdeconv.storage.locations import is_remote, reported

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bigdeconv.geometry import Box
    from bigdeconv.storage.omezarr import VolumeInfo

Range = tuple[int, int]
"""Numbers of files from the first to before the second."""


def absent_files(
    info: VolumeInfo, box: Box, *, timepoint: int, channel: int | None, view_axis: str | None
) -> list[Range]:
    """Return the files of a box that are absent; parameters as for `bigdeconv.storage.arrays.read_box`.

    Raises
    ------
    StoreError
        If a file is there and empty: zarr reads it as fill, and nobody writes such a file on purpose.
    """
    index = index_of_box(info, box, timepoint, channel, view_axis)
    parts = [range(i, i + 1) if isinstance(i, int) else range(i.start, i.stop) for i in index]
    per_file, grid = _file_shape(info), grid_shape(info)
    places = product(*(range(p.start // n, ceil_div(p.stop, n)) for p, n in zip(parts, per_file, strict=True)))
    numbers = [int(np.ravel_multi_index(place, grid)) for place in places]
    there = are_there(info, numbers)
    return as_ranges(number for number, found in zip(numbers, there, strict=True) if not found)


def grid_shape(info: VolumeInfo) -> tuple[int, ...]:
    """Return the number of files of an array along each stored axis."""
    return tuple(ceil_div(n, f) for n, f in zip(info.shape, _file_shape(info), strict=True))


def n_files(info: VolumeInfo) -> int:
    """Return the number of files that an array has if none is absent."""
    return math.prod(grid_shape(info))


def name_of(info: VolumeInfo, number: int) -> str:
    """Return the path of a file below the image group."""
    place = tuple(int(i) for i in np.unravel_index(number, grid_shape(info)))
    key = open_described(info).metadata.encode_chunk_key(place)
    return f"{info.array_path}/{key}" if info.array_path else key


def are_there(info: VolumeInfo, numbers: Sequence[int]) -> list[bool]:
    """Tell for each file whether it is there.

    Raises
    ------
    StoreError
        If one is there and empty, or the store does not answer.
    """
    names = [name_of(info, number) for number in numbers]
    with reported("look for chunks of", info.location, info.array_path):
        if is_remote(info.location):
            return _are_in_store(info, names)
        return [_is_in_folder(Path(info.location), name) for name in names]


def as_ranges(numbers: Iterable[int]) -> list[Range]:
    """Return numbers as ranges.

    Examples
    --------
    >>> as_ranges([3, 1, 2, 7])
    [(1, 4), (7, 8)]
    """
    found: list[Range] = []
    for number in sorted(set(numbers)):
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


def numbers_in(ranges: Iterable[Sequence[int]]) -> list[int]:
    """Return the numbers in some ranges."""
    return [number for start, stop in ranges for number in range(start, stop)]


def _file_shape(info: VolumeInfo) -> tuple[int, ...]:
    return info.shard_shape or info.chunk_shape


def _is_in_folder(folder: Path, name: str) -> bool:
    try:
        size = (folder / name).stat().st_size
    except FileNotFoundError:
        return False
    if size == 0:
        raise StoreError(f"input: {str(folder / name)!r} has no bytes; it was cut off, restore it")
    return True


def _are_in_store(info: VolumeInfo, names: Sequence[str]) -> list[bool]:
    array = open_described(info)
    store, root = array.store_path.store, array.store_path.path

    async def look() -> list[bool]:
        prefix = root.removesuffix(info.array_path) if info.array_path else f"{root}/" if root else ""
        return list(await asyncio.gather(*(store.exists(f"{prefix}{name}") for name in names)))

    found: list[bool] = sync(look())
    return found
