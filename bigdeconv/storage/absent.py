"""Files of an input that are absent: by zarr's convention they hold fill; a broken mount or a lost upload looks the same.

Sparse volumes rely on the convention, so an absent file is no error.  But it is known: each file is called by its number in the
grid of all files of an array, in the order of the stored axes, and looked for again when the run ends.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from zarr.core.sync import sync

from bigdeconv.errors import StoreError
from bigdeconv.geometry import ceil_div
from bigdeconv.storage.arrays import index_of_box, open_described, read_box
from bigdeconv.storage.locations import is_remote, reported

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bigdeconv.geometry import Box
    from bigdeconv.storage.omezarr import VolumeInfo

Range = tuple[int, int]
"""Numbers of files from the first to before the second."""
_ZYX = ("z", "y", "x")
BATCH = 4096
"""Files that are looked for together."""
MAX_READS = 3
"""Times that a region is read again where a file that is there seems to hold nothing."""
CONCURRENT = 64
"""Requests to a remote store at a time."""


@dataclass(slots=True)
class AbsentFiles:
    """Which files of the inputs were absent when they were read: one bit per file of a volume that lacks any."""

    n_files: tuple[int, ...] = ()
    """By the number of the volume; nothing is kept where it is empty."""
    bits: dict[int, np.ndarray] = field(default_factory=dict)
    """By the number of the volume, packed, the first file in the lowest bit."""

    def note(self, volume: int, ranges: Iterable[Sequence[int]]) -> None:
        """Add files that were absent."""
        self._set(volume, ranges, 1)

    def found(self, volume: int, ranges: Iterable[Sequence[int]]) -> None:
        """Take files back that are there."""
        self._set(volume, ranges, 0)

    def count(self, volume: int) -> int:
        """Return the number of absent files of a volume."""
        return int(np.bitwise_count(self.bits[volume]).sum()) if volume in self.bits else 0

    def batches(self, volume: int) -> Iterator[np.ndarray]:
        """Yield the numbers of the absent files of a volume in ascending order, some thousand at a time."""
        packed = self.bits.get(volume, np.empty(0, np.uint8))
        occupied = np.flatnonzero(packed)
        for start in range(0, len(occupied), BATCH // 8):
            part = occupied[start : start + BATCH // 8]
            bits = np.unpackbits(packed[part, None], axis=1, bitorder="little")
            yield (8 * part[:, None] + np.arange(8))[bits.astype(bool)]

    def _set(self, volume: int, ranges: Iterable[Sequence[int]], value: int) -> None:
        for start, stop in ranges if self.n_files else ():
            if not 0 <= start < stop <= self.n_files[volume]:
                raise ValueError(f"volume {volume} has no files {start} to {stop}")
            packed = self.bits.setdefault(volume, np.zeros(ceil_div(self.n_files[volume], 8), np.uint8))
            first, last = start // 8, ceil_div(stop, 8)
            bits = np.unpackbits(packed[first:last], bitorder="little")
            bits[start - 8 * first : stop - 8 * first] = value
            packed[first:last] = np.packbits(bits, bitorder="little")


def read_and_look(
    info: VolumeInfo, box: Box, *, timepoint: int, channel: int | None, view_axis: str | None
) -> tuple[np.ndarray, list[Range]]:
    """Read a box, and look for the files that it lacks.

    A file of which nothing but fill was read is looked for.  If it is there, it may have been away for the moment of the read,
    and so may a part of a remote shard: the box is read again, until two reads agree.

    Parameters
    ----------
    info, box, timepoint, channel, view_axis
        As for `bigdeconv.storage.arrays.read_box`.

    Returns
    -------
    counts : ndarray, ``v z y x`` or ``z y x``
    absent : list of (int, int)
        Numbers of the files that are absent.

    Raises
    ------
    StoreError
        If it cannot be read, or a file is there and empty: zarr reads it as fill, and nobody writes such a file on purpose.
    """
    place = {"timepoint": timepoint, "channel": channel, "view_axis": view_axis}
    counts = read_box(info, box, **place)  # type: ignore[arg-type]
    index = index_of_box(info, box, timepoint, channel, view_axis)
    for _ in range(MAX_READS):
        places = _places_of_fill(info, _file_shape(info), index, counts, view_axis)
        sought = [int(np.ravel_multi_index(p, grid_shape(info))) for p in places]
        there = are_there(info, sought)
        absent = as_ranges(number for number, found in zip(sought, there, strict=True) if not found)
        parts_in_doubt = info.shard_shape is not None and is_remote(info.location)
        if not any(there) and not (
            parts_in_doubt and _places_of_fill(info, info.chunk_shape, index, counts, view_axis)
        ):
            break
        before, counts = counts, read_box(info, box, **place)  # type: ignore[arg-type]
        if np.array_equal(before, counts, equal_nan=counts.dtype.kind == "f"):
            break
    return counts, absent


def _places_of_fill(
    info: VolumeInfo,
    part_shape: tuple[int, ...],
    index: tuple[int | slice, ...],
    counts: np.ndarray,
    view_axis: str | None,
) -> list[tuple[int, ...]]:
    """Return the places, in the grid of parts of a shape, of those of which a region holds nothing but fill."""
    is_fill = np.isnan(counts) if math.isnan(info.fill_value) else counts == info.fill_value
    if not is_fill.any():
        return []
    parts = [range(i, i + 1) if isinstance(i, int) else range(i.start, i.stop) for i in index]
    order = ((view_axis,) if view_axis else ()) + _ZYX
    found = []
    for place in product(*(range(p.start // n, ceil_div(p.stop, n)) for p, n in zip(parts, part_shape, strict=True))):
        inside = {
            axis: slice(max(i * n - p.start, 0), (i + 1) * n - p.start)
            for axis, i, n, p in zip(info.axes, place, part_shape, parts, strict=True)
        }
        if is_fill[tuple(inside.get(axis, slice(None)) for axis in order)].all():
            found.append(place)
    return found


def grid_shape(info: VolumeInfo) -> tuple[int, ...]:
    """Return the number of files of an array along each stored axis."""
    return tuple(ceil_div(n, f) for n, f in zip(info.shape, _file_shape(info), strict=True))


def n_files(info: VolumeInfo) -> int:
    """Return the number of files that an array has if none is absent."""
    return math.prod(grid_shape(info))


def name_of(info: VolumeInfo, number: int) -> str:
    """Return the path of a file below the image group."""
    return _names(info, [number])[0]


def region_of(info: VolumeInfo, number: int) -> dict[str, range]:
    """Return what a file holds, by axis."""
    place = np.unravel_index(number, grid_shape(info))
    sizes = zip(info.axes, place, _file_shape(info), info.shape, strict=True)
    return {axis: range(int(i) * n, min((int(i) + 1) * n, extent)) for axis, i, n, extent in sizes}


def are_there(info: VolumeInfo, numbers: Sequence[int] | np.ndarray) -> list[bool]:
    """Tell for each file whether it is there: by one listing per folder, or one request per file of a remote store.

    Raises
    ------
    StoreError
        If one is there and empty, or the store does not answer.
    """
    if not len(numbers):
        return []
    names = _names(info, numbers)
    with reported("look for chunks of", info.location, info.array_path):
        return _are_in_store(info, names) if is_remote(info.location) else _are_in_folder(Path(info.location), names)


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


def _names(info: VolumeInfo, numbers: Sequence[int] | np.ndarray) -> list[str]:
    metadata = open_described(info).metadata
    places = np.stack(np.unravel_index(np.asarray(numbers), grid_shape(info)), axis=1).tolist()
    prefix = f"{info.array_path}/" if info.array_path else ""
    return [prefix + metadata.encode_chunk_key(tuple(place)) for place in places]


def _are_in_folder(root: Path, names: Sequence[str]) -> list[bool]:
    there: list[bool] = []
    for folder, group in groupby(names, lambda name: name.rpartition("/")[0]):
        wanted = list(group)
        # A folder of its own per row of chunks is listed; one for all chunks may hold millions.
        listed = _listing(root / folder) if len(wanted) > 1 and len(folder.split("/")) > 2 else None
        there += [(listed is None or n.rpartition("/")[2] in listed) and _is_file(root / n) for n in wanted]
    return there


def _listing(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _is_file(path: Path) -> bool:
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return False
    if size == 0:
        raise StoreError(f"input: {str(path)!r} has no bytes; it was cut off, restore it")
    return True


def _are_in_store(info: VolumeInfo, names: Sequence[str]) -> list[bool]:
    array = open_described(info)
    store, root = array.store_path.store, array.store_path.path

    prefix = root.removesuffix(info.array_path) if info.array_path else f"{root}/" if root else ""

    async def look() -> list[bool]:
        turn = asyncio.Semaphore(CONCURRENT)

        async def exists(name: str) -> bool:
            async with turn:
                return await store.exists(f"{prefix}{name}")

        return list(await asyncio.gather(*map(exists, names)))

    found: list[bool] = sync(look())
    return found
