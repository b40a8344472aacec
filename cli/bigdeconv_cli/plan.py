"""``bigdeconv plan``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigdeconv_cli.exits import reported, usage_error
from bigdeconv_cli.options import job_options
from bigdeconv_cli.settings import ConfigFile, Json, resolved

if TYPE_CHECKING:
    from bigdeconv.config import JobConfig

PlanInput = Annotated[
    str | None,
    typer.Argument(help="Input as for run, or --shape instead of it.", metavar="INPUT", show_default=False),
]
PlanShape = Annotated[
    str | None,
    typer.Option(
        "--shape",
        metavar="T,C,Z,Y,X",
        help="Extent of a future volume, of type --dtype (default uint16) and voxel size --voxel-um (default 1,1,1). Without "
        "--psf, a PSF box of 33,33,33 is assumed.",
    ),
]


@job_options
def plan(
    settings: dict[str, Any],
    input: PlanInput = None,
    shape: PlanShape = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Show how a volume would be cut, and what that costs in memory, time and seams; nothing is deconvolved."""
    if (input is None) == (shape is None):
        usage_error("INPUT, --shape: give one of them, an image or the extent of a future one.", as_json=as_json)
    tczyx_shape = None if shape is None else _parse_shape(shape, as_json=as_json)
    job = resolved(input or "unread.zarr", "unwritten.zarr", settings, config, as_json=as_json)
    print_plan(job, tczyx_shape, as_json=as_json)


def print_plan(job: JobConfig, tczyx_shape: tuple[int, ...] | None = None, *, as_json: bool) -> None:
    """Plan a job and print the plan."""
    from bigdeconv import pipeline

    with reported(as_json=as_json):
        values = pipeline.plan_values(pipeline.plan(job, tczyx_shape))
    print(json.dumps(values) if as_json else _plan_text(values))


def _parse_shape(text: str, *, as_json: bool) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 5 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        usage_error(f"shape: got {text!r}; expected five positive extents, T,C,Z,Y,X.", as_json=as_json)
    return tuple(int(part) for part in parts)


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
        ("driver", f"{size(s['peak_bytes_driver'])} while it calibrates"),
        (
            "output",
            f"at most {size(s['output_bytes'])} before compression, {s['output_files']} files and {s['output_folders']} folders",
        ),
        ("scratch", f"{size(s['rim_bytes'])} of overlap slabs at most"),
        (
            "time",
            f"about {_duration(s['estimated_seconds'])} for blocks and probes of seams, "
            f"{s['cpu_seconds_per_block']:.3g} s of {unit} per block (measured here)",
        ),
    ]
    lines = [f"{name:<8} {text}" for name, text in rows]
    return "\n".join(lines + [f"warning: {w}" for w in s["warnings"]])
