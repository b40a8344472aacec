"""The ledger beside an output: its plan, the journal of finished blocks, and the overlap slabs that wait.

::

    OUTPUT.bigdeconv/
        plan.json        the record of the run, with its checksum and those of the files beside it
        arrays.safetensors, model.safetensors
        journal.jsonl    one sealed line per finished block, appended and synced by the driver alone
        run.log          what happened, with the tracebacks of failed blocks
        certificate.json errors measured at seams
        report.json, report.html   made by `bigdeconv report`
        lock             held by the living driver
        scratch/         overlap slabs of finished blocks that an unfinished neighbour still needs

A block is finished when its core and overlap slabs are on disk *and* its line is in the journal.  The existence of a chunk proves
nothing: a block of zeros writes none.  See ``DESIGN.md`` beside this file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from bigdeconv.errors import OutputExistsError, StoreError
from bigdeconv.storage import weights
from bigdeconv.storage.atomic import new_folder, replaced_file
from bigdeconv.storage.locations import reported
from bigdeconv.storage.seals import checksum_of, seal_of, sealed_line, unsealed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bigdeconv.numerics.priors.weights import WcrrWeights

_ANEW = "start the run again with --overwrite"
LOCK_SECONDS = 2.0
"""Patience with those who look for a moment whether the lock is held."""
SECONDS = ("read_seconds", "wait_seconds", "solve_seconds", "blend_seconds", "write_seconds")
"""Kinds of work whose time is added up over all workers."""
VOXELS = ("voxels", "not_finite", "fill", "hot", "negative", "clipped")
"""Kinds of voxels that are counted."""


def ledger_path(output: str | Path) -> Path:
    """Return the path of the ledger of an output."""
    path = Path(output)
    return path.with_name(path.name + ".bigdeconv")


class Ledger:
    """Plan and journal of one output.

    Parameters
    ----------
    output : str or Path
        The output that it belongs to; use `create` or `open`.
    """

    def __init__(self, output: str | Path) -> None:
        self.path = ledger_path(output)
        self.model_path = self.path / "model.safetensors"
        self.log_path = self.path / "run.log"
        self._journal: IO[bytes] | None = None

    @classmethod
    def create(
        cls,
        output: str | Path,
        plan: dict[str, Any],
        arrays: Mapping[str, np.ndarray],
        model: WcrrWeights | None = None,
    ) -> Ledger:
        """Store a plan; the ledger appears whole or not at all.

        Raises
        ------
        OutputExistsError
            If there is a ledger already.
        StoreError
            If it cannot be written.
        """
        ledger = cls(output)
        if ledger.path.exists():
            raise OutputExistsError(
                f"output: {str(ledger.path)!r} is the ledger of an earlier run; continue that with --resume, or replace it with "
                "--overwrite."
            )
        try:
            with new_folder(ledger.path) as building:
                building.mkdir()
                save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, str(building / "arrays.safetensors"))
                if model is not None:
                    weights.save(building / ledger.model_path.name, model)
                files = {file.name: checksum_of(file) for file in building.glob("*.safetensors")}
                sealed = {**plan, "files": files}
                (building / "plan.json").write_text(json.dumps({**sealed, "seal": seal_of(sealed)}, indent=1))
                (building / "journal.jsonl").touch()
                (building / "lock").touch()
                for file in building.glob("*.safetensors"):  # written for their owner alone
                    shutil.copymode(building / "plan.json", file)
        except (OSError, SafetensorError) as error:
            raise StoreError(f"output: the ledger {str(ledger.path)!r} cannot be written ({error}).") from error
        return ledger

    @classmethod
    def open(cls, output: str | Path) -> Ledger:
        """Open the ledger of an output.

        Raises
        ------
        StoreError
            If there is none.
        """
        ledger = cls(output)
        if not (ledger.path / "plan.json").is_file():
            raise StoreError(
                f"output: {str(output)!r} has no ledger at {str(ledger.path)!r}; start it with `bigdeconv run`."
            )
        return ledger

    def plan(self) -> dict[str, Any]:
        """Return the stored plan as plain values, ``files`` and ``seal`` among them.

        Raises
        ------
        StoreError
            If it is no plan.
        """
        path = self.path / "plan.json"
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(f"output: {str(path)!r} is damaged ({error}); {_ANEW}.") from error
        if not isinstance(content, dict):
            raise StoreError(
                f"output: {str(path)!r} is damaged (it holds a {type(content).__name__}, not a plan); {_ANEW}."
            )
        return content

    def require_sound(self, plan: Mapping[str, Any]) -> None:
        """Refuse a plan that has changed since it was written, and files beside it that have.

        Raises
        ------
        StoreError
            If numbers of the plan, PSFs or model are not those that the run began with.
        """
        sealed = {name: value for name, value in plan.items() if name != "seal"}
        files = plan.get("files")
        if plan.get("seal") != seal_of(sealed) or not isinstance(files, dict):
            raise StoreError(
                f"output: {str(self.path / 'plan.json')!r} was changed after the run began, and blocks of two kinds would meet; "
                f"{_ANEW}."
            )
        for name, checksum in files.items():
            path = self.path / name
            try:
                found = checksum_of(path)
            except OSError as error:
                raise StoreError(f"output: {str(path)!r} cannot be read ({error}); {_ANEW}.") from error
            if found != checksum:
                raise StoreError(f"output: {str(path)!r} was changed after the run began; {_ANEW}.")

    def stamp(self) -> tuple[int, int]:
        """Return what changes when another plan takes the place of this one."""
        status = (self.path / "plan.json").stat()
        return status.st_mtime_ns, status.st_ino

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Store plain values under a name; see `write_text`."""
        self.write_text(f"{name}.json", json.dumps(values, indent=1))

    def write_text(self, name: str, text: str) -> None:
        """Store a file.

        Raises
        ------
        StoreError
            If it cannot be written.
        """
        try:
            with replaced_file(self.path / name) as building:
                building.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StoreError(f"output: {str(self.path / name)!r} cannot be written ({error}).") from error

    def certificate(self) -> dict[str, Any] | None:
        """Return the stored certificate, or None where there is none that can be read."""
        try:
            content: dict[str, Any] = json.loads((self.path / "certificate.json").read_text())
        except (OSError, ValueError):
            return None
        return content

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the stored arrays, the PSFs among them.

        Raises
        ------
        StoreError
            If they cannot be read.
        """
        path = self.path / "arrays.safetensors"
        try:
            return dict(load_file(str(path)))
        except (OSError, SafetensorError) as error:
            raise StoreError(f"output: {str(path)!r} cannot be read ({error}).") from error

    def records(self, start: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield the records of the journal and where each ends, in bytes; an incomplete last line is left out.

        Parameters
        ----------
        start : int
            Byte to begin at: 0, or the end of a record.

        Raises
        ------
        StoreError
            If a line is damaged, or there is no journal.
        """
        path, end = self.path / "journal.jsonl", start
        try:
            with path.open("rb") as file:
                file.seek(start)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    end += len(line)
                    yield unsealed(line), end
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(
                f"output: {str(path)!r} is damaged before byte {end} ({error}); go on with `bigdeconv repair`."
            ) from error

    def mend_journal(self) -> int:
        """Rewrite the journal without its damaged lines, alone; return how many there were.

        Blocks and levels that they named count as unfinished, and so does the run: its closing lines go too.
        """
        path = self.path / "journal.jsonl"
        kept: list[bytes] = []
        damaged = 0
        with reported("mend", str(path)):
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    is_closing = "complete" in unsealed(line)
                except (ValueError, RecursionError):
                    damaged += 1
                    continue
                if not is_closing:
                    kept.append(line)
            if damaged:
                with replaced_file(path, sync=True) as building:
                    building.write_bytes(b"".join(kept))
        return damaged

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the journal open for appending, alone.

        Raises
        ------
        StoreError
            If another living driver holds it.
        """
        lock = FileLock(self.path / "lock", timeout=LOCK_SECONDS)
        try:
            held = lock.acquire()
        except Timeout as error:
            raise StoreError(
                f"output: another run is writing it (the lock {lock.lock_file!r} is held); wait for it or stop it."
            ) from error
        except OSError as error:
            raise StoreError(f"output: the lock {lock.lock_file!r} cannot be taken ({error}).") from error
        with held:
            with reported("open", str(self.path / "journal.jsonl")):
                self._cut_torn_line()
            try:
                with (self.path / "journal.jsonl").open("ab") as self._journal:
                    yield
            finally:
                self._journal = None

    def is_being_written(self) -> bool:
        """Tell whether a living driver holds the journal; the right to read suffices.

        Raises
        ------
        StoreError
            If the file system knows no locks.
        """
        # A shared lock, which filelock does not offer for a file that may only be read: probes do not disturb one another, and
        # a network file system grants it to readers.
        if not (self.path / "lock").exists():  # nobody can hold it
            return False
        with (self.path / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    return True
                raise StoreError(f"output: the lock {lock.name!r} cannot be looked at ({error}).") from error
        return False

    def append(self, record: Mapping[str, Any]) -> int:
        """Append one record to the journal and sync it to disk; return the bytes that were written."""
        assert self._journal is not None, "append outside of `with ledger.writing()`"
        line = sealed_line(record)
        with reported("write", self._journal.name):
            self._journal.write(line)
            self._journal.flush()
            os.fsync(self._journal.fileno())
        return len(line)

    def drop_scratch(self) -> None:
        """Remove all overlap slabs."""
        shutil.rmtree(self.path / "scratch", ignore_errors=True)

    def _cut_torn_line(self) -> None:
        """Remove an incomplete last line, reading from the end: journals may be large."""
        with (self.path / "journal.jsonl").open("r+b") as file:
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


@dataclass(slots=True)
class JournalSummary:
    """Sums over the records of a journal, taken in one pass: one byte per block, whatever the length of the journal."""

    n_blocks: int
    blocks_outside: int = 0
    """Blocks outside the mask, which count as finished and skipped."""
    finished: bytearray = field(init=False)
    """1 for each block that the journal has, by its index."""
    blocks_finished: int = field(init=False)
    blocks_skipped: int = field(init=False)
    blocks_failed: int = 0
    """As the last driver left it; 0 once another has gone on."""
    levels: set[tuple[int, int]] = field(default_factory=set)
    """Volume and number of each level that was made in a pass of its own."""
    voxels: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VOXELS, 0))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SECONDS, 0.0))
    wall_seconds: float = 0.0
    """Of all drivers together."""
    absent: dict[int, set[tuple[int, int]]] = field(default_factory=dict)
    """Ranges of files of the input that were absent, by the index of the block that read them as fill."""
    complete: bool = False
    """Whether a driver has closed the run with nothing left to do."""
    closed: bool = False
    """Whether no block has come since a driver closed the run."""

    def __post_init__(self) -> None:
        self.finished = bytearray(self.n_blocks)
        self.blocks_finished = self.blocks_skipped = self.blocks_outside

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one record.

        Raises
        ------
        StoreError
            If it is none, or names a block that the plan does not have.
        """
        try:
            if "block" in record:
                self._add_block(record)
            elif "level" in record:
                self.levels.add((int(record["volume"]), int(record["level"])))
            elif "forgotten" in record:
                self._forget(record["forgotten"])
            elif "complete" in record:
                # A block whose line was lost is missing, whatever a later line says.
                self.complete = bool(record["complete"]) and self.blocks_finished == self.n_blocks
                self.blocks_failed, self.closed = int(record["failed"]), True
                self.wall_seconds += record.get("seconds", 0.0)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"output: the journal holds a record that is none ({error}); {_ANEW}.") from error

    def _add_block(self, record: Mapping[str, Any]) -> None:
        index = self._index(record)
        self.complete = self.closed = False
        self.blocks_failed = 0
        if self.finished[index]:
            return
        self.finished[index] = 1
        if "absent" in record:
            self.absent[index] = {(int(start), int(stop)) for start, stop in record["absent"]}
        self.blocks_finished += 1
        self._count(record, 1)
        for name in SECONDS:
            self.seconds[name] += record.get(name, 0.0)

    def _forget(self, record: Mapping[str, Any]) -> None:
        """Take back a block or level whose files were lost: it is computed again."""
        self.complete = self.closed = False
        if "level" in record:
            self.levels.discard((int(record["volume"]), int(record["level"])))
            return
        index = self._index(record)
        if self.finished[index]:
            self.finished[index] = 0
            self.absent.pop(index, None)
            self.blocks_finished -= 1
            self._count(record, -1)

    def _count(self, record: Mapping[str, Any], sign: int) -> None:
        self.blocks_skipped += sign * bool(record.get("skipped"))
        for name in VOXELS:
            self.voxels[name] += sign * record.get(name, 0)

    def _index(self, record: Mapping[str, Any]) -> int:
        index = record["block"]
        if not isinstance(index, int) or not 0 <= index < self.n_blocks:
            raise StoreError(
                f"output: the journal names block {index}, but the plan has {self.n_blocks} blocks; {_ANEW}."
            )
        return index
