"""Probes of a finished run: which seams are solved again without a seam there, and what the certificate says of them.

One axis of a probe; the patch lies on a face between two cores, the window has no seam and more halo than a block::

    stored    ...-- core --|-- core --...
    patch               |--|--|
    window    |--- margin -|--|- margin ---|
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, islice, product, zip_longest
from typing import TYPE_CHECKING, Any

from bigdeconv.geometry import Box, Triple, triple, zyx_text
from bigdeconv.seams import strip_width

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bigdeconv.blocks import Plan

TRIES = 50
"""How many seams are looked at for each that is probed, where a mask leaves out blocks."""
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
    volume: int = 0
    """Which volume of the job it is in."""

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
    volume: int = 0


def choose(plans: Sequence[Plan], count: int, seed: str, outside: bytes | None = None) -> list[SeamProbe]:
    """Return up to ``count`` different seams at random, volumes and axes in turn.

    Parameters
    ----------
    plans
        One for each volume.
    outside
        1 where a block lies outside the mask, by its index through all volumes; next to such a block nothing is probed.
    """
    rng = random.Random(seed)
    starts = list(accumulate((plan.n_blocks for plan in plans), initial=0))
    volumes = rng.sample(range(len(plans)), min(count, len(plans)))
    orders = [
        _order(plans[v], count, rng, None if outside is None else outside[starts[v] : starts[v + 1]]) for v in volumes
    ]
    turns = (
        (v, seam) for turn in zip_longest(*orders) for v, seam in zip(volumes, turn, strict=True) if seam is not None
    )
    return [replace(seam, volume=v) for v, seam in islice(turns, count)]


def _order(plan: Plan, count: int, rng: random.Random, outside: bytes | None) -> Iterator[SeamProbe]:
    """Yield some seams of one volume at random, the axes in turn."""
    seams = _seams(plan)
    tries = count if outside is None else TRIES * count
    orders = [rng.sample(range(n), min(tries, n)) for n in seams]
    for turn in zip_longest(*orders):
        for axis, number in enumerate(turn):
            if number is not None and (outside is None or _all_computed(plan, axis, number, outside)):
                yield _probe(plan, axis, number)


def available(plans: Sequence[Plan], count: int) -> int:
    """Return how many of the probes that are wanted there are seams for; each costs a block at most."""
    return min(count, sum(sum(_seams(plan)) for plan in plans))


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


def certificate(plans: Sequence[Plan], tolerance: float, measured: Sequence[Measured]) -> dict[str, Any]:
    """Return what the probes say of a run, as plain values: per axis and overall, the worst place, and every probe."""
    axes = {name: _pooled([m for m in measured if m.axis == axis]) for axis, name in enumerate("zyx")}
    errors = [values["error"] for values in axes.values() if values]
    brightest = max((m.reference / m.patch.size for m in measured), default=0.0)
    # In the dark anything is large beside nothing: what is a thousandth as bright as the brightest does not count as worst.
    telling = [m for m in measured if m.reference / m.patch.size > 1e-6 * brightest]
    worst = max(telling, key=lambda m: _relative(m)["error"], default=None)
    return {
        "tolerance": tolerance,
        "predicted": {name: _largest([plan.seam_errors[i] for plan in plans]) for i, name in enumerate("zyx")},
        "measured": axes,
        "error": max(errors, default=None),
        "within_tolerance": max(errors) <= tolerance if errors else None,
        "worst": None if worst is None else _described(worst),
        "probes": [_described(m) for m in measured],
    }


def warnings(found: dict[str, Any] | None) -> list[str]:
    """Return a sentence if a certificate says that the seam tolerance was not kept."""
    if found is None or found["within_tolerance"] is not False:
        return []
    worst = found["worst"]
    place = f"worst on axis {worst['axis']} at z,y,x {zyx_text(triple(worst['worst_at_zyx']))}"
    return [
        f"SEAMS ABOVE TOLERANCE: the error next to them is {found['error']:.1e}, the tolerance {found['tolerance']:g}; {place}. "
        "Run again with a larger --halo or a smaller --seam-tolerance."
    ]


def _largest(errors: Sequence[float | None]) -> float | None:
    known = [e for e in errors if e is not None]
    return max(known) if len(known) == len(errors) else None


def _grid_of_seams(plan: Plan, axis: int) -> Triple:
    """Return how many cores on each axis have a neighbour above them on one."""
    return triple(n - int(a == axis) for a, n in enumerate(plan.grid.counts))


def _seams(plan: Plan) -> list[int]:
    """Return the number of seams on each axis."""
    n_volumes = len(plan.timepoints) * len(plan.channels)
    return [n_volumes * math.prod(_grid_of_seams(plan, axis)) for axis in range(3)]


def _place(plan: Plan, axis: int, number: int) -> tuple[int, Triple]:
    """Return where one of the seams of an axis is: the number of its time point and channel, and of the core below it."""
    nz, ny, nx = _grid_of_seams(plan, axis)
    rest, x = divmod(number, nx)
    rest, y = divmod(rest, ny)
    volume, z = divmod(rest, nz)
    return volume, (z, y, x)


def _all_computed(plan: Plan, axis: int, number: int, outside: bytes) -> bool:
    """Tell whether the mask leaves out none of the blocks whose voxels meet in the cores on both sides of a seam."""
    volume, position = _place(plan, axis, number)
    reach = [range(max(p - 1, 0), p + 1 + int(a == axis)) for a, p in enumerate(position)]
    return not any(outside[plan.index(volume, triple(place))] for place in product(*reach))


def _probe(plan: Plan, axis: int, number: int) -> SeamProbe:
    """Return one of the seams of an axis, numbered over time points, channels and cores."""
    volume, position = _place(plan, axis, number)
    timepoint, channel = divmod(volume, len(plan.channels))
    core = plan.grid.core(position).shift(plan.roi.start)
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
    return {name: _short(math.sqrt(energy / reference)) for name, energy in values.items()}


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _described(m: Measured) -> dict[str, Any]:
    place = {"volume": m.volume, "axis": "zyx"[m.axis], "timepoint": m.timepoint, "channel": m.channel, "face": m.face}
    boxes = {"patch": asdict(m.patch), "window": asdict(m.window)}
    errors = _relative(m) if m.reference else {"error": None, "as_stored": None, "rounding": None}
    worst = {"worst_difference_photons": float(f"{m.worst_difference:.4g}"), "worst_at_zyx": m.worst_at}
    return {**place, **errors, **worst, **boxes}
