"""Voxels in and out of OME-Zarr arrays, local or remote.

Only locations are sent to workers: an array is opened in the process that reads or writes it, and credentials for remote stores
come from the environment of that process.  For S3 these are ``AWS_ACCESS_KEY_ID`` and related variables,
``AWS_SKIP_SIGNATURE=true`` for public buckets, and ``AWS_ENDPOINT_URL`` with ``AWS_ALLOW_HTTP=true`` for a private server.

zarr has no locks: two writers in one shard lose data without an error.  Callers write whole shards, one task each.
"""

from __future__ import annotations

import operator
import re
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdeconv.errors import InvalidInputError, StoreError
from bigdeconv.geometry import Box, ceil_div
from bigdeconv.storage.atomic import synced
from bigdeconv.storage.locations import is_remote, open_array, reported, resolve_location
from bigdeconv.storage.seals import marked

if TYPE_CHECKING:
    import zarr

    from bigdeconv.storage.omezarr import VolumeInfo
    from bigdeconv.storage.seals import FileMark

# Name of a file that zarr's LocalStore is about to rename into place.
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")


def read_box(
    info: VolumeInfo, box: Box, *, timepoint: int = 0, channel: int | None = 0, view_axis: str | None = None
) -> np.ndarray:
    """Read one box of one time point and channel.

    Parameters
    ----------
    info : VolumeInfo
        The level to read, its axes stored in any order.
    box : Box
        Voxels of that level, inside the volume.
    timepoint : int
        Index on axis ``t``; 0 where there is none.
    channel : int or None
        Index on axis ``c``; 0 or None where there is none.  Ignored if ``view_axis`` is ``c``.
    view_axis : str, optional
        An axis to read whole, as views.

    Returns
    -------
    ndarray, ``z y x`` or ``v z y x``
        Stored values (with a view axis, one entry of ``v`` per view); stored dtype, native byte order, C-contiguous.

    Raises
    ------
    InvalidInputError
        If the box, an index or the view axis does not fit the volume.
    StoreError
        If the array is missing, differs from its description, or holds a chunk that cannot be read.
    """
    index = index_of_box(info, box, timepoint, channel, view_axis)
    array = open_described(info)
    with reported("read", info.location, info.array_path):
        data = np.asarray(array[index])
    kept = [name for name, item in zip(info.axes, index, strict=True) if isinstance(item, slice)]
    wanted = [name for name in (view_axis, "z", "y", "x") if name in kept]
    data = data.transpose([kept.index(name) for name in wanted])
    if "z" not in kept:
        data = np.expand_dims(data, -3)
    return np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("="))


def read_region(location: str | Path, array_path: str, index: tuple[int | slice, ...]) -> np.ndarray:
    """Read a region of an array.

    Parameters
    ----------
    location : str or Path
        The image group.
    array_path : str
        The array inside the group.
    index : tuple of int or slice
        One item per stored axis, steps of 1, inside the array.  Integers drop their axis.

    Returns
    -------
    ndarray
        The region in stored axis order, stored dtype, native byte order.

    Raises
    ------
    InvalidInputError
        If the index does not fit the array.
    StoreError
        If the array or a chunk cannot be read.
    """
    where = resolve_location(location)
    array = _open_cached(where, array_path, writable=False)
    index, _ = _checked_index(array.shape, index)
    with reported("read", where, array_path):
        data = np.asarray(array[index])
    return data.astype(data.dtype.newbyteorder("="), copy=False)


def write_region(location: str | Path, array_path: str, index: tuple[int | slice, ...], data: np.ndarray) -> None:
    """Write a region of a local array: whole shards where others write as well.

    Parameters
    ----------
    location : str or Path
        The image group, a local path.
    array_path : str
        The array inside the group.
    index : tuple of int or slice
        One item per stored axis, steps of 1, inside the array.
    data : ndarray
        Shape of the region and dtype of the array (any byte order); nothing is broadcast or cast.

    Raises
    ------
    InvalidInputError
        If the index, shape or dtype does not fit the array.
    StoreError
        If the array is missing or cannot be written (a full disk, say).
    """
    where = resolve_location(location)
    array = _open_cached(where, array_path, writable=True)
    index, shape = _checked_index(array.shape, index)
    if data.shape != shape:
        raise InvalidInputError(
            f"data: got shape {data.shape}; expected {shape}, as the region of array {array_path!r} has"
        )
    if data.dtype.newbyteorder("=") != array.dtype.newbyteorder("="):
        raise InvalidInputError(f"data: got dtype {data.dtype}; expected {array.dtype}, as array {array_path!r} has")
    with reported("write", where, array_path):
        array[index] = data


