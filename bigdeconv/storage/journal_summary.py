"""Sums over the records of a journal, taken in one pass."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdeconv.errors import StoreError
from bigdeconv.storage.absent import AbsentFiles
from bigdeconv.storage.journal import BEGINNING, Position
from bigdeconv.storage.written_files import FIRST_BLOCK, LEVEL_PASS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bigdeconv.storage.journal import Journal
    from bigdeconv.storage.written_files import WrittenFiles

_ANEW = "start the run again with --overwrite"
SECONDS = ("read_seconds", "wait_seconds", "solve_seconds", "blend_seconds", "write_seconds")
"""Kinds of work whose time is added up over all workers."""
VOXELS = ("voxels", "not_finite", "fill", "hot", "negative", "clipped")
"""Kinds of voxels that are counted."""
_PLAIN = ("voxels", "seconds", "wall_seconds", "complete", "closed", "input_changed", "blocks_out_of_memory")
"""Sums that a snapshot holds as they are."""
_WRITTEN = frozenset({"n_bytes", "checksum", "writer"})


@dataclass(slots=True)
class JournalSummary:
    """Sums over the records of a journal: a byte per block, whatever the length of the journal."""

    n_blocks: int
    blocks_outside: int = 0
    """Blocks outside the mask, which count as finished and skipped."""
    volume_of: Callable[[int], int] = lambda _: 0
    """Number of the volume of a block."""
    written: WrittenFiles | None = None
    """Files of the output, where somebody asks for them: 16 bytes per file."""
    absent: AbsentFiles = field(default_factory=AbsentFiles)
    """Files of the input that were absent, and were read as fill, where somebody asks for them."""
    finished: bytearray = field(init=False)
    """1 for each block that the journal has, by its index."""
    blocks_finished: int = field(init=False)
    blocks_skipped: int = field(init=False)
    blocks_out_of_memory: int = 0
    """Blocks that a GPU had no memory for at first."""
    failures: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Place and cause of each block that failed and is not finished since, by its index."""
    retried: set[int] = field(default_factory=set)
    """Finished blocks that took more than one attempt: a worker that was stopped may write an earlier one after all."""
    retried_levels: set[tuple[int, int]] = field(default_factory=set)
    levels: set[tuple[int, int]] = field(default_factory=set)
    """Volume and number of each level that was made in a pass of its own."""
    voxels: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VOXELS, 0))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SECONDS, 0.0))
    input_changed: bool = False
    """Whether a driver has found that the input is another one than that which the run began with."""
    wall_seconds: float = 0.0
    """Of all drivers together."""
    complete: bool = False
    """Whether a driver has closed the run with nothing left to do."""
    closed: bool = False
    """Whether no block has come since a driver closed the run."""

    def __post_init__(self) -> None:
        self.finished = bytearray(self.n_blocks)
        self.blocks_finished = self.blocks_skipped = self.blocks_outside

    def read(self, journal: Journal, start: Position = BEGINNING, *, every_line: bool = False) -> Position:
        """Add the records of a journal from a place on; return where the last one ends.

        Parameters
        ----------
        journal : Journal
        start : Position
            The end of the last record that is in the sums.
        every_line : bool
            At the beginning, take no snapshot for the lines that it sums up.

        Raises
        ------
        StoreError
            If the journal is damaged.
        """
        if start == BEGINNING and not every_line and (found := journal.snapshot(self._unwanted)) is not None:
            start, arrays = found
            self.restore(arrays)
        end = start
        for record, place in journal.records(start):
            self.add(record)
            end = place
        return end

    @property
    def blocks_failed(self) -> int:
        """Number of blocks that failed and are not finished since."""
        return len(self.failures)

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one record.

        Raises
        ------
        StoreError
            If it is none, or names a block or file that the plan does not have.
        """
        try:
            if "block" in record:
                self._add_block(record)
            elif "level" in record:
                self._add_level(record)
            elif "forgotten" in record:
                self._forget(record["forgotten"])
            elif "failure" in record:
                failure = dict(record["failure"])
                self.failures[self._index(failure)] = failure
            elif "present" in record:
                self.absent.found(int(record["volume"]), record["present"])
            elif "complete" in record:
                # A block whose line was lost is missing, whatever a later line says.
                self.complete = bool(record["complete"]) and self.blocks_finished == self.n_blocks
                self.closed = True
                self.input_changed |= bool(record.get("input_changed"))
                self.wall_seconds += record.get("seconds", 0.0)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise StoreError(f"output: the journal holds a record that is none ({error}); {_ANEW}.") from error

    def snapshot(self) -> dict[str, np.ndarray]:
        """Return the sums as arrays."""
        plain = {name: getattr(self, name) for name in _PLAIN} | {"levels": sorted(self.levels)}
        plain |= {
            "failures": list(self.failures.values()),
            "retried": sorted(self.retried),
            "retried_levels": sorted(self.retried_levels),
        }
        plain |= {"blocks_finished": self.blocks_finished, "blocks_skipped": self.blocks_skipped}
        arrays = {"plain": np.frombuffer(json.dumps(plain).encode(), np.uint8)}
        arrays["finished"] = np.packbits(np.frombuffer(self.finished, np.uint8))
        arrays |= {f"absent{volume}": packed for volume, packed in self.absent.bits.items()}
        arrays["absent"] = np.array(sorted(self.absent.bits), np.int64)
        if self.written is not None:
            arrays |= {name: getattr(self.written, name) for name in _WRITTEN}
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over the sums of a snapshot."""
        plain = json.loads(arrays["plain"].tobytes())
        self.levels = {(volume, level) for volume, level in plain.pop("levels")}
        self.failures = {failure["block"]: failure for failure in plain.pop("failures")}
        self.retried = set(plain.pop("retried"))
        self.retried_levels = {(volume, level) for volume, level in plain.pop("retried_levels")}
        for name, value in plain.items():
            setattr(self, name, value)
        self.finished = bytearray(np.unpackbits(arrays["finished"], count=self.n_blocks).tobytes())
        self.absent.bits = {int(volume): arrays[f"absent{volume}"].copy() for volume in arrays["absent"]}
        if self.written is not None:
            for name in _WRITTEN:
                setattr(self.written, name, arrays[name])

    @property
    def _unwanted(self) -> frozenset[str]:
        """Names of the arrays of a snapshot that `restore` does not need."""
        return frozenset() if self.written is not None else _WRITTEN

    def _add_block(self, record: Mapping[str, Any]) -> None:
        index = self._index(record)
        self.complete = self.closed = False
        self.failures.pop(index, None)
        if self.finished[index]:
            return
        volume = self.volume_of(index)
        self.finished[index] = 1
        self.absent.note(volume, record.get("absent", ()))
        if self.written is not None:
            self.written.note(volume, FIRST_BLOCK + index, record.get("files", ()))
        if record.get("attempt", 1) > 1:
            self.retried.add(index)
        self.blocks_finished += 1
        self._count(record, 1)
        for name in SECONDS:
            self.seconds[name] += record.get(name, 0.0)

    def _add_level(self, record: Mapping[str, Any]) -> None:
        volume, level = int(record["volume"]), int(record["level"])
        self.levels.add((volume, level))
        if record.get("attempt", 1) > 1:
            self.retried_levels.add((volume, level))
        if self.written is not None:
            self.written.note(volume, LEVEL_PASS, record.get("files", ()))

    def _forget(self, record: Mapping[str, Any]) -> None:
        """Take back a block or level whose files were lost: it is computed again."""
        self.complete = self.closed = False
        if "level" in record:
            volume = int(record["volume"])
            self.levels.discard((volume, int(record["level"])))
            self.retried_levels.discard((volume, int(record["level"])))
        else:
            index = self._index(record)
            if not self.finished[index]:
                return
            volume = self.volume_of(index)
            self.finished[index] = 0
            self.retried.discard(index)
            self.blocks_finished -= 1
            self._count(record, -1)
        if self.written is not None:
            self.written.forget(volume, record.get("files", ()))

    def _count(self, record: Mapping[str, Any], sign: int) -> None:
        self.blocks_skipped += sign * bool(record.get("skipped"))
        self.blocks_out_of_memory += sign * bool(record.get("out_of_memory"))
        for name in VOXELS:
            self.voxels[name] += sign * record.get(name, 0)

    def _index(self, record: Mapping[str, Any]) -> int:
        index = record["block"]
        if not isinstance(index, int) or not 0 <= index < self.n_blocks:
            raise StoreError(
                f"output: the journal names block {index}, but the plan has {self.n_blocks} blocks; {_ANEW}."
            )
        return index
