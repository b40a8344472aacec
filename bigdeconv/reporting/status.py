"""State of a run while it goes on, and its summary when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bigdeconv.errors import StoreError
from bigdeconv.jobs.integrity import absent_by_volume
from bigdeconv.storage.absent import n_files, name_of

if TYPE_CHECKING:
    from bigdeconv.engine.schedule import Progress
    from bigdeconv.jobs.open_run import OpenRun

MAX_ABSENT_SHARE = 0.5
"""Share of the files of an input up to which absent ones are odd."""
MAX_NEGATIVE_SHARE = 0.01
"""Share of voxels below the camera offset above which a warning is given."""


@dataclass(slots=True)
class RunSummary:
    """Result of a run."""

    output: str
    blocks_total: int
    blocks_done: int
    blocks_skipped: int
    blocks_failed: int
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """Voxels that were masked or clipped, by reason."""
    seams: dict[str, Any] | None = None
    """Seam certificate, see `bigdeconv.reporting.certificate`; None without probes."""

    @property
    def complete(self) -> bool:
        """Whether every block and level is written and the output is valid."""
        return self.blocks_done == self.blocks_total and not self.errors


def _absent_warnings(run: OpenRun) -> list[str]:
    """Say which files of the input were read as fill, where most are there: a sparse volume lacks most of them."""
    found = []
    for v, missing in absent_by_volume(run).items():
        info = run.record.facts.volumes[v]
        total = n_files(info)
        if missing <= MAX_ABSENT_SHARE * total:
            number = int(next(run.journal.absent.batches(v))[0])
            try:
                first = name_of(info, number)
            except StoreError:  # an input that was archived
                first = f"number {number}"
            found.append(
                f"{missing} of {total} files of {info.location} are absent, and were read as fill, as zarr has it (the first is "
                f"{first}). If that is not meant, restore them and continue with `bigdeconv repair`."
            )
    return found


INPUT_CHANGED = (
    "The input has changed since the run began: its numbers rest on other voxels, and blocks of two kinds may meet. Compute "
    "everything again with --overwrite."
)


def summarise(run: OpenRun, progress: Progress | None = None, *, input_changed: bool = False) -> RunSummary:
    """Return the summary of a run, with warnings that follow from its voxel counts.

    Parameters
    ----------
    run : OpenRun
    progress : Progress, optional
        Of the driver that has just ended; without it the journal alone counts.
    input_changed : bool
        Whether this driver has found the input changed.
    """
    voxels, warnings = run.journal.voxels, list(run.record.warnings)
    counts = {name: n for name, n in voxels.items() if n and name != "voxels"}
    if counts.get("clipped"):
        warnings.append(
            f"{counts['clipped']} voxels were brighter than uint16 can store and are clipped; lower --output-scale."
        )
    if full := run.journal.blocks_out_of_memory:
        warnings.append(
            f"{full} blocks found the memory of a GPU full, and were solved again when it had been released; end what else uses "
            "the GPUs, or take a smaller --block-shape."
        )
    warnings += [INPUT_CHANGED] if input_changed or run.journal.input_changed else []
    warnings += _absent_warnings(run)
    share = counts.get("negative", 0) / max(voxels["voxels"], 1)
    if share > MAX_NEGATIVE_SHARE and not any("camera offset" in w for w in warnings):
        warnings.append(f"{100 * share:.1f} % of the voxels lie below the camera offset; check --camera-offset.")
    return RunSummary(
        output=str(run.output),
        blocks_total=run.journal.n_blocks,
        blocks_done=run.journal.blocks_finished,
        blocks_skipped=run.journal.blocks_skipped,
        blocks_failed=progress.blocks_failed if progress else 0,
        warnings=warnings,
        errors=list(progress.errors) if progress else [],
        counts=counts,
    )
