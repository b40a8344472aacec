"""The ledger beside a store: the stored plan, a journal of what is finished, and the rims that wait.

::

    OUTPUT.bigdeconv/
        plan.json        what was decided before the first block
        arrays.safetensors, model.safetensors
        journal.jsonl    one line per finished block, appended and synced by the driver alone
        certificate.json what solving some seams again has found
        report.json, report.html   what `bigdeconv report` made of it all
        lock             held by the living driver
        scratch/         rims of finished blocks that an unfinished neighbour still needs

A block is finished when its core and rims are on disk *and* its line is in the journal.  A chunk's existence proves nothing:
an all-zero block writes none.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from bigdeconv.errors import OutputExistsError, StoreError
from bigdeconv.storage import weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bigdeconv.geometry import Triple
    from bigdeconv.priors.weights import WcrrWeights


def ledger_path(output: str | Path) -> Path:
    """Return where the ledger of an output lies."""
    path = Path(output)
    return path.with_name(path.name + ".bigdeconv")


class Ledger:
    """The plan and journal of one output."""

    def __init__(self, output: str | Path) -> None:
        self.path = ledger_path(output)
        self.model_path = self.path / "model.safetensors"
        self._journal: IO[str] | None = None

    @classmethod
    def create(
        cls,
        output: str | Path,
        document: dict[str, Any],
        arrays: Mapping[str, np.ndarray],
        model: WcrrWeights | None = None,
    ) -> Ledger:
        """Store a plan; the ledger appears whole or not at all.

        Raises
        ------
        OutputExistsError
            If there is a ledger already.
        """
        ledger = cls(output)
        if ledger.path.exists():
            raise OutputExistsError(
                f"output: there is a ledger of an earlier run at {str(ledger.path)!r}; go on with --resume, or replace it "
                "with --overwrite."
            )
        building = ledger.path.with_name(f".{ledger.path.name}.{uuid4().hex}")
        try:
            building.mkdir(parents=True)
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, str(building / "arrays.safetensors"))
            if model is not None:
                weights.save(building / ledger.model_path.name, model)
            (building / "plan.json").write_text(json.dumps(document, indent=1))
            (building / "journal.jsonl").touch()
            (building / "lock").touch()
            building.rename(ledger.path)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(building, ignore_errors=True)
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

    def document(self) -> dict[str, Any]:
        """Return the stored plan."""
        path = self.path / "plan.json"
        try:
            content: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise StoreError(f"output: {str(path)!r} is damaged ({error}).") from error
        return content

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Store plain values under a name; they appear whole or not at all."""
        building = self.path / f"{name}.{uuid4().hex}.partial"
        building.write_text(json.dumps(values, indent=1))
        building.replace(self.path / f"{name}.json")

    def certificate(self) -> dict[str, Any] | None:
        """Return the stored certificate, or None where there is none that can be read."""
        try:
            content: dict[str, Any] = json.loads((self.path / "certificate.json").read_text())
        except (OSError, ValueError):
            return None
        return content

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the stored arrays, the PSFs among them."""
        return dict(load_file(str(self.path / "arrays.safetensors")))

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the journal; a last line that a crash cut short is left out."""
        with (self.path / "journal.jsonl").open() as file:
            for number, line in enumerate(file, 1):
                if line.endswith("\n"):
                    try:
                        record = json.loads(line)
                    except ValueError as error:
                        raise StoreError(f"output: {file.name!r} is damaged at line {number} ({error}).") from error
                    yield record

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the journal open for appending, alone.

        Raises
        ------
        StoreError
            If another living driver holds it.
        """
        with (self.path / "lock").open("a+") as lock:
            if not _locked_within(lock, seconds=2.0):
                raise StoreError(
                    f"output: another run is writing it (the lock {lock.name!r} is held); wait for it or stop it."
                )
            self._cut_torn_line()
            try:
                with (self.path / "journal.jsonl").open("a") as self._journal:
                    yield
            finally:
                self._journal = None

    def is_being_written(self) -> bool:
        """Tell whether a living driver holds the journal."""
        with (self.path / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
            return False

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line to the journal and sync it to disk."""
        assert self._journal is not None, "append outside of `with ledger.writing()`"
        self._journal.write(json.dumps(record) + "\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def drop_scratch(self) -> None:
        """Remove every rim."""
        shutil.rmtree(self.path / "scratch", ignore_errors=True)

    def remove(self) -> None:
        """Remove the ledger."""
        shutil.rmtree(self.path)

    def _cut_torn_line(self) -> None:
        path = self.path / "journal.jsonl"
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)


def _locked_within(lock: IO[str], seconds: float) -> bool:
    """Take the lock for writing; a short wait lets those pass who only look whether it is held."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def write_rim(scratch: str | Path, block: int, direction: Triple, rim: np.ndarray) -> None:
    """Write the rim that a block leaves for its neighbour in a direction; it appears whole or not at all."""
    path = _rim_path(scratch, block, direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_suffix(f".{uuid4().hex}.partial")
    with building.open("wb") as file:
        np.save(file, rim, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    building.replace(path)


def read_rim(scratch: str | Path, block: int, direction: Triple) -> np.ndarray:
    """Read a rim, ``z y x`` float32."""
    rim: np.ndarray = np.load(_rim_path(scratch, block, direction), allow_pickle=False)
    return rim


def drop_rim(scratch: str | Path, block: int, direction: Triple) -> None:
    """Remove a rim that its neighbour has merged."""
    _rim_path(scratch, block, direction).unlink(missing_ok=True)


def _rim_path(scratch: str | Path, block: int, direction: Triple) -> Path:
    z, y, x = direction
    return Path(scratch) / f"{block // 1000:06d}" / f"{block}-{z}{y}{x}.npy"
