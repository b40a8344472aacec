"""The ledger beside an output: its plan, the journal of finished blocks, and the overlap slabs that wait.

::

    OUTPUT.bigdeconv/
        plan.json        the record of the run, with its checksum and those of the files beside it
        arrays.safetensors, model.safetensors
        journal/         one sealed line per finished block, appended and synced by the driver alone
        run.log          what happened, with the tracebacks of failed blocks
        certificate.json errors measured at seams
        report.json, report.html   made by `bigdeconv report`
        lock             held by the living driver
        scratch/         overlap slabs of finished blocks that an unfinished neighbour still needs

A block is finished when its core and overlap slabs are on disk *and* its line is in the journal.  The existence of a chunk proves
nothing: a block of zeros writes none.  See ``DESIGN.md`` beside this file.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from bigdeconv.errors import OutputExistsError, StoreError
from bigdeconv.storage import weights
from bigdeconv.storage.atomic import new_folder, replaced_file
from bigdeconv.storage.journal import Journal
from bigdeconv.storage.lock import DriverLock
from bigdeconv.storage.seals import checksum_of, seal_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bigdeconv.numerics.priors.weights import WcrrWeights

SCHEMA_VERSION = 5
"""Raised when the form of the record or of the journal changes."""
_ANEW = "start the run again with --overwrite"


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
        self.journal = Journal(self.path / "journal")
        self.lock = DriverLock(self.path / "lock")

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
                Journal(building / ledger.journal.folder.name).create()
                DriverLock(building / "lock").create()
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
            begun = f"its ledger {str(ledger.path)!r} has no plan; {_ANEW}."
            never = f"it has no ledger at {str(ledger.path)!r}; start it with `bigdeconv run`."
            raise StoreError(f"output: {str(output)!r} cannot be continued: {begun if ledger.path.exists() else never}")
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

    def sound_plan(self) -> dict[str, Any]:
        """Return the stored plan, and refuse one that has changed since it was written, or beside which files have.

        Raises
        ------
        StoreError
            If numbers of the plan, PSFs or model are not those that the run began with, or it has another schema.
        """
        plan, where = self.plan(), str(self.path / "plan.json")
        found = plan.get("schema_version")
        if found != SCHEMA_VERSION:
            raise StoreError(
                f"output: the plan {where!r} has schema {found!r}, expected {SCHEMA_VERSION}; finish the run with the version of "
                "bigdeconv that began it, or start it again with --overwrite."
            )
        sealed = {name: value for name, value in plan.items() if name != "seal"}
        files = plan.get("files")
        if plan.get("seal") != seal_of(sealed) or not isinstance(files, dict):
            raise StoreError(
                f"output: {where!r} was changed after the run began, and blocks of two kinds would meet; {_ANEW}."
            )
        for name, checksum in files.items():
            path = self.path / name
            try:
                found = checksum_of(path)
            except OSError as error:
                raise StoreError(f"output: {str(path)!r} cannot be read ({error}); {_ANEW}.") from error
            if found != checksum:
                raise StoreError(f"output: {str(path)!r} was changed after the run began; {_ANEW}.")
        return plan

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

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the journal open for appending, alone.

        Raises
        ------
        StoreError
            If another living driver holds it.
        """
        with self.lock.held(), self.journal.appending():
            yield

    def drop_scratch(self) -> None:
        """Remove all overlap slabs."""
        shutil.rmtree(self.path / "scratch", ignore_errors=True)
