"""Voxels in and out of OME-Zarr arrays, local or remote.

Only addresses travel: an array is opened in the process that reads or writes it, and credentials for remote stores come
from that process's environment.  For S3 that is ``AWS_ACCESS_KEY_ID`` and its like, ``AWS_SKIP_SIGNATURE=true`` for public
buckets, and ``AWS_ENDPOINT_URL`` with ``AWS_ALLOW_HTTP=true`` for a server of one's own.

zarr has no locks: two writers in one shard lose data in silence.  Callers write whole shards, one task each.
"""

from __future__ import annotations

import operator
import re
import time
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
import zarr
from zarr.storage import LocalStore, MemoryStore, ObjectStore

from bigdeconv.errors import BigdeconvError, InvalidInputError, StoreError
from bigdeconv.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr.abc.store import Store

    from bigdeconv.storage.omezarr import VolumeInfo

REMOTE_SCHEMES = ("http", "https", "s3", "gs", "az")

# What zarr's LocalStore calls a file that it is about to rename into place.
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")


def read_box(
    info: VolumeInfo, box: Box, *, timepoint: int = 0, channel: int | None = 0, view_axis: str | None = None
) -> np.ndarray:
    """Read one box of one time point and channel.

    Parameters
    ----------
    info : VolumeInfo
        The level to read.  Its axes may be stored in any order.
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
    ndarray
        ``z y x``, or ``v z y x`` with a view axis; stored dtype, native byte order, C-contiguous.

    Raises
    ------
    InvalidInputError
        If the box, an index or the view axis does not fit the volume.
    StoreError
        If the array is missing, is not the one described, or holds a chunk that cannot be read.
    """
    index = _box_index(info, box, timepoint, channel, view_axis)
    array = _open_described(info)
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
    """Write a region of a local array, whole shards for safety beside other writers.

    Parameters
    ----------
    location : str or Path
        The image group, a local path.
    array_path : str
        The array inside the group.
    index : tuple of int or slice
        One item per stored axis, steps of 1, inside the array.
    data : ndarray
        Exactly the region's shape and the array's dtype (any byte order); nothing is broadcast or cast.

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
        raise InvalidInputError(f"data has shape {data.shape}, but the region to write in {array_path!r} has {shape}")
    if data.dtype.newbyteorder("=") != array.dtype.newbyteorder("="):
        raise InvalidInputError(
            f"data has dtype {data.dtype}, but {array_path!r} holds {array.dtype}; convert it before writing"
        )
    with reported("write", where, array_path):
        array[index] = data


def codec_seconds(edge: int = 64) -> tuple[float, float]:
    """Measure the CPU time per voxel of decoding and encoding noisy 16-bit chunks, zarr's own part included."""
    voxels = 4 * edge**3
    data = np.random.default_rng(0).poisson(100.0, (4 * edge, edge, edge)).astype(np.uint16)
    array = zarr.create_array(MemoryStore(), shape=data.shape, chunks=(edge,) * 3, dtype=data.dtype)
    decode, encode = [], []
    for _ in range(2):
        started = time.process_time()
        array[...] = data
        between = time.process_time()
        array[...]
        encode.append(between - started)
        decode.append(time.process_time() - between)
    return min(decode) / voxels, min(encode) / voxels


def sweep_partial(path: Path) -> int:
    """Remove the temporary files that killed writers left below a local store.

    Call it only while nobody writes there.

    Returns
    -------
    int
        How many were removed.
    """
    removed = 0
    for leftover in Path(path).rglob("*.partial"):
        if _PARTIAL.search(leftover.name):
            leftover.unlink(missing_ok=True)
            removed += 1
    return removed


def resolve_location(location: str | Path) -> str:
    """Return an absolute local path or a URL without a trailing slash.

    Raises
    ------
    InvalidInputError
        If it is empty, of an unknown scheme, or carries credentials.
    """
    text = str(location)
    scheme, separator, _ = text.partition("://")
    if not text:
        raise InvalidInputError("the location of the image is empty: give a local path or a URL")
    if isinstance(location, Path) or not separator:
        return str(Path(text).expanduser().absolute())
    if scheme == "file":
        return str(Path(unquote(urlsplit(text).path)).absolute())
    if scheme not in REMOTE_SCHEMES:
        raise InvalidInputError(f"cannot open {scheme}:// locations; use a local path or one of {REMOTE_SCHEMES}")
    parts = urlsplit(text)
    if parts.query or parts.fragment or "@" in parts.netloc:
        # Locations end up in plans, logs and the output's metadata: no secret may be part of one (nor be shown here).
        raise InvalidInputError(
            f"the {scheme}:// location holds a user name, query or fragment; give the bare address and put credentials "
            "into the environment"
        )
    return text.rstrip("/")


