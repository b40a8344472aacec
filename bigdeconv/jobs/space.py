"""Space on disk that a run takes: an upper bound before any voxel is read, and an estimate from what the calibration restored."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from bigdeconv.engine.block import to_stored
from bigdeconv.errors import StoreError
from bigdeconv.geometry import ceil_div
from bigdeconv.storage.codecs import compressed_share

if TYPE_CHECKING:
    from pathlib import Path

    from bigdeconv.jobs.facts import JobFacts
    from bigdeconv.jobs.job import Job

RESERVE = 1.3
"""Factor on the estimate: the samples are a small part of the volume, though a bright one."""


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes, files and folders that a run writes at most."""

    output_bytes: int
    """All levels, uncompressed, without the blocks outside the mask."""
    scratch_bytes: int
    """Overlap slabs at any moment."""
    n_files: int
    n_folders: int
    """Of the output."""


def space_of(facts: JobFacts) -> Space:
    """Return the upper bound of what a job writes."""
    output_bytes = n_files = n_folders = 0
    item = np.dtype(facts.output_dtype).itemsize
    inside = 1 - facts.blocks_outside / facts.n_blocks
    for plan in facts.plans:
        planes = len(plan.timepoints) * len(plan.channels)
        for level in plan.levels:
            output_bytes += math.ceil(inside * planes * math.prod(level.shape) * item)
            per_file = level.shard_shape or level.chunk_shape
            z, y, x = (ceil_div(n, f) for n, f in zip(level.shape, per_file, strict=True))
            grid = (len(plan.timepoints), len(plan.channels), z, y)
            n_files += math.prod(grid) * x
            n_folders += 2 + sum(accumulate(grid, int.__mul__))
    slabs = max(plan.overlap_bytes if plan.has_overlaps else 0 for plan in facts.plans)
    return Space(output_bytes, slabs, n_files, n_folders)


def estimated_bytes(job: Job) -> int:
    """Return what the output takes as the restored samples compress, with a reserve; the upper bound where none was restored."""
    facts = job.plan.facts
    bound = space_of(facts).output_bytes
    shares = []
    for calibration in job.calibrations.values():
        if calibration.restored is None:
            return bound
        numbers, dtype = calibration.numbers, np.dtype(facts.output_dtype)
        stored, _ = to_stored(calibration.restored.copy(), dtype, numbers.output_scale, facts.config.keep_bits)
        shares.append(compressed_share(stored))
    return min(math.ceil(RESERVE * bound * max(shares)), bound)


def require_space(job: Job, output: Path, *, force: bool) -> list[str]:
    """Refuse a run that its disk cannot take; return warnings.

    Parameters
    ----------
    job : Job
    output : Path
        Its disk takes the overlap slabs too.
    force : bool
        Warn instead.

    Raises
    ------
    StoreError
        If the estimate is more than what is free.
    """
    space = space_of(job.plan.facts)
    parent = next(p for p in (output, *output.parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if output.exists():  # it is about to be replaced
        free += sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    if space.output_bytes + space.scratch_bytes <= free:
        return []
    needed = estimated_bytes(job) + space.scratch_bytes
    text = (
        f"the run takes about {_gib(needed)} on disk, and {_gib(space.output_bytes + space.scratch_bytes)} at most, but "
        f"{str(parent)!r} has {_gib(free)} free"
    )
    if needed > free and not force:
        raise StoreError(
            f"output: {text}; make room, write elsewhere, store less (--roi, --dtype, --keep-bits), or begin all the same with "
            "--force."
        )
    return [f"{text[0].upper()}{text[1:]}."]


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.3g} GiB"
