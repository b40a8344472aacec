"""Seam probes: the choice of seams that are solved again, after a run, in a window without a seam there.

One axis of a probe; the patch lies on a face between two cores, the window has no seam and more halo than a block::

    stored    ...-- core --|-- core --...
    patch               |--|--|
    window    |--- margin -|--|- margin ---|
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from itertools import accumulate, islice, product, zip_longest
from typing import TYPE_CHECKING

from bigdeconv.geometry import Box, Triple, triple
from bigdeconv.planning.seam_error import strip_width

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bigdeconv.planning.blocks import Plan

TRIES = 50
"""Seams that are considered for each probe, where a mask leaves out blocks."""
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
    """Voxels next to the face, along one core."""
    volume: int = 0
    """Number of its volume in the job."""

    def patches(self) -> Iterable[Box]:
        """Yield the parts of the strip; one of them is solved again."""
        edges = [n if a == self.axis else min(n, PATCH) for a, n in enumerate(self.strip.shape)]
        counts = [n // e for n, e in zip(self.strip.shape, edges, strict=True)]
        for number in range(math.prod(counts)):
            rest, x = divmod(number, counts[2])
            z, y = divmod(rest, counts[1])
            start = triple(s + p * e for s, p, e in zip(self.strip.start, (z, y, x), edges, strict=True))
            yield Box(start, triple(s + e for s, e in zip(start, edges, strict=True)))


@dataclass(frozen=True, slots=True)
class SeamMeasurement:
    """Result of one probe; energies are sums of squares over its patch, in photons²."""

    axis: int
    timepoint: int
    channel: int
    face: int
    patch: Box
    window: Box
    difference: float
    """Energy of the difference between the stored values and the solution in the window."""
    rounding: float
    """Energy of the difference between that solution and its rounded values."""
    reference: float
    """Energy of that solution; 0 where it is dark or has no data."""
    worst_difference: float
    """Photons."""
    worst_at: Triple
    """Position of the largest difference."""
    volume: int = 0


def choose(plans: Sequence[Plan], count: int, seed: str, outside: bytes | None = None) -> list[SeamProbe]:
    """Return up to ``count`` different seams at random, volumes and axes in turn.

    Parameters
    ----------
    plans : sequence of Plan
        One for each volume.
    count : int
        Largest number of seams.
    seed : str
        Seed of the choice.
    outside : bytes, optional
        1 where a block lies outside the mask, by its index through all volumes; no seam next to such a block is chosen.
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
    """Return the number of probes for which there are seams, at most ``count``; each costs a block at most."""
    return min(count, sum(sum(_seams(plan)) for plan in plans))


def window_of(plan: Plan, patch: Box) -> Box:
    """Return the window in which a patch is solved again: at most as large as that of a block, whole on axes without seams."""
    # A block's window has at least this room around a patch on its seam.
    rooms = [max((read - n) // 2, h) for n, read, h in zip(patch.shape, plan.read_shape, plan.halo, strict=True)]
    margins = [
        size if count == 1 and read == size else min(max(margin, h), room)
        for size, count, read, margin, h, room in zip(
            plan.zyx_shape, plan.grid.counts, plan.read_shape, plan.probe_margin, plan.halo, rooms, strict=True
        )
    ]
    return patch.grow(triple(margins)).intersect(Box.of_shape(plan.zyx_shape))


def _grid_of_seams(plan: Plan, axis: int) -> Triple:
    """Return the numbers of cores on z, y and x that have a neighbour above them on the given axis."""
    return triple(n - int(a == axis) for a, n in enumerate(plan.grid.counts))


def _seams(plan: Plan) -> list[int]:
    """Return the number of seams on each axis."""
    n_volumes = len(plan.timepoints) * len(plan.channels)
    return [n_volumes * math.prod(_grid_of_seams(plan, axis)) for axis in range(3)]


def _place(plan: Plan, axis: int, number: int) -> tuple[int, Triple]:
    """Return the place of a seam of an axis: the number of its time point and channel, and the position of the core below it."""
    nz, ny, nx = _grid_of_seams(plan, axis)
    rest, x = divmod(number, nx)
    rest, y = divmod(rest, ny)
    volume, z = divmod(rest, nz)
    return volume, (z, y, x)


def _all_computed(plan: Plan, axis: int, number: int, outside: bytes) -> bool:
    """Tell whether all blocks whose voxels meet in the cores on both sides of a seam are computed."""
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
