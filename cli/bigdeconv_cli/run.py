"""``bigdeconv run``, ``plan`` and ``resume``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from bigdeconv_cli.exits import Exit, reported
from bigdeconv_cli.options import job_options
from bigdeconv_cli.progress import Reporter

if TYPE_CHECKING:
    from bigdeconv.config import JobConfig
    from bigdeconv.pipeline import Events
    from bigdeconv.summary import Summary

Input = Annotated[
    str,
    typer.Argument(
        help="OME-Zarr image or plate: a path or a URL; or several images: a quoted glob, or a .txt file with one per line.",
        metavar="INPUT",
        show_default=False,
    ),
]
Output = Annotated[
    str,
    typer.Argument(
        help="What is made: an OME-Zarr image, a plate, or a folder with an image of each one's name.",
        metavar="OUTPUT",
        show_default=False,
    ),
]
PlanInput = Annotated[
    str | None,
    typer.Argument(help="As of run; or --shape instead of it.", metavar="INPUT", show_default=False),
]
PlanShape = Annotated[
    str | None,
    typer.Option(
        "--shape",
        metavar="T,C,Z,Y,X",
        help="Plan for a volume of this extent that does not exist yet: --dtype (default uint16) is its type, --voxel-um its "
        "voxel size (default 1,1,1), and without --psf a PSF box of 33,33,33 is taken.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML file with settings. Flags go before environment (BIGDECONV_*) before file.",
    ),
]


@job_options
def run(
    input: Input,
    output: Output,
    settings: dict[str, Any],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished output of the same job.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan, print the plan, compute nothing.")] = False,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Deconvolve an OME-Zarr volume block by block and write multiscale OME-Zarr."""
    if resume and overwrite:
        usage_error("--resume, --overwrite: give one of them, not both.", as_json=as_json)
    job = _resolve(input, output, settings, config, as_json=as_json)
    if dry_run:
        _print_plan(job, as_json=as_json)
        return
    from bigdeconv import pipeline

    with reported(as_json=as_json, hint=lambda: _resume_hint(output)), Reporter(quiet=as_json) as reporter:
        summary = pipeline.run(job, resume=resume, overwrite=overwrite, events=events_of(reporter))
        reporter.finished(summary)
    _finish(summary, as_json=as_json)


@job_options
def plan(
    settings: dict[str, Any],
    input: PlanInput = None,
    shape: PlanShape = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Show how a volume would be cut, what each worker needs, what the halo costs and keeps; deconvolves nothing."""
    if (input is None) == (shape is None):
        usage_error("INPUT, --shape: give one of them, an image or the extent of one to come.", as_json=as_json)
    tczyx_shape = None if shape is None else _parse_shape(shape, as_json=as_json)
    job = _resolve(input or "unread.zarr", "unwritten.zarr", settings, config, as_json=as_json)
    _print_plan(job, tczyx_shape, as_json=as_json)


def resume(
    output: Output,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", metavar="ADDRESS|FILE.json", help="A running Dask cluster.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Go on with an interrupted run from its stored plan; what is finished is not computed again."""
    from bigdeconv import pipeline

    with reported(as_json=as_json, hint=lambda: _resume_hint(output)), Reporter(quiet=as_json) as reporter:
        summary = pipeline.resume(output, scheduler=scheduler, events=events_of(reporter))
        reporter.finished(summary)
    _finish(summary, as_json=as_json)


def _resolve(
    source: str, output: str, settings: dict[str, Any], config_file: str | None, *, as_json: bool
) -> JobConfig:
    """Merge the settings; what is wrong in them is a usage error."""
    from bigdeconv.config import resolve
    from bigdeconv.errors import InvalidInputError

    try:
        return resolve({**settings, "input": source, "output": output}, config_file)
    except InvalidInputError as error:
        usage_error(str(error), as_json=as_json)


def _parse_shape(text: str, *, as_json: bool) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 5 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        usage_error(f"shape: got {text!r}; give five positive extents, T,C,Z,Y,X.", as_json=as_json)
    return tuple(int(part) for part in parts)


def usage_error(message: str, *, as_json: bool) -> NoReturn:
    """Print what is wrong with the arguments and exit."""
    print(
        json.dumps({"error": message, "exit_code": int(Exit.USAGE)}) if as_json else f"bigdeconv: {message}",
        file=_err(as_json),
    )
    raise typer.Exit(Exit.USAGE)


def _err(as_json: bool) -> Any:
    import sys

    return sys.stdout if as_json else sys.stderr


def events_of(reporter: Reporter) -> Events:
    """Let a reporter hear what happens in a run."""
    from bigdeconv.pipeline import Events

    return Events(
        planned=reporter.planned,
        warned=reporter.warned,
        connected=reporter.connected,
        progressed=reporter.progressed,
        phase=reporter.phase,
    )


def _resume_hint(output: str) -> str:
    from bigdeconv.storage.ledger import ledger_path

    if not ledger_path(output).exists():
        return "Nothing had been written yet."
    return f"What is finished is kept: go on with `bigdeconv resume {output}`."


def _finish(summary: Summary, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**asdict(summary), "complete": summary.complete}))
    else:
        for error in summary.errors:
            print(f"bigdeconv: {error}", file=_err(as_json))
        print(_closing(summary))
    if not summary.complete:
        raise typer.Exit(Exit.INCOMPLETE)


