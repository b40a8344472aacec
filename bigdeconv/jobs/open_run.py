"""A stored run, opened: its ledger, its record and the sum of its journal, each read once."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from bigdeconv.engine.recipe import Recipe
from bigdeconv.errors import StoreError
from bigdeconv.jobs import record as records
from bigdeconv.jobs.output_metadata import output_specs
from bigdeconv.jobs.state import state_of
from bigdeconv.planning.blocks import BlockSequence
from bigdeconv.psf import PSF
from bigdeconv.storage import weights
from bigdeconv.storage.absent import AbsentFiles, n_files
from bigdeconv.storage.journal import BEGINNING, Position
from bigdeconv.storage.journal_summary import JournalSummary
from bigdeconv.storage.ledger import Ledger
from bigdeconv.storage.written_files import WrittenFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bigdeconv.jobs.job import Job
    from bigdeconv.jobs.record import RunRecord


@dataclass(slots=True)
class OpenRun:
    """A run on disk.

    The journal is added up as far as it reached when the run was opened, or when its lock was taken (`writing`); records that
    this process appends are added too.
    """

    output: Path
    ledger: Ledger
    record: RunRecord
    journal: JournalSummary
    is_running: bool
    """Whether a driver was writing when the run was opened."""
    _stamp: tuple[int, int]
    _read_to: Position = BEGINNING
    """Place in the journal up to which records are in the summary."""

    @classmethod
    def open(cls, output: str | Path, *, with_files: bool = False, every_line: bool = False) -> OpenRun:
        """Open the run of an output.

        Parameters
        ----------
        output : str or Path
        with_files : bool
            Keep what was written, file by file, as those need it who compare files or append to the journal.
        every_line : bool
            Read the whole journal, and no snapshot of it.

        Raises
        ------
        StoreError
            If it has no ledger, or plan or journal are damaged.
        """
        ledger = Ledger.open(output)
        # The lock before the journal: a driver that ends in between has written everything that is read.
        is_running, stamp = ledger.lock.is_held(), ledger.stamp()
        record = records.load(ledger)
        run = cls(Path(output), ledger, record, _summary(record, with_files=with_files), is_running, stamp)
        run._read_to = run.journal.read(ledger.journal, every_line=every_line)
        return run

    @classmethod
    def create(cls, output: Path, job: Job, record: RunRecord) -> OpenRun:
        """Store the record of a job, and open the run."""
        output.parent.mkdir(parents=True, exist_ok=True)
        ledger = Ledger.create(output, records.dump(record), records.arrays_of(job.plan), job.plan.model)
        return cls(output, ledger, record, _summary(record, with_files=True), is_running=False, _stamp=ledger.stamp())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the journal for writing, alone; records that another driver has appended meanwhile are added up first.

        Raises
        ------
        StoreError
            If another living driver holds it, or another run has taken the place of this one.
        """
        with self.ledger.writing():
            if self.ledger.stamp() != self._stamp:
                raise StoreError(f"output: another run has replaced {str(self.output)!r} meanwhile; look at it again.")
            self._read_to = self.journal.read(self.ledger.journal, self._read_to)
            yield

    def append(self, record: dict[str, Any]) -> None:
        """Append a record to the journal and add it up; within `writing`."""
        self._read_to = self.ledger.journal.append(record)
        self.journal.add(record)
        if self.ledger.journal.is_segment_full:
            self._read_to = self.ledger.journal.begin_segment(self.journal.snapshot())

    @property
    def state(self) -> str:
        """``running``, ``complete``, ``incomplete`` (closed with blocks missing) or ``interrupted``."""
        return state_of(self.journal, is_running=self.is_running)

    def outside(self) -> np.ndarray | None:
        """Return whether a block lies outside the mask, by its index; None without a mask."""
        bits = self.ledger.arrays().get("outside")
        return None if bits is None else np.unpackbits(bits, count=self.record.facts.n_blocks).astype(bool)

    def recipes(self, *, threads: int | None) -> tuple[Recipe, ...]:
        """Return what the workers need for each volume.

        Parameters
        ----------
        threads : int or None
            Threads per block; None for the worker's own choice.
        """
        facts, arrays = self.record.facts, self.ledger.arrays()
        voxel_zyx_um = facts.first_volume.voxel_zyx_um
        model = self.ledger.model_path
        first = Recipe(
            token=uuid4().hex[:12],
            volume=facts.first_volume,
            view_axis=facts.config.views_axis,
            plan=facts.plans[0],
            channels=self.record.channels,
            psfs={number: PSF(arrays[f"psf{number}"], voxel_zyx_um) for number in facts.channels},
            model=weights.load(model) if model.exists() else None,
            output=str(self.output),
            output_axes=facts.output_axes,
            output_dtype=facts.output_dtype,
            keep_bits=facts.config.keep_bits,
            # A folder of this very run: a task that outlived the driver of another one writes elsewhere.
            scratch=str(self.ledger.path / "scratch" / self.record.digest),
            refuses_absent=facts.config.missing == "error",
            syncs=facts.config.fsync,
            threads=threads,
        )
        members = zip(facts.volumes, facts.plans, facts.images.outputs(self.output), strict=True)
        return tuple(replace(first, volume=volume, plan=plan, output=str(path)) for volume, plan, path in members)


def _summary(record: RunRecord, *, with_files: bool) -> JournalSummary:
    facts, specs = record.facts, output_specs(record)
    grids = [[level.file_grid for level in spec.levels] for spec in specs]
    return JournalSummary(
        facts.n_blocks,
        facts.blocks_outside,
        volume_of=BlockSequence(facts.plans).volume,
        written=WrittenFiles(grids, specs[0].key_prefix) if with_files else None,
        absent=AbsentFiles(tuple(n_files(volume) for volume in facts.volumes)),
    )
