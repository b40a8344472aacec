"""The record of a run, as the ledger stores it: a resumed run reads it and chooses nothing again."""

from __future__ import annotations

# ruff: noqa: TC001  (pydantic reads the annotations of the record at run time)
import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from bigdeconv import models
from bigdeconv.calibration.numbers import Findings
from bigdeconv.engine.recipe import ChannelNumbers
from bigdeconv.errors import StoreError
from bigdeconv.jobs.facts import JobFacts, JobPlan
from bigdeconv.numerics import NUMERICS_VERSION

if TYPE_CHECKING:
    from bigdeconv.jobs.job import Job
    from bigdeconv.storage.ledger import Ledger


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything that a run needs besides arrays."""

    schema_version: Literal[5]
    digest: str
    """Checksum of identity, plans and numbers."""
    identity: dict[str, Any]
    """Named digests and parameters that decide the stored numbers."""
    facts: JobFacts
    channels: dict[int, ChannelNumbers]
    findings: dict[int, Findings]
    """By channel: what the data said beside the numbers that they decided."""
    warnings: tuple[str, ...]


def record_of(job: Job) -> RunRecord:
    """Return the record of a job; its arrays are stored beside it (`arrays_of`)."""
    facts = job.plan.facts
    channels = {number: calibration.numbers for number, calibration in job.calibrations.items()}
    identity = identity_of(job.plan, job.sample_digests)
    chosen = {number: asdict(numbers) for number, numbers in channels.items()}
    return RunRecord(
        schema_version=5,
        digest=_digest([identity, [asdict(plan) for plan in facts.plans], chosen]),
        identity=identity,
        facts=facts,
        channels=channels,
        findings={number: calibration.findings for number, calibration in job.calibrations.items()},
        warnings=job.warnings,
    )


def identity_of(plan: JobPlan, sample_digests: dict[int, str]) -> dict[str, Any]:
    """Return what decides the numbers of a run: digests of its input, PSFs, model and mask, and its parameters."""
    facts = plan.facts
    outside = None if plan.outside is None else np.packbits(plan.outside).tobytes()
    return {
        "input": input_digest(facts, sample_digests),
        "psf": plan.psf_digest,
        "model": models.digest(plan.model) if plan.model else None,
        # A mask decides which blocks are left out: its place and its other voxels do not matter.
        "mask": None if outside is None else hashlib.sha256(outside).hexdigest()[:16],
        "numerics": NUMERICS_VERSION,
        "parameters": facts.config.deciding() | ({} if outside is None else {"mask": "auto"}),
    }


def input_digest(facts: JobFacts, sample_digests: dict[int, str]) -> str:
    """Return what tells the input from another one: its metadata and samples of its voxels."""
    volumes = [
        {k: v for k, v in asdict(volume).items() if k not in {"location", "name", "channels"}}
        for volume in facts.volumes
    ]
    return _digest([volumes, facts.images.names, list(sample_digests.values())])


def arrays_of(plan: JobPlan) -> dict[str, np.ndarray]:
    """Return the PSFs and the blocks outside the mask, under the names that `OpenRun` reads."""
    arrays: dict[str, np.ndarray] = {f"psf{number}": psf.views for number, psf in plan.psfs.items()}
    if plan.outside is not None:
        arrays["outside"] = np.packbits(plan.outside)
    return arrays


def dump(record: RunRecord) -> dict[str, Any]:
    """Return a record as plain values."""
    values: dict[str, Any] = TypeAdapter(RunRecord).dump_python(record, mode="json")
    # For those who look at the numbers of blocks alone.
    return values | {"blocks": {"total": record.facts.n_blocks, "outside": record.facts.blocks_outside}}


def load(ledger: Ledger) -> RunRecord:
    """Return the record of a ledger.

    Raises
    ------
    StoreError
        If it is damaged, or of another schema.
    """
    stored, where = ledger.sound_plan(), str(ledger.path / "plan.json")
    try:
        return TypeAdapter(RunRecord).validate_python(stored)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StoreError(
            f"output: the plan {where!r} is damaged ({place}: {first['msg']}); start the run again with --overwrite."
        ) from error


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
