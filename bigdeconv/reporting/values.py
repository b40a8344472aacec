"""Contents of a report as plain values."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from bigdeconv.jobs.integrity import absent_by_volume
from bigdeconv.jobs.output_metadata import attributes_of
from bigdeconv.jobs.state import status_of
from bigdeconv.reporting import certificate
from bigdeconv.reporting.status import INPUT_CHANGED
from bigdeconv.storage.absent import n_files, region_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bigdeconv.jobs.facts import JobFacts
    from bigdeconv.jobs.open_run import OpenRun
    from bigdeconv.storage.journal_summary import JournalSummary


MAX_PLACES = 20
"""Places of absent files that a report names."""


def report_values(run: OpenRun, seams: dict[str, Any] | None, errors: Sequence[str] = ()) -> dict[str, Any]:
    """Return the contents of a report.

    Parameters
    ----------
    run : OpenRun
    seams : dict or None
        Seam certificate of the run.
    errors : sequence of str
        Failures of probes.
    """
    status, attributes = status_of(run.journal, is_running=run.is_running), attributes_of(run.record)
    changed = [INPUT_CHANGED] if run.journal.input_changed else []
    good = status["state"] == "complete" and not changed and (seams is None or seams["within_tolerance"] is not False)
    blocks = f"{status['state']}: {status['blocks_done']} of {status['blocks_total']} blocks."
    return {
        "name": run.output.name,
        **status,
        "good": good,
        "verdict": f"{blocks} {certificate.verdict(seams)}".rstrip(),
        "warnings": [*changed, *run.record.warnings, *errors, *certificate.warnings(seams)],
        "seams": seams,
        "work": _work_values(run.journal),
        "absent_input_files": sum(absent_by_volume(run).values()),
        "absent_input": _absent_values(run),
        "plan": _plan_values(run.record.facts),
        "channels": {number: _channel_values(values) for number, values in attributes["channels"].items()},
        "settings": {k: v for k, v in attributes["settings"].items() if v is not None},
        "versions": attributes["versions"] | {"digest": run.record.digest},
    }


def _absent_values(run: OpenRun) -> list[dict[str, Any]]:
    """Return, for each volume that lacks files, how many of them were read as fill, and where the first of them lie."""
    found = []
    for v, missing in absent_by_volume(run).items():
        info = run.record.facts.volumes[v]
        numbers = islice((int(n) for batch in run.journal.absent.batches(v) for n in batch), MAX_PLACES)
        regions = (region_of(info, number) for number in numbers)
        places = [", ".join(f"{axis} {r.start}:{r.stop}" for axis, r in region.items()) for region in regions]
        total = n_files(info)
        found.append(
            {"input": info.location, "files": missing, "of": total, "share": missing / total, "places": places}
        )
    return found


def _channel_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a channel, its camera and what the data said as one table."""
    apart = ("camera", "findings")
    return {**{k: v for k, v in values.items() if k not in apart}, **values["camera"], **values["findings"]}


def _work_values(journal: JournalSummary) -> dict[str, Any]:
    """Return blocks, seconds by kind of work over all workers, and masked or clipped voxels by reason."""
    return {
        "blocks_done": journal.blocks_finished - journal.blocks_outside,
        "blocks_skipped": journal.blocks_skipped - journal.blocks_outside,
        "wall_seconds": round(journal.wall_seconds, 2),
        **{name: round(seconds, 2) for name, seconds in journal.seconds.items()},
        **{f"voxels_{name}": n for name, n in journal.voxels.items() if n and name != "voxels"},
    }


def _plan_values(facts: JobFacts) -> dict[str, Any]:
    """Return the cut of the largest plan and its cost."""
    plan = facts.largest_plan
    return {
        "blocks": facts.n_blocks,
        "block_shape": plan.core_shape,
        "halo": plan.halo,
        "blend": plan.blend,
        "psf_shape": plan.psf_shape,
        "volume_shape": plan.zyx_shape,
        "output_shape": plan.roi.shape,
        "voxels_read_per_voxel_written": plan.read_amplification,
        "voxels_computed_per_voxel_written": plan.compute_amplification,
        "GiB_per_worker": plan.peak_bytes_per_worker / 2**30,
        "volumes": len(facts.volumes),
    }
