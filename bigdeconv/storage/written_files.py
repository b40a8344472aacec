"""Every file that a run has written, by its place in the grids of the output's arrays: 16 bytes per place.

Files have a running number through volumes, levels and places, so that ten million of them are four arrays, and a comparison with
what lies on disk is one walk through the folders.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdeconv.storage.seals import checksum_of

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence
    from pathlib import Path

NOBODY, LEVEL_PASS, FIRST_BLOCK = 0, 1, 2
"""Writers of a file: nobody, the pass that makes a coarse level, or a block (its index follows)."""
ABSENT, NO_FILE = -1, -2
"""In the place of a length: nothing is there, or something else than a file."""
MAX_SENTENCES = 1000
"""Sentences about damaged files; the others are counted."""


@dataclass(frozen=True, slots=True)
class _Array:
    """The files of one level of one volume."""

    volume: int
    level: int
    grid: tuple[int, ...]
    """Number of files along each axis."""
    first: int
    prefix: str
    """Before the place in the name of a file."""

    @property
    def stop(self) -> int:
        return self.first + math.prod(self.grid)

    def name(self, number: int) -> str:
        place = np.unravel_index(number - self.first, self.grid)
        return self.prefix + "/".join(str(int(i)) for i in place)


@dataclass(frozen=True, slots=True)
class Differences:
    """Differences between the files of an output and those that were written."""

    damaged: np.ndarray
    """Numbers of files that are missing, of another length, or of other contents."""
    foreign: np.ndarray
    """Numbers of files that nobody wrote."""
    problems: list[str]
    """One sentence per damaged file, up to a limit."""


class WrittenFiles:
    """Lengths, checksums and writers of files.

    Parameters
    ----------
    grids : sequence of sequence of tuple of int
        Number of files along each axis, by volume and level.
    key_prefix : str
        Beginning of the keys of chunks: ``c/`` in zarr 3, nothing in zarr 2.
    """

    def __init__(self, grids: Sequence[Sequence[tuple[int, ...]]], key_prefix: str) -> None:
        self._arrays: dict[tuple[int, int], _Array] = {}
        stop = 0
        for volume, levels in enumerate(grids):
            for level, grid in enumerate(levels):
                self._arrays[volume, level] = array = _Array(volume, level, grid, stop, f"{level}/{key_prefix}")
                stop = array.stop
        self.n_bytes = np.zeros(stop, np.int64)
        self.checksum = np.zeros(stop, np.uint32)
        self.writer = np.zeros(stop, np.uint32)

    def note(self, volume: int, writer: int, files: Iterable[Sequence[Any]]) -> None:
        """Add files that were written, as `bigdeconv.storage.seals.FileMark` has them.

        Raises
        ------
        ValueError
            If the output has no such file.
        """
        for name, n_bytes, checksum in files:
            number = self._number(volume, str(name))
            self.n_bytes[number], self.checksum[number], self.writer[number] = n_bytes, checksum, writer

    def forget(self, volume: int, files: Iterable[Sequence[Any]]) -> None:
        """Take files back."""
        for name, *_ in files:
            self.writer[self._number(volume, str(name))] = NOBODY

    def place(self, number: int) -> tuple[int, int, str]:
        """Return the volume and level of a file, and its path below the volume's output."""
        array = next(a for a in self._arrays.values() if a.first <= number < a.stop)
        return array.volume, array.level, array.name(number)

    def compare(self, folders: Sequence[Path], *, reads: bool, since_ns: int = 0) -> Differences:
        """Compare names and lengths with the files on disk, and contents where they are in doubt.

        Parameters
        ----------
        folders : sequence of Path
            The output of each volume.
        reads : bool
            Compare the contents of all files.
        since_ns : int
            Time from which on a file that was touched has its contents compared, in nanoseconds of the file system's clock.
        """
        found = np.full(len(self.n_bytes), ABSENT, np.int64)
        in_doubt = np.full(len(found), reads)
        for array in self._arrays.values():
            for number, status in _files_below(folders[array.volume] / array.prefix, array.grid, array.first):
                found[number] = status.st_size if S_ISREG(status.st_mode) else NO_FILE
                in_doubt[number] |= status.st_ctime_ns > since_ns
        is_written = self.writer != NOBODY
        is_damaged = is_written & (found != self.n_bytes)
        sentences = [
            self._length_problem(n, int(found[n])) for n in np.flatnonzero(is_damaged)[:MAX_SENTENCES].tolist()
        ]
        for number in np.flatnonzero(is_written & ~is_damaged & in_doubt).tolist():
            if (sentence := self._content_problem(folders, number)) is not None:
                is_damaged[number] = True
                sentences.append(sentence)
        damaged = np.flatnonzero(is_damaged)
        if len(damaged) > MAX_SENTENCES:
            sentences[MAX_SENTENCES:] = [f"and {len(damaged) - MAX_SENTENCES} files more"]
        return Differences(damaged, np.flatnonzero(~is_written & (found != ABSENT)), sentences)

    def changed(
        self, folders: Sequence[Path], writers: Iterable[int], levels: Container[tuple[int, int]]
    ) -> Differences:
        """Compare the contents of the files of some writers, and of those of some levels that a pass made.

        Parameters
        ----------
        folders : sequence of Path
            The output of each volume.
        writers : iterable of int
            See `note`.
        levels : container of (int, int)
            Volumes and numbers of levels.
        """
        numbers = np.flatnonzero(np.isin(self.writer, np.fromiter(writers, np.uint32))).tolist()
        for array in self._arrays.values():
            if (array.volume, array.level) in levels:
                numbers += (array.first + np.flatnonzero(self.writer[array.first : array.stop])).tolist()
        found = {number: text for number in numbers if (text := self._content_problem(folders, number)) is not None}
        return Differences(np.array(list(found), np.int64), np.empty(0, np.int64), list(found.values())[:MAX_SENTENCES])

    def _length_problem(self, number: int, found: int) -> str:
        name = self.place(number)[2]
        if found == ABSENT:
            return f"{name} is missing"
        return f"{name} has {found} bytes, {self.n_bytes[number]} were written" if found >= 0 else f"{name} is no file"

    def _content_problem(self, folders: Sequence[Path], number: int) -> str | None:
        volume, _, name = self.place(number)
        try:
            is_same = checksum_of(folders[volume] / name) == self.checksum[number]
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        return None if is_same else f"{name} holds other bytes than were written"

    def _number(self, volume: int, name: str) -> int:
        level, _, rest = name.partition("/")
        array = self._arrays.get((volume, int(level))) if level.isdecimal() else None
        place = rest.removeprefix("c/").split("/")
        if array is None or len(place) != len(array.grid) or not all(part.isdecimal() for part in place):
            raise ValueError(f"the output has no file {name!r}")
        number = 0
        for part, size in zip(place, array.grid, strict=True):
            if int(part) >= size:
                raise ValueError(f"the output has no file {name!r}")
            number = number * size + int(part)
        return array.first + number


def _files_below(folder: Path | str, grid: tuple[int, ...], first: int) -> Iterator[tuple[int, os.stat_result]]:
    """Yield what stands in the places of an array's files; whatever else lies there belongs to others, labels for example."""
    step = math.prod(grid[1:])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.isdecimal() or int(entry.name) >= grid[0] or entry.name != str(int(entry.name)):
                    continue
                number = first + int(entry.name) * step
                if len(grid) == 1:
                    yield number, entry.stat()
                else:
                    yield from _files_below(entry.path, grid[1:], number)
    except (FileNotFoundError, NotADirectoryError):
        return