def _closing(summary: Summary) -> str:
    skipped = f" ({summary.blocks_skipped} empty)" if summary.blocks_skipped else ""
    blocks = f"{summary.blocks_done} of {summary.blocks_total} blocks{skipped}"
    if not summary.complete:
        return f"{blocks} done, {summary.blocks_failed} failed. {_resume_hint(summary.output)}"
    counts = "".join(f", {n} voxels {name.replace('_', ' ')}" for name, n in summary.counts.items())
    return f"{blocks} in {summary.seconds:.0f} s{counts}.\n{_seam_verdict(summary)}Wrote {summary.output}"


def _seam_verdict(summary: Summary) -> str:
    found = summary.seams
    if found is None or found["error"] is None:
        return ""
    verdict = "within" if found["within_tolerance"] else "ABOVE"
    return (
        f"Error next to {len(found['probes'])} seams that were solved again: {found['error']:.1e}, {verdict} the tolerance of "
        f"{found['tolerance']:g}.\n"
    )


def _print_plan(job: JobConfig, tczyx_shape: tuple[int, ...] | None = None, *, as_json: bool) -> None:
    from bigdeconv import pipeline
    from bigdeconv.job import plan_summary

    with reported(as_json=as_json):
        summary = plan_summary(pipeline.plan(job, tczyx_shape))
    if as_json:
        print(json.dumps(summary))
        return
    print(_plan_text(summary))


def _duration(seconds: float) -> str:
    for unit, length in (("years", 31_557_600), ("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _seam_text(s: dict[str, Any]) -> str:
    if s["predicted_seam_error"] is None:
        return "not calibrated"
    axes = ", ".join(
        f"{axis} {error:.1e}" for axis, error in zip("zyx", s["predicted_seam_errors"], strict=True) if error
    )
    if not axes:
        return "none"
    return f"relative error expected next to them {axes}, tolerance {s['seam_tolerance']:g}"


def _plan_text(s: dict[str, Any]) -> str:
    def zyx(key: str) -> str:
        return ",".join(str(n) for n in s[key]) if s[key] else "none"

    def size(n: float) -> str:
        return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB"

    unit = "a GPU" if s["device_memory"] else "CPU"
    skipped = f" ({s['blocks_skipped']} outside the mask)" if s["blocks_skipped"] else ""
    several = f"{s['volumes']} volumes such as " if s["volumes"] > 1 else ""
    rows = [
        (
            "volume",
            f"{several}{zyx('volume_shape')}, {s['timepoints']} time points, {s['channels']} channels, {s['views']} views",
        ),
        ("method", f"{s['method']}, {s['iterations']} iterations, PSF box {zyx('psf_shape')}"),
        (
            "blocks",
            f"{s['n_blocks']}{skipped} of {zyx('block_shape')}, halo {zyx('halo')}, blend {zyx('blend')}, FFT {zyx('fft_shape')}",
        ),
        ("chunks", f"{zyx('chunk_shape')}, shards {zyx('shard_shape')}, {len(s['levels'])} levels"),
        (
            "cost",
            f"{s['read_amplification']:.2f} voxels read, {s['decode_amplification']:.2f} decoded and "
            f"{s['compute_amplification']:.2f} computed per voxel written",
        ),
        ("seams", _seam_text(s)),
        ("workers", f"{s['workers']} of {s['threads_per_worker']} threads, {size(s['peak_bytes_per_worker'])} each"),
        *(("", f"  {size(n):>10}  {name}") for name, n in s["memory"].items()),
        *(("", f"  {size(n):>10}  on the GPU: {name}") for name, n in s["device_memory"].items()),
        ("scratch", f"{size(s['rim_bytes'])} of rims at most"),
        (
            "time",
            f"about {_duration(s['estimated_seconds'])} for blocks and probes of seams, "
            f"{s['cpu_seconds_per_block']:.3g} s of {unit} per block (a trial here)",
        ),
    ]
    lines = [f"{name:<8} {text}" for name, text in rows]
    return "\n".join(lines + [f"warning: {w}" for w in s["warnings"]])
