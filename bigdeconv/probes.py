"""Probes of a finished run: which seams are solved again without a seam there, and what the certificate says of them.

One axis of a probe; the patch lies on a face between two cores, the window has no seam and more halo than a block::

    stored    ...-- core --|-- core --...
    patch               |--|--|
    window    |--- margin -|--|- margin ---|
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any

from bigdeconv.geometry import Box, Triple, triple
from bigdeconv.seams import strip_width

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bigdeconv.planner import Plan

PATCH = 16
"""Longest edge of a patch along its face."""


@dataclass(frozen=True, slots=True)
class SeamProbe:
    """A face between two cores; all boxes count from the origin of the input level."""

    axis: int
    timepoint: int
    channel: int
    face: int
    """First voxel above it."""
    strip: Box
    """What counts as next to it, along one core."""

    def patches(self) -> Iterable[Box]:
        """Yield the parts of the strip of which one is solved again."""
        edges = [n if a == self.axis else min(n, PATCH) for a, n in enumerate(self.strip.shape)]
        counts = [n // e for n, e in zip(self.strip.shape, edges, strict=True)]
        for number in range(math.prod(counts)):
            rest, x = divmod(number, counts[2])
            z, y = divmod(rest, counts[1])
            start = triple(s + p * e for s, p, e in zip(self.strip.start, (z, y, x), edges, strict=True))
            yield Box(start, triple(s + e for s, e in zip(start, edges, strict=True)))


@dataclass(frozen=True, slots=True)
class Measured:
    """What one probe found; energies are sums of squares over its patch, in photons²."""

    axis: int
    timepoint: int
    channel: int
    face: int
    patch: Box
    window: Box
    difference: float
    """Of what is stored and what the window gives."""
    rounding: float
    """Of what the window gives and what would be stored of it."""
    reference: float
    """Of what the window gives; 0 where it is dark or has no data."""
    worst_difference: float
    """Photons."""
    worst_at: Triple
    """Where it is."""


def choose(plan: Plan, count: int, seed: str) -> list[SeamProbe]:
    """Return up to ``count`` different seams at random, the axes in turn."""
    rng = random.Random(seed)
    seams = [len(plan.timepoints) * len(plan.channels) * math.prod(_grid_of_seams(plan, axis)) for axis in range(3)]
    orders = [rng.sample(range(n), min(count, n)) for n in seams]
    turns = ((axis, number) for turn in zip_longest(*orders) for axis, number in enumerate(turn) if number is not None)
    return [_probe(plan, axis, number) for axis, number in islice(turns, count)]


def window_of(plan: Plan, patch: Box) -> Box:
    """Return the window in which a patch is solved again: as large as a block's at most, whole on axes without seams."""
    # A block's window has at least this room around a patch on its seam.
    rooms = [max((read - n) // 2, h) for n, read, h in zip(patch.shape, plan.read_shape, plan.halo, strict=True)]
    margins = [
        size if count == 1 and read == size else min(max(margin, h), room)
        for size, count, read, margin, h, room in zip(
            plan.zyx_shape, plan.grid.counts, plan.read_shape, plan.probe_margin, plan.halo, rooms, strict=True
        )
    ]
    return patch.grow(triple(margins)).intersect(Box.of_shape(plan.zyx_shape))


def certificate(plan: Plan, tolerance: float, measured: Sequence[Measured]) -> dict[str, Any]:
    """Return what the probes say of a run, as plain values: per axis and overall, the worst place, and every probe."""
    axes = {name: _pooled([m for m in measured if m.axis == axis]) for axis, name in enumerate("zyx")}
    errors = [values["error"] for values in axes.values() if values]
    brightest = max((m.reference / m.patch.size for m in measured), default=0.0)
    # In the dark anything is large beside nothing: what is a thousandth as bright as the brightest does not count as worst.
    telling = [m for m in measured if m.reference / m.patch.size > 1e-6 * brightest]
    worst = max(telling, key=lambda m: _relative(m)["error"], default=None)
    return {
        "tolerance": tolerance,
        "predicted": dict(zip("zyx", plan.seam_errors, strict=True)),
        "measured": axes,
        "error": max(errors, default=None),
        "within_tolerance": max(errors) <= tolerance if errors else None,
        "worst": None if worst is None else _described(worst),
        "probes": [_described(m) for m in measured],
    }


def _grid_of_seams(plan: Plan, axis: int) -> Triple:
    """Return how many cores on each axis have a neighbour above them on one."""
    return triple(n - int(a == axis) for a, n in enumerate(plan.grid.counts))


def _probe(plan: Plan, axis: int, number: int) -> SeamProbe:
    """Return one of the seams of an axis, numbered over time points, channels and cores."""
    nz, ny, nx = _grid_of_seams(plan, axis)
    rest, x = divmod(number, nx)
    rest, y = divmod(rest, ny)
    volume, z = divmod(rest, nz)
    timepoint, channel = divmod(volume, len(plan.channels))
    core = plan.grid.core((z, y, x)).shift(plan.roi.start)
    face, width = core.stop[axis], strip_width(plan.blend[axis])
    start, stop = list(core.start), list(core.stop)
    start[axis] = max(face - width, plan.roi.start[axis])
    stop[axis] = min(face + width, plan.roi.stop[axis])
    return SeamProbe(axis, plan.timepoints[timepoint], plan.channels[channel], face, Box(triple(start), triple(stop)))


def _pooled(measured: list[Measured]) -> dict[str, float] | None:
    reference = sum(m.reference for m in measured)
    if not reference:
        return None
    difference, rounding = sum(m.difference for m in measured), sum(m.rounding for m in measured)
    return _errors(difference, rounding, reference)


def _relative(m: Measured) -> dict[str, float]:
    return _errors(m.difference, m.rounding, m.reference)


def _errors(difference: float, rounding: float, reference: float) -> dict[str, float]:
    """Return relative errors: as stored, what rounding to the stored type explains of it, and what is left for the seam."""
    values = {"error": max(difference - rounding, 0.0), "as_stored": difference, "rounding": rounding}
    return {name: float(f"{math.sqrt(energy / reference):.3g}") for name, energy in values.items()}


def _described(m: Measured) -> dict[str, Any]:
    place = {"axis": "zyx"[m.axis], "timepoint": m.timepoint, "channel": m.channel, "face": m.face}
    boxes = {"patch": asdict(m.patch), "window": asdict(m.window)}
    errors = _relative(m) if m.reference else {"error": None, "as_stored": None, "rounding": None}
    worst = {"worst_difference_photons": float(f"{m.worst_difference:.4g}"), "worst_at_zyx": m.worst_at}
    return {**place, **errors, **worst, **boxes}
