"""What a run did, as plain values and as one HTML page that needs nothing else: settings, blocks, times, warnings, seams."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bigdeconv import probes
from bigdeconv.document import description
from bigdeconv.errors import BigdeconvError
from bigdeconv.geometry import Box, triple
from bigdeconv.storage import omezarr
from bigdeconv.storage.arrays import read_box

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bigdeconv.blocks import Plan
    from bigdeconv.document import Document
    from bigdeconv.storage.omezarr import VolumeInfo

LEAST_PIXELS = 192
"""A picture is made from the coarsest level that has as many in y or x."""
MAX_VOXELS = 2**26
"""Larger levels are not read for a picture."""
PICTURE_PIXELS = 420
"""Of the longest axis, in the sample's own proportions."""
_SECONDS = ("read_seconds", "wait_seconds", "solve_seconds", "blend_seconds", "write_seconds")
_COUNTS = ("not_finite", "fill", "hot", "negative", "clipped")


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Maximum projections of one volume, ready to be shown."""

    title: str
    png: bytes


def values_of(
    document: Document,
    progress: Mapping[str, Any],
    seams: dict[str, Any] | None,
    records: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return all that a report says, as plain values.

    Parameters
    ----------
    progress
        How far the run is, as `pipeline.status` tells it.
    seams
        Its certificate.
    records
        Its journal.
    """
    good = progress["state"] == "complete" and (seams is None or seams["within_tolerance"] is not False)
    described = description(document)
    return {
        "name": Path(progress["output"]).name,
        **{k: v for k, v in progress.items() if k != "output"},
        "good": good,
        "verdict": _verdict(progress, seams),
        "warnings": [*document.warnings, *probes.warnings(seams)],
        "seams": seams,
        "work": _work_done(records),
        "plan": _plan_values(document.plan) | {"blocks": document.n_blocks, "volumes": len(document.volumes)},
        "channels": described["channels"],
        "settings": {k: v for k, v in described["settings"].items() if v is not None},
        "versions": described["versions"] | {"digest": document.digest},
    }


def _verdict(progress: Mapping[str, Any], seams: dict[str, Any] | None) -> str:
    blocks = f"{progress['state']}: {progress['blocks_done']} of {progress['blocks_total']} blocks."
    if seams is None or seams["error"] is None:
        return blocks
    relation = "within" if seams["within_tolerance"] else "ABOVE"
    return f"{blocks} Error next to seams {seams['error']:.1e}, {relation} the tolerance of {seams['tolerance']:g}."