def files_of_region(
    location: str | Path, array_path: str, index: tuple[int | slice, ...], *, syncs: bool = False
) -> list[FileMark]:
    """Return the files of a local array that hold a region, as they are now; zarr writes none for a chunk of fill.

    Parameters
    ----------
    location : str or Path
        The image group, a local path.
    array_path : str
        The array inside the group.
    index : tuple of int or slice
        As for `write_region`.
    syncs : bool
        Have the files, and the entries of the folders above them, on disk first.
    """
    where = resolve_location(location)
    array = _open_cached(where, array_path, writable=True)
    per_file = array.shards or array.chunks
    parts = [
        range(i, i + 1) if isinstance(i, int) else range(i.start, i.stop) for i in _checked_index(array.shape, index)[0]
    ]
    places = product(*(range(p.start // n, ceil_div(p.stop, n)) for p, n in zip(parts, per_file, strict=True)))
    names = (f"{array_path}/{array.metadata.encode_chunk_key(place)}" for place in places)
    with reported("read", where, array_path):
        marks = [mark for name in names if (mark := marked(Path(where), name)) is not None]
        if syncs:
            files = [Path(mark.name) for mark in marks]
            folders = {folder for file in files for folder in file.parents}
            for path in (*files, *sorted(folders, reverse=True)):
                synced(Path(where) / path)
    return marks


def sweep_partial(path: Path) -> int:
    """Remove the temporary files of killed writers below a local store, while nobody writes there.

    Returns
    -------
    int
        Number of files removed.
    """
    removed = 0
    for leftover in Path(path).rglob("*.partial"):
        if _PARTIAL.search(leftover.name):
            leftover.unlink(missing_ok=True)
            removed += 1
    return removed


def index_of_box(
    info: VolumeInfo, box: Box, timepoint: int, channel: int | None, view_axis: str | None
) -> tuple[int | slice, ...]:
    """Return the index of a box in stored axis order."""
    if not Box.of_shape(info.zyx_shape).contains(box):
        raise InvalidInputError(
            f"box: got {box.start} to {box.stop}; expected one inside the volume of shape {info.zyx_shape}"
        )
    if view_axis is not None and (view_axis not in info.axes or view_axis in ("z", "y", "x")):
        raise InvalidInputError(f"view_axis: got {view_axis!r}; expected an axis of views among {info.axes}")
    slices = dict(zip("zyx", box.slices, strict=True))
    # Where an axis is missing, index 0 still names the one that is there.
    chosen = {"t": timepoint, "c": channel} | ({} if view_axis is None else {view_axis: 0})
    for name, position in chosen.items():
        extent = info.extent(name)
        if position is None and extent == 1:
            chosen[name] = 0
        elif position is None or not 0 <= position < extent:
            word = {"t": "timepoint", "c": "channel"}[name]
            raise InvalidInputError(f"{word}: got {position}; expected 0 to {extent - 1} on axis {name!r}")
    index: list[int | slice] = []
    for name, extent in zip(info.axes, info.shape, strict=True):
        if name == view_axis:
            index.append(slice(0, extent))
        elif name in slices:
            index.append(slices[name])
        elif name in chosen or extent == 1:
            index.append(chosen.get(name) or 0)
        else:
            raise InvalidInputError(f"axis {name!r} has {extent} entries; name it as the view axis to read them")
    return tuple(index)


def _checked_index(
    shape: tuple[int, ...], index: tuple[int | slice, ...]
) -> tuple[tuple[int | slice, ...], tuple[int, ...]]:
    """Return the index in plain integers and the shape of its region; refuse an index that NumPy would clip or wrap."""
    if len(index) != len(shape):
        raise InvalidInputError(f"index: got {len(index)} items; expected {len(shape)}, one per axis of the array")
    plain: list[int | slice] = []
    region: list[int] = []
    for item, extent in zip(index, shape, strict=True):
        if isinstance(item, slice):
            start = 0 if item.start is None else operator.index(item.start)
            stop = extent if item.stop is None else operator.index(item.stop)
            ok = item.step in (None, 1) and 0 <= start <= stop <= extent
            plain.append(slice(start, stop))
            region.append(stop - start)
        else:
            plain.append(operator.index(item))
            ok = 0 <= operator.index(item) < extent
        if not ok:
            raise InvalidInputError(
                f"index: got {index}; expected a region inside the array of shape {shape}, without steps"
            )
    return tuple(plain), tuple(region)


def open_described(info: VolumeInfo) -> zarr.Array[Any]:
    """Return the array that ``info`` describes, opened again if the cached one differs."""
    for attempt in range(2):
        array = _open_cached(info.location, info.array_path, writable=False)
        if array.shape == info.shape and array.dtype == np.dtype(info.dtype):
            return array
        if attempt == 0:
            _open_once.cache_clear()
    raise StoreError(
        f"array {info.array_path!r} of {info.location} is {array.dtype} of shape {array.shape}, but was "
        f"{info.dtype} of shape {info.shape} when described; describe it again"
    )


def _open_cached(location: str, array_path: str, *, writable: bool) -> zarr.Array[Any]:
    return _open_once(location, array_path, writable, _stamp(location, array_path))


@lru_cache(maxsize=32)
def _open_once(location: str, array_path: str, writable: bool, stamp: tuple[int, int]) -> zarr.Array[Any]:
    """Open an array once per process; ``stamp`` only keys the cache."""
    return open_array(location, array_path, writable=writable)


def _stamp(location: str, array_path: str) -> tuple[int, int]:
    """Return the time and inode of a local array's metadata, which change when the array is replaced.

    A worker that outlives a run must not write the next output at the same path with the chunks of the last one.
    """
    if not is_remote(location):
        for metadata in ("zarr.json", ".zarray"):
            try:
                status = Path(location, array_path, metadata).stat()
            except OSError:
                continue
            return status.st_mtime_ns, status.st_ino
    return 0, 0
