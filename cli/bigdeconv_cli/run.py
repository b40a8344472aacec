"""``bigdeconv run`` and ``resume``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigdeconv_cli.exits import Exit, reported, usage_error
from bigdeconv_cli.options import job_options
from bigdeconv_cli.plan import print_plan
from bigdeconv_cli.progress import Reporter
from bigdeconv_cli.settings import ConfigFile, Input, Json, Output, resolved

if TYPE_CHECKING:
    from bigdeconv.pipeline import RunSummary

MAX_ERRORS = 10
"""Errors that are printed."""


@job_options
def run(
    input: Input,
    output: Output,
    settings: dict[str, Any],
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished output of the same job.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Begin though the disk is likely to fill up.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Deconvolve an OME-Zarr volume block by block and write multiscale OME-Zarr."""
    if resume and overwrite:
        usage_error("--resume, --overwrite: give one of them, not both.", as_json=as_json)
    job = resolved(input, output, settings, config, as_json=as_json)
    if dry_run:
        print_plan(job, as_json=as_json)
        return
    from bigdeconv import pipeline

    with reported(as_json=as_json, hint=lambda: _resume_hint(output)), Reporter(quiet=as_json) as reporter:
        summary = pipeline.run(job, resume=resume, overwrite=overwrite, force=force, events=reporter.events)
        reporter.finished(summary)
    _finish(summary, as_json=as_json)


Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="ADDRESS|FILE.json", help="Running Dask cluster: address or scheduler file."),
]


def resume(
    output: Output,
    scheduler: Scheduler = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the contents of all files with what was written.")
    ] = False,
    mend: Annotated[
        bool, typer.Option("--repair", help="Make damaged or missing parts again, as `bigdeconv repair` does.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Continue an interrupted run from its stored plan; finished blocks are not computed again."""
    if mend:
        repair(output, scheduler, as_json)
        return
    from bigdeconv import pipeline

    with reported(as_json=as_json, hint=lambda: _resume_hint(output)), Reporter(quiet=as_json) as reporter:
        summary = pipeline.resume(output, scheduler=scheduler, verify=verify, events=reporter.events)
        reporter.finished(summary)
    _finish(summary, as_json=as_json)


def repair(output: Output, scheduler: Scheduler = None, as_json: Json = False) -> None:
    """Make damaged or missing parts of an output again, finished or not; everything else is kept."""
    from bigdeconv import pipeline

    with reported(as_json=as_json, hint=lambda: _resume_hint(output)), Reporter(quiet=as_json) as reporter:
        summary = pipeline.repair(output, scheduler=scheduler, events=reporter.events)
        reporter.finished(summary)
    _finish(summary, as_json=as_json)


def _resume_hint(output: str) -> str:
    from bigdeconv.pipeline import ledger_path

    if not ledger_path(output).exists():
        return "Nothing had been written yet."
    return f"Finished blocks are kept; continue with `bigdeconv resume {output}`."


def _finish(summary: RunSummary, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**asdict(summary), "complete": summary.complete}))
    else:
        for error in summary.errors[:MAX_ERRORS]:
            print(f"bigdeconv: {error}", file=sys.stderr)
        if (n_more := len(summary.errors) - MAX_ERRORS) > 0:
            print(f"bigdeconv: and {n_more} more; `bigdeconv report {summary.output}` lists them.", file=sys.stderr)
        print(_closing(summary))
    if not summary.complete:
        raise typer.Exit(Exit.INCOMPLETE)


def _closing(summary: RunSummary) -> str:
    skipped = f" ({summary.blocks_skipped} empty)" if summary.blocks_skipped else ""
    blocks = f"{summary.blocks_done} of {summary.blocks_total} blocks{skipped}"
    if not summary.complete and summary.blocks_done == summary.blocks_total:
        return f"{blocks} done, but the output is not whole; go on with `bigdeconv repair {summary.output}`."
    if not summary.complete:
        return f"{blocks} done, {summary.blocks_failed} failed. {_resume_hint(summary.output)}"
    from bigdeconv.pipeline import seam_verdict

    counts = "".join(f", {n} voxels {name.replace('_', ' ')}" for name, n in summary.counts.items())
    seams = seam_verdict(summary.seams)
    lines = [f"{blocks} in {summary.seconds:.0f} s{counts}.", *([seams] if seams else []), f"Wrote {summary.output}"]
    return "\n".join(lines)
