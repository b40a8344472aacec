"""Seals: checksums by which stored lines, documents and files are known again.

All are CRC-32 (of zlib and PNG): they find accidents, not forgery.  CRC-32C would be blind here: chunks and index of a shard end
with their own CRC-32C, and what ends so has the same sum whatever it holds.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PIECE_BYTES = 2**22
"""Bytes of a file that are read at a time."""
_SEAL = b', "seal": "'
_END = b'"}\n'


class FileMark(NamedTuple):
    """A file as it was written."""

    name: str
    """Path below the output, with slashes."""
    n_bytes: int
    checksum: int

    def problem(self, folder: Path, *, reads: bool) -> str | None:
        """Return what is wrong with the file now, or None.

        Parameters
        ----------
        folder : Path
            The output.
        reads : bool
            Compare the contents too, not only the length.
        """
        path = folder / self.name
        try:
            size = path.stat().st_size
            if size != self.n_bytes:
                return f"{self.name} has {size} bytes, {self.n_bytes} were written"
            if reads and checksum_of(path) != self.checksum:
                return f"{self.name} holds other bytes than were written"
        except OSError as error:
            return f"{self.name} cannot be read ({error.strerror})"
        return None


def marked(folder: Path, name: str) -> FileMark | None:
    """Return the mark of a file below a folder, None where there is none (zarr writes no chunk of fill)."""
    path = folder / name
    try:
        return FileMark(name, path.stat().st_size, checksum_of(path))
    except FileNotFoundError:
        return None


def checksum_of(path: Path) -> int:
    """Return the checksum of a file's contents.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "digits"
    >>> _ = path.write_bytes(b"123456789")
    >>> hex(checksum_of(path))
    '0xcbf43926'
    """
    found = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            found = zlib.crc32(piece, found)
    return found


def sealed_line(record: Mapping[str, Any]) -> bytes:
    """Return a record as one line of JSON that holds its own checksum.

    Examples
    --------
    >>> print(sealed_line({"block": 3}).decode().strip())
    {"block": 3, "seal": "1c12ee83"}
    >>> unsealed(sealed_line({"block": 3}))
    {'block': 3}
    """
    body = json.dumps(record).encode()[:-1]
    return body + _SEAL + f"{zlib.crc32(body):08x}".encode() + _END


def unsealed(line: bytes) -> dict[str, Any]:
    """Return the record of a sealed line.

    Raises
    ------
    ValueError
        If it is no sealed line, or has changed.
    """
    body, _, seal = line.rpartition(_SEAL)
    if not body or not seal.endswith(_END) or seal[: -len(_END)] != f"{zlib.crc32(body):08x}".encode():
        raise ValueError("the line does not match its checksum")
    record: dict[str, Any] = json.loads(body + b"}")
    return record


def seal_of(values: Mapping[str, Any]) -> str:
    """Return the checksum of plain values, whatever their order and layout in a file."""
    stored = json.loads(json.dumps(values))  # keys become texts, as they are in a file
    return f"{zlib.crc32(json.dumps(stored, sort_keys=True).encode()):08x}"