def _work_done(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a journal adds up to: blocks, seconds by kind of work over all workers, voxels left out by reason."""
    done: dict[str, Any] = {"blocks_done": 0, "blocks_skipped": 0, "wall_seconds": 0.0}
    done |= dict.fromkeys(_SECONDS, 0.0)
    counts = dict.fromkeys(_COUNTS, 0)
    for record in records:
        done["wall_seconds"] += record.get("seconds", 0.0)
        if "block" not in record:
            continue
        done["blocks_done"] += 1
        done["blocks_skipped"] += bool(record.get("skipped"))
        for name in _SECONDS:
            done[name] += record.get(name, 0.0)
        for name in _COUNTS:
            counts[name] += record.get(name, 0)
    rounded = {name: round(value, 2) if isinstance(value, float) else value for name, value in done.items()}
    return rounded | {f"voxels_{name}": n for name, n in counts.items() if n}


def _plan_values(plan: Plan) -> dict[str, Any]:
    """Return how a volume was cut, and what that costs."""
    return {
        "blocks": plan.n_blocks,
        "block_shape": plan.core_shape,
        "halo": plan.halo,
        "blend": plan.blend,
        "psf_shape": plan.psf_shape,
        "volume_shape": plan.zyx_shape,
        "output_shape": plan.roi.shape,
        "voxels_read_per_voxel_written": plan.read_amplification,
        "voxels_computed_per_voxel_written": plan.compute_amplification,
        "GiB_per_worker": plan.peak_bytes_per_worker / 2**30,
    }


def pictures(source: VolumeInfo, output: Path, plan: Plan, view_axis: str | None) -> list[Picture]:
    """Return projections of the first channel and time point, before and after; those that cannot be had are left out."""
    roi, timepoint, channel = plan.roi, plan.timepoints[0], plan.channels[0]
    after = _coarse_level(str(output), 0, None)
    if after is None:
        return []
    before = _coarse_level(source.location, source.level, after.zyx_shape)
    found = [_picture("deconvolved", after, Box.of_shape(after.zyx_shape), 0, 0, None)]
    if before is not None:
        ratio = [n / m for n, m in zip(before.zyx_shape, source.zyx_shape, strict=True)]
        start = triple(min(int(a * r), n - 1) for a, r, n in zip(roi.start, ratio, before.zyx_shape, strict=True))
        stop = triple(
            max(a + 1, min(int(b * r), n)) for a, b, r, n in zip(start, roi.stop, ratio, before.zyx_shape, strict=True)
        )
        found.insert(0, _picture("measured", before, Box(start, stop), timepoint, channel, view_axis))
    return [picture for picture in found if picture is not None]


def to_html(values: Mapping[str, Any], images: Iterable[Picture]) -> str:
    """Return one page that shows the values of a report and its pictures."""
    parts = [
        f"<h1>{escape(values['name'])}</h1>",
        f"<p class='{'good' if values['good'] else 'bad'}'>{escape(values['verdict'])}</p>",
        *(f"<p class='note'>{escape(w)}</p>" for w in values["warnings"]),
        "<div class='pictures'>",
        *(_figure(image) for image in images),
        "</div>",
        *_seam_section(values["seams"]),
        "<h2>Work</h2>",
        "<p>Seconds of all blocks together. A block waits, read ahead, until the one before it is solved.</p>",
        _table(values["work"]),
        "<h2>Plan</h2>",
        _table(values["plan"]),
        "<h2>Decided for all blocks</h2>",
        *(f"<h3>Channel {escape(c)}</h3>{_table(v)}" for c, v in values["channels"].items()),
        "<h2>Settings</h2>",
        _table(values["settings"]),
        "<h2>Versions</h2>",
        _table(values["versions"]),
    ]
    body = "\n".join(parts)
    head = f"<meta charset='utf-8'><title>{escape(values['name'])}</title>{_STYLE}"
    return f"<!doctype html>\n<html lang='en'><head>{head}</head>\n<body>{body}</body></html>\n"


_STYLE = """<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .9rem .15rem 0; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; } tr { border-bottom: 1px solid #8883; }
.good, .bad, .note { padding: .4rem .8rem; border-left: .3rem solid #2a8; background: #2a81; }
.bad { border-color: #d33; background: #d331; font-weight: 600; } .note { border-color: #d90; background: #d901; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; } img { image-rendering: pixelated; display: block; }
svg text { font: 13px system-ui, sans-serif; fill: currentColor; }
</style>"""


def _coarse_level(location: str, first: int, like: tuple[int, int, int] | None) -> VolumeInfo | None:
    """Return the coarsest level that is wide enough, or that is at least as large as ``like``; None if it is too large."""
    best: VolumeInfo | None = None
    number = first
    while True:
        try:
            info = omezarr.describe(location, level=number)
        except BigdeconvError:
            break
        enough = max(info.zyx_shape[1:]) >= LEAST_PIXELS if like is None else max(info.zyx_shape[1:]) >= max(like[1:])
        if best is not None and not enough:
            break
        best, number = info, number + 1
    return best if best is not None and Box.of_shape(best.zyx_shape).size <= MAX_VOXELS else None


def _picture(
    title: str, info: VolumeInfo, box: Box, timepoint: int, channel: int, view_axis: str | None
) -> Picture | None:
    views = info.extent(view_axis) if view_axis else 1
    if views * box.size > MAX_VOXELS:
        return None
    try:
        found = read_box(info, box, timepoint=timepoint, channel=channel, view_axis=view_axis)
    except BigdeconvError:
        return None
    volume = np.nan_to_num(found.astype(np.float32))
    volume = volume.sum(axis=0) if view_axis else volume
    above, side = volume.max(axis=0), volume.max(axis=1)
    low, high = np.percentile(above, [1.0, 99.8])
    extents = [n * v for n, v in zip(volume.shape, info.voxel_zyx_um, strict=True)]
    pixel_um = max(extents) / PICTURE_PIXELS
    depth, height, width = (max(round(extent / pixel_um), 1) for extent in extents)
    images = [_grey(above, low, high).resize((width, height), Image.Resampling.BOX)]
    images.append(_grey(side, low, high).resize((width, depth), Image.Resampling.BOX))
    canvas = Image.new("L", (width, height + depth + 4), 128)
    canvas.paste(images[0], (0, 0))
    canvas.paste(images[1], (0, images[0].height + 4))
    buffer = io.BytesIO()
    canvas.save(buffer, "png", optimize=True)
    return Picture(title, buffer.getvalue())


def _grey(values: np.ndarray, low: float, high: float) -> Image.Image:
    shade = np.clip((values - low) / max(high - low, 1e-9), 0, 1) ** 0.7
    return Image.fromarray((255 * shade).astype(np.uint8))


def _figure(image: Picture) -> str:
    data = base64.b64encode(image.png).decode()
    return (
        f"<figure><img src='data:image/png;base64,{data}' alt='{escape(image.title)}, projections'>"
        f"<figcaption>{escape(image.title)}: brightest along z, and below it along y</figcaption></figure>"
    )


def _seam_section(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["<h2>Seams</h2><p>None was solved again.</p>"]
    names = ("axis", "time", "channel", "face", "error", "as stored", "rounding alone")
    head = f"<tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>"
    rows = [
        f"<tr><td>{p['axis']}</td><td>{p['timepoint']}</td><td>{p['channel']}</td><td>{p['face']}</td>"
        f"<td>{_number(p['error'])}</td><td>{_number(p['as_stored'])}</td><td>{_number(p['rounding'])}</td></tr>"
        for p in found["probes"]
    ]
    return [
        "<h2>Seams</h2>",
        f"<p>{len(rows)} places on seams were solved again in a window without a seam there. The error is the L2 norm of the "
        "difference over that of the solution, less what rounding to the stored type explains.</p>",
        _bars(found),
        f"<table>{head}{''.join(rows)}</table>",
    ]


def _bars(found: Mapping[str, Any]) -> str:
    """Draw predicted and measured errors per axis on a logarithmic scale, and the tolerance as a line."""
    left, width, low, step = 170, 420, found["tolerance"] * 1e-3, 22

    def x(value: float) -> float:
        decades = np.log10(max(value, low) / low) / np.log10(1e5)
        return left + width * float(min(decades, 1.0))

    rows = [
        (f"{axis} {kind}", value, colour)
        for axis in "zyx"
        for kind, value, colour in (
            ("predicted", found["predicted"][axis], "#89a"),
            ("measured", (found["measured"][axis] or {}).get("error"), "#27b"),
        )
        if value is not None and found["measured"][axis]
    ]
    bars = [
        f"<text x='0' y='{step * i + 15}'>{name}</text><text x='95' y='{step * i + 15}'>{value:.1e}</text>"
        f"<rect x='{left}' y='{step * i + 3}' width='{max(x(value) - left, 1):.0f}' height='15' fill='{colour}'/>"
        for i, (name, value, colour) in enumerate(rows)
    ]
    height, limit = step * len(rows), x(found["tolerance"])
    line = f"<line x1='{limit:.0f}' x2='{limit:.0f}' y1='0' y2='{height}' stroke='#d33' stroke-width='2'/>"
    label = f"<text x='{limit:.0f}' y='{height + 16}' text-anchor='middle'>tolerance {found['tolerance']:g}</text>"
    return f"<svg width='{left + width}' height='{height + step}' role='img'>{''.join(bars)}{line}{label}</svg>"


def _number(value: float | None) -> str:
    return "dark" if value is None else f"{value:.1e}"


def _table(values: Mapping[str, Any]) -> str:
    rows = (
        f"<tr><th>{escape(name.replace('_', ' '))}</th><td>{escape(_text(v))}</td></tr>" for name, v in values.items()
    )
    return f"<table>{''.join(rows)}</table>"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple) and all(isinstance(v, int | float | str) for v in value):
        return ", ".join(_text(v) for v in value)
    return "none" if value is None else json.dumps(value)
