"""Preload of workers that take no checksums, to be compared with those that do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bigdeconv.storage import arrays, overlaps, seals

if TYPE_CHECKING:
    from pathlib import Path


def marked(folder: Path, name: str) -> seals.FileMark | None:
    """Return the name and length of a file, and no checksum."""
    try:
        return seals.FileMark(name, (folder / name).stat().st_size, 0)
    except FileNotFoundError:
        return None


class NoSum:
    """Stand in for zlib."""

    @staticmethod
    def crc32(values: bytes, start: int = 0) -> int:
        """Return a constant."""
        return 0


arrays.marked, overlaps.zlib = marked, NoSum