def is_remote(location: str) -> bool:
    """Tell whether a resolved location is a URL."""
    return "://" in location


def open_store(location: str, *, writable: bool = False) -> Store:
    """Open the store at a resolved location; only local ones can be writable.

    Raises
    ------
    StoreError
        If it is to be written and remote or missing, or remote and obstore is not installed.
    """
    if writable and is_remote(location):
        raise StoreError(f"cannot write to {location}: output goes to local paths only")
    if writable and not Path(location).is_dir():
        # zarr would make the folder, and leave it behind when it then finds nothing in it.
        raise StoreError(f"cannot write to {location}: there is no such folder")
    if not is_remote(location):
        return LocalStore(location, read_only=not writable)
    try:
        from obstore.store import from_url  # an optional extra, and slow to import
    except ImportError as error:
        raise StoreError(f"reading {location} needs obstore: pip install 'bigdeconv[cloud]'") from error
    # Only a URL that says http asks for an unencrypted connection; for S3 the environment decides (AWS_ALLOW_HTTP).
    options: dict[str, Any] = {"client_options": {"allow_http": True}} if location.startswith("http://") else {}
    with reported("open", location):
        return ObjectStore(from_url(location, **options), read_only=True)


def open_array(location: str, array_path: str, *, writable: bool = False) -> zarr.Array[Any]:
    """Open an array below a resolved location.

    Raises
    ------
    StoreError
        If there is none or its metadata cannot be read.
    """
    with reported("open", location, array_path):
        return zarr.open_array(open_store(location, writable=writable), path=array_path, mode="r+" if writable else "r")


@contextmanager
def reported(action: str, location: str, array_path: str = "") -> Iterator[None]:
    """Turn whatever a store or codec raises into one sentence that says where.

    Our own errors and `MemoryError` pass unchanged.
    """
    try:
        yield
    except (BigdeconvError, MemoryError):
        raise
    except Exception as error:
        where = f"array {array_path!r} of {location}" if array_path else location
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "; check the address and the credentials in the environment" if is_remote(location) else ""
        raise StoreError(f"cannot {action} {where}: {reason}{hint}") from error


def _box_index(
    info: VolumeInfo, box: Box, timepoint: int, channel: int | None, view_axis: str | None
) -> tuple[int | slice, ...]:
    """Return the index of a box in stored axis order."""
    if not Box.of_shape(info.zyx_shape).contains(box):
        raise InvalidInputError(f"box {box.start} to {box.stop} reaches outside the volume of shape {info.zyx_shape}")
    if view_axis is not None and (view_axis not in info.axes or view_axis in ("z", "y", "x")):
        raise InvalidInputError(f"view_axis {view_axis!r} is no axis of views; the axes are {info.axes}")
    slices = dict(zip("zyx", box.slices, strict=True))
    # Where an axis is missing, index 0 still names the one that is there.
    chosen = {"t": timepoint, "c": channel} | ({} if view_axis is None else {view_axis: 0})
    for name, position in chosen.items():
        extent = info.extent(name)
        if position is None and extent == 1:
            chosen[name] = 0
        elif position is None or not 0 <= position < extent:
            word = {"t": "timepoint", "c": "channel"}[name]
            raise InvalidInputError(f"{word} is {position}, but axis {name!r} allows 0 to {extent - 1}")
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
    """Return the index in plain integers and the shape of its region, or refuse what numpy would clip or wrap."""
    if len(index) != len(shape):
        raise InvalidInputError(f"index has {len(index)} items for an array of {len(shape)} axes")
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
            raise InvalidInputError(f"index {index} reaches outside the array of shape {shape} or has a step")
    return tuple(plain), tuple(region)


def _open_described(info: VolumeInfo) -> zarr.Array[Any]:
    """Return the array that ``info`` describes, opened anew once if what is cached is another."""
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
    """Return what changes when a local array is made anew.

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
