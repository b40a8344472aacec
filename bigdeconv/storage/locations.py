"""Locations of volumes: local paths and URLs, the stores behind them, and the errors of those stores."""

from __future__ import annotations

import errno
import math
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore, ObjectStore

from bigdeconv.errors import BigdeconvError, DiskFullError, InvalidInputError, StoreError
from bigdeconv.storage.unpacking import exceeds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

_SECRET_USER = re.compile(r"(:/{1,2})[^/@\s]+@|[^/@\s:]+:[^/@\s]+@")
_SECRET_QUERY = re.compile(r"([?&][^=&\s]*(?:key|token|sig|secret|password|credential)[^=&\s]*=)[^&\s]*", re.IGNORECASE)
SLACK_BYTES = 2**20
"""Bytes that a chunk may unpack to beyond its voxels."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
REMOTE_SCHEMES = ("http", "https", "s3", "gs", "az")


class _Bounded:
    """A store of which no chunk is handed out that unpacks to more than it should."""

    limit_bytes: int | None = None
    """Of a chunk, unpacked; None before an array is known."""

    def checked(self, key: str, found: Buffer | None) -> Buffer | None:
        """Return what was found under a key.

        Raises
        ------
        StoreError
            If it unpacks to more than the limit.
        """
        if (
            found is not None
            and self.limit_bytes is not None
            and exceeds(found.as_numpy_array().data, self.limit_bytes)
        ):
            raise StoreError(
                f"{key} of {len(found)} bytes unpacks to more than the {self.limit_bytes} bytes of a chunk; it is damaged, "
                "restore it"
            )
        return found


class RegularFiles(_Bounded, LocalStore):
    """A folder of which only regular files are read: a pipe would be waited for, and a device read, for ever."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of a key, None where it is absent."""
        path = self.root / key
        if not path.is_file() and path.exists() and not path.is_dir():
            raise StoreError(f"cannot read {path}: it is a pipe or a device; expected a file")
        return self.checked(key, await super().get(key, prototype, byte_range))


class RemoteFiles(_Bounded, ObjectStore[Any]):
    """A store behind a URL."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of a key, None where it is absent."""
        return self.checked(key, await super().get(key, prototype or default_buffer_prototype(), byte_range))


def resolve_location(location: str | Path) -> str:
    """Return an absolute local path, or a URL without a trailing slash.

    Parameters
    ----------
    location : str or Path
        A local path, relative ones and ``~`` included, or a ``file://``, ``http(s)://``, ``s3://``, ``gs://`` or ``az://`` URL.

    Raises
    ------
    InvalidInputError
        If it is empty, of an unknown scheme, or carries credentials.

    Examples
    --------
    >>> resolve_location("s3://microscope/embryo.zarr/")
    's3://microscope/embryo.zarr'
    >>> resolve_location("file:///data/day%201.zarr")
    '/data/day 1.zarr'
    """
    text = str(location)
    scheme, separator, _ = text.partition("://")
    if not text:
        raise InvalidInputError("the location is empty; give a local path or a URL")
    if isinstance(location, Path) or not separator:
        return str(Path(text).expanduser().absolute())
    if scheme == "file":
        return str(Path(unquote(urlsplit(text).path)).absolute())
    if scheme not in REMOTE_SCHEMES:
        known = ", ".join(f"{known}://" for known in REMOTE_SCHEMES)
        raise InvalidInputError(f"cannot open {scheme}:// locations; give a local path or a URL of {known}")
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
    """Open the store at a resolved location.

    Parameters
    ----------
    location : str
        See `resolve_location`.
    writable : bool
        Whether to write; the location must then be a local folder that exists.

    Raises
    ------
    StoreError
        If it cannot be written, or is remote and obstore is not installed.
    """
    if writable and is_remote(location):
        raise StoreError(f"cannot write to {location}: output goes to local paths only")
    if writable and not Path(location).is_dir():
        # zarr would make the folder, and leave it behind when it then finds nothing in it.
        raise StoreError(f"cannot write to {location}: there is no such folder")
    if not is_remote(location):
        return RegularFiles(location, read_only=not writable)
    try:
        from obstore.store import from_url  # an optional extra, and slow to import
    except ImportError as error:
        raise StoreError(f"reading {location} needs obstore: pip install 'bigdeconv[cloud]'") from error
    # Only a URL that says http asks for an unencrypted connection; for S3 the environment decides (AWS_ALLOW_HTTP).
    options: dict[str, Any] = {"client_options": {"allow_http": True}} if location.startswith("http://") else {}
    with reported("open", location):
        return RemoteFiles(from_url(location, **options), read_only=True)


def open_array(location: str, array_path: str, *, writable: bool = False) -> zarr.Array[Any]:
    """Open an array below a resolved location.

    Parameters
    ----------
    location : str
        The group that holds it; see `resolve_location`.
    array_path : str
        Path of the array inside the group.
    writable : bool
        Whether to write.

    Raises
    ------
    StoreError
        If there is none or its metadata cannot be read.
    """
    with reported("open", location, array_path):
        store = open_store(location, writable=writable)
        array = zarr.open_array(store, path=array_path, mode="r+" if writable else "r")
        # Codecs add a little to what they pack, and a shard has an index.
        parts = array.chunks if array.shards is None else array.shards
        unpacked = math.prod(parts) * array.dtype.itemsize
        store.limit_bytes = unpacked + unpacked // 4 + SLACK_BYTES  # type: ignore[attr-defined]
    return array


@contextmanager
def reported(action: str, location: str, array_path: str = "") -> Iterator[None]:
    """Turn every error of a store or codec into one sentence that names the place.

    Our own errors and `MemoryError` pass unchanged.

    Parameters
    ----------
    action : str
        Verb for the sentence, such as ``open``.
    location, array_path : str
        The group, and the array inside it if one is concerned.

    Raises
    ------
    StoreError
        In place of the error.

    Examples
    --------
    >>> with reported("read", "/data/embryo.zarr", "0"):
    ...     raise OSError("disk error")
    Traceback (most recent call last):
    bigdeconv.errors.StoreError: cannot read array '0' of /data/embryo.zarr: disk error
    """
    try:
        yield
    except (BigdeconvError, MemoryError):
        raise
    except Exception as error:
        where = f"array {array_path!r} of {location}" if array_path else location
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "; check the address and the credentials in the environment" if is_remote(location) else ""
        kind = DiskFullError if is_disk_full(error) else StoreError
        raise kind(f"cannot {action} {where}: {reason}{hint}") from error


def masked(address: str) -> str:
    """Return an address without the secrets that it may hold, to be shown.

    Examples
    --------
    >>> masked("https://user:secret@host/embryo.zarr?token=abc&level=0")
    'https://***@host/embryo.zarr?token=***&level=0'
    """
    return _SECRET_QUERY.sub(r"\1***", _SECRET_USER.sub(lambda found: f"{found[1] or ''}***@", address))


def is_disk_full(error: BaseException | None) -> bool:
    """Tell whether an error says that a disk takes nothing more, which no pause mends."""
    return isinstance(error, DiskFullError) or getattr(error, "errno", None) in _FULL
