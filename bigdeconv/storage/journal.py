"""The journal of a run: numbered segments of sealed lines, and snapshots of their sum.

::

    journal/
        000000.jsonl    one sealed line per record; only the last segment grows, the others never change again
        000001.jsonl
        000001.npz      sum of all segments before number 1, for those who need no single line

Another kind of store needs another `Journal`, and no other format: segments are numbered, made once, and read from a place on.
"""

from __future__ import annotations

import os
import zlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from bigdeconv.errors import StoreError
from bigdeconv.storage.atomic import made_a_file, replaced_file, synced
from bigdeconv.storage.locations import reported
from bigdeconv.storage.seals import sealed_line, unsealed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SEGMENT_BYTES = 2**24
"""Length from which on a segment is followed by another: so much is read again beside the latest snapshot."""
KEPT_SNAPSHOTS = 2
_SIZES = "segment_bytes"
"""Array of a snapshot: lengths of the segments that it sums up."""


class Position(NamedTuple):
    """A place in a journal: the end of a record, or its beginning."""

    segment: int = 0
    byte: int = 0


BEGINNING = Position()


class Journal:
    """Records of one run, appended by one driver and read by anybody.

    Parameters
    ----------
    folder : Path
        See above.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[bytes] | None = None
        self._end = BEGINNING

    def create(self) -> None:
        """Make an empty journal, or what is missing of one."""
        self.folder.mkdir(exist_ok=True)
        made_a_file(self._path(0))

    def records(self, start: Position = BEGINNING) -> Iterator[tuple[dict[str, Any], Position]]:
        """Yield the records and where each ends; an incomplete last line is left out.

        Parameters
        ----------
        start : Position
            Place to begin at: the beginning, or the end of a record.

        Raises
        ------
        StoreError
            If a line is damaged, or a segment is missing.
        """
        end = start
        numbers = self._numbers()
        last = max(numbers, default=0)
        try:
            for number in range(start.segment, max(last + 1, 1)):
                end = Position(number, start.byte if number == start.segment else 0)
                with self._path(number).open("rb") as file:
                    file.seek(end.byte)
                    for line in file:
                        if number == last and not line.endswith(b"\n"):
                            return
                        record = unsealed(line)
                        end = Position(number, end.byte + len(line))
                        yield record, end
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(
                f"output: {str(self._path(end.segment))!r} is damaged before byte {end.byte} ({error}); go on with "
                "`bigdeconv repair`."
            ) from error

    def snapshot(self, leaves: frozenset[str] = frozenset()) -> tuple[Position, dict[str, np.ndarray]] | None:
        """Return where the latest snapshot ends that can be read and fits the segments, and its arrays; None without one.

        Parameters
        ----------
        leaves : frozenset of str
            Arrays that are not wanted, and not read.
        """
        for number in sorted(self._numbers(".npz"), reverse=True):
            try:
                with np.load(self._snapshot_path(number), allow_pickle=False) as stored:
                    sizes = [self._path(n).stat().st_size for n in range(number)]
                    if sizes == stored[_SIZES].tolist():
                        return Position(number), {name: stored[name] for name in stored.files if name not in leaves}
            except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
                continue
        return None

    @contextmanager
    def appending(self) -> Iterator[None]:
        """Hold the last segment open for appending; the caller sees to it that nobody else does.

        Raises
        ------
        StoreError
            If there is no journal, or it cannot be written.
        """
        with reported("open", str(self.folder)):
            # A driver may have ended between a snapshot and the next segment.
            number = max(*self._numbers(), *self._numbers(".npz"), 0, 0)
            if number and self.folder.is_dir():
                self._path(number).touch()
            _cut_torn_line(self._path(number))
            self._open(number)
        try:
            yield
        finally:
            self._close()

    def append(self, record: Mapping[str, Any]) -> Position:
        """Append one record and sync it to disk; return where it ends."""
        assert self._file is not None, "append outside of `with ledger.writing()`"
        line = sealed_line(record)
        with reported("write", self._file.name):
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._end = Position(self._end.segment, self._end.byte + len(line))
        return self._end

    @property
    def is_segment_full(self) -> bool:
        """Whether it is time for a snapshot."""
        return self._end.byte >= SEGMENT_BYTES

    def begin_segment(self, snapshot: Mapping[str, np.ndarray]) -> Position:
        """Store the sum of all records, and begin the next segment; return its beginning."""
        number = self._end.segment + 1
        with reported("write", str(self.folder)):
            sizes = np.array([self._path(n).stat().st_size for n in range(number)], np.int64)
            with replaced_file(self._snapshot_path(number), sync=True) as building:
                np.savez(building, allow_pickle=False, **{_SIZES: sizes}, **snapshot)
            self._close()
            self._path(number).touch()
            synced(self.folder)
            self._open(number)
            for old in sorted(self._numbers(".npz"))[:-KEPT_SNAPSHOTS]:
                self._snapshot_path(old).unlink(missing_ok=True)
        return self._end

    def mend(self) -> int:
        """Take damaged lines out, alone; return how many there were, a missing segment counting as one.

        Blocks and levels that they named count as unfinished, and so does the run: its closing lines go too, and all snapshots.
        """
        with reported("mend", str(self.folder)):
            numbers = range(max(self._numbers(), default=0) + 1)
            damaged = sum(self._sound_lines(number)[1] for number in numbers)
            if damaged:
                for number in self._numbers(".npz"):
                    self._snapshot_path(number).unlink()
                for number in numbers:
                    kept = [line for line in self._sound_lines(number)[0] if "complete" not in unsealed(line)]
                    with replaced_file(self._path(number), sync=True) as building:
                        building.write_bytes(b"".join(kept))
        return damaged

    @property
    def written_ns(self) -> int:
        """Time of the latest change, in nanoseconds of the file system's clock."""
        return max((self._path(n).stat().st_mtime_ns for n in self._numbers()), default=0)

    def _sound_lines(self, number: int) -> tuple[list[bytes], int]:
        kept: list[bytes] = []
        damaged = 0
        try:
            lines = self._path(number).read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return [], 1
        for line in lines:
            try:
                unsealed(line)
            except (ValueError, RecursionError):
                damaged += 1
            else:
                kept.append(line)
        return kept, damaged

    def _open(self, number: int) -> None:
        self._file = self._path(number).open("ab")
        self._end = Position(number, self._file.tell())

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.jsonl"

    def _snapshot_path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def _numbers(self, suffix: str = ".jsonl") -> list[int]:
        """Return the numbers of the segments, or of the snapshots, that are there."""
        return [int(p.stem) for p in self.folder.glob(f"*{suffix}") if p.stem.isdecimal()]


def _cut_torn_line(path: Path) -> None:
    """Remove an incomplete last line, reading from the end."""
    with path.open("r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            start = max(end - 2**16, 0)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
