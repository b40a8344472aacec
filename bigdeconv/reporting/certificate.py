"""The seam certificate: errors measured at seams of a finished run, and the words for them."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bigdeconv.geometry import triple, zyx_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bigdeconv.planning.blocks import Plan
    from bigdeconv.planning.seam_probes import SeamMeasurement


def certificate(plans: Sequence[Plan], tolerance: float, measured: Sequence[SeamMeasurement]) -> dict[str, Any]:
    """Return the certificate of a run as plain values: errors per axis and overall, the worst place, and every probe.

    Parameters
    ----------
    plans : sequence of Plan
        One for each volume.
    tolerance : float
        Seam tolerance.
    measured : sequence of SeamMeasurement
    """
    axes = {name: _pooled([m for m in measured if m.axis == axis]) for axis, name in enumerate("zyx")}
    errors = [values["error"] for values in axes.values() if values]
    brightest = max((m.reference / m.patch.size for m in measured), default=0.0)
    # Relative errors are large in the dark: a patch of less than a thousandth of the brightest amplitude cannot be the worst.
    bright = [m for m in measured if m.reference / m.patch.size > 1e-6 * brightest]
    worst = max(bright, key=lambda m: _relative(m)["error"], default=None)
    return {
        "tolerance": tolerance,
        "predicted": {name: _largest([plan.seam_errors[i] for plan in plans]) for i, name in enumerate("zyx")},
        "measured": axes,
        "error": max(errors, default=None),
        "within_tolerance": max(errors) <= tolerance if errors else None,
        "worst": None if worst is None else _described(worst),
        "probes": [_described(m) for m in measured],
    }


def verdict(found: Mapping[str, Any] | None) -> str:
    """Return one sentence about the error next to seams; empty if none was measured."""
    if found is None or found["error"] is None:
        return ""
    relation = "within" if found["within_tolerance"] else "ABOVE"
    return (
        f"Error next to {len(found['probes'])} seams that were solved again, pooled on the worst axis: {found['error']:.2e}, "
        f"{relation} the tolerance of {found['tolerance']:g}; worst single seam: {found['worst']['error']:.2e}."
    )


def warnings(found: Mapping[str, Any] | None) -> list[str]:
    """Return a sentence if the seam tolerance was not kept."""
    if found is None or found["within_tolerance"] is not False:
        return []
    worst = found["worst"]
    place = f"worst on axis {worst['axis']} at z,y,x {zyx_text(triple(worst['worst_at_zyx']))}"
    return [
        f"SEAMS ABOVE TOLERANCE: the error next to seams is {found['error']:.1e}, the tolerance {found['tolerance']:g}; {place}. "
        "Run again with a larger --halo or a smaller --seam-tolerance."
    ]


def _largest(errors: Sequence[float | None]) -> float | None:
    known = [e for e in errors if e is not None]
    return max(known) if len(known) == len(errors) else None


def _pooled(measured: list[SeamMeasurement]) -> dict[str, float] | None:
    reference = sum(m.reference for m in measured)
    if not reference:
        return None
    difference, rounding = sum(m.difference for m in measured), sum(m.rounding for m in measured)
    return _errors(difference, rounding, reference)


def _relative(m: SeamMeasurement) -> dict[str, float]:
    return _errors(m.difference, m.rounding, m.reference)


def _errors(difference: float, rounding: float, reference: float) -> dict[str, float]:
    """Return relative errors: as stored, the part explained by rounding to the stored type, and the remaining part."""
    values = {"error": max(difference - rounding, 0.0), "as_stored": difference, "rounding": rounding}
    return {name: _short(math.sqrt(energy / reference)) for name, energy in values.items()}


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _described(m: SeamMeasurement) -> dict[str, Any]:
    place = {"volume": m.volume, "axis": "zyx"[m.axis], "timepoint": m.timepoint, "channel": m.channel, "face": m.face}
    boxes = {"patch": asdict(m.patch), "window": asdict(m.window)}
    errors = _relative(m) if m.reference else {"error": None, "as_stored": None, "rounding": None}
    worst = {"worst_difference_photons": float(f"{m.worst_difference:.4g}"), "worst_at_zyx": m.worst_at}
    return {**place, **errors, **worst, **boxes}
