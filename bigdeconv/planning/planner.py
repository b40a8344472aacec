"""The planner: from shapes, the support of the PSF and a memory budget to blocks; integers in, a frozen plan out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING

from bigdeconv.errors import BudgetError, InvalidInputError
from bigdeconv.geometry import Box, Grid, Triple, ceil_div, triple, zyx_text
from bigdeconv.planning import memory
from bigdeconv.planning import seam_error as seams
from bigdeconv.planning.blocks import Plan
from bigdeconv.planning.cost import Costs
from bigdeconv.planning.levels import Level, choose_shard, plan_levels
from bigdeconv.planning.memory import Contents
from bigdeconv.planning.resources import Resources

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bigdeconv.planning.seam_error import EdgeErrorProfile

CHUNK = 64
"""Default edge of an output chunk: reads with a halo decode the fewest voxels at this size."""
MAX_CORE = 1024
"""Largest edge of a core that is chosen."""
BLEND = 4
"""Default half-width of the ramps at a seam, in voxels."""
PROBE_SHARE = 0.5
"""Share of the seam tolerance that the window of a probe may add itself."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """Inputs of a plan: numbers only."""

    zyx_shape: Triple
    psf_shape: Triple
    """Support of the widest PSF."""
    voxel_zyx_um: tuple[float, float, float]
    roi: Box | None = None
    timepoints: tuple[int, ...] = (0,)
    channels: tuple[int, ...] = (0,)
    contents: Contents = field(default_factory=Contents)
    resources: Resources = field(default_factory=Resources)
    costs: Costs = field(default_factory=Costs)
    iterations: int = 1
    input_chunk_shape: Triple = (1, 1, 1)
    block_shape: Triple | None = None
    halo: Triple | None = None
    edge_profiles: tuple[EdgeErrorProfile | None, ...] = (None, None, None)
    """By axis; without them the halo is twice the PSF's radius, and no error is predicted."""
    seam_tolerance: float = 1e-3
    blend: Triple | None = None
    chunk_shape: Triple | None = None
    shard_shape: Triple | None = None
    n_levels: int | None = None
    sharded: bool = True


def make_plan(request: PlanRequest) -> Plan:
    """Choose the blocks of a volume.

    Parameters
    ----------
    request : PlanRequest
        A given block shape is taken; otherwise the cheapest of those that fit the memory.

    Raises
    ------
    InvalidInputError
        If a given block, chunk, shard or blend does not fit the others.
    BudgetError
        If no block fits the memory budget.
    """
    roi = request.roi or Box.of_shape(request.zyx_shape)
    chunk = _choose_chunk(request, roi)
    if request.block_shape is not None:
        plan = _plan_with_core(request, roi, chunk, _fit_core(request.block_shape, chunk, roi))
        _require_budget(plan, request)
        return plan
    best: tuple[float, int, Plan] | None = None
    for core in _candidate_cores(request, roi, chunk):
        plan = _plan_with_core(request, roi, chunk, core, with_levels=False)
        if not _fits(plan, request):
            continue
        rank = (_makespan(plan, request), plan.n_blocks)
        if best is None or rank < best[:2]:
            best = (*rank, plan)
    if best is None:
        smallest = next(_candidate_cores(request, roi, chunk))
        _require_budget(_plan_with_core(request, roi, chunk, smallest), request)
        raise AssertionError("the smallest core fits after all")  # pragma: no cover
    return _plan_with_core(request, roi, chunk, best[2].core_shape)


def _require_budget(plan: Plan, request: PlanRequest) -> None:
    for needed, allowed, where in (
        (plan.peak_bytes_per_worker, request.resources.budget_bytes, "worker"),
        (plan.peak_bytes_per_device, request.resources.device_budget_bytes or 0, "GPU"),
    ):
        if needed > allowed:
            enough = f"{math.ceil(100 * needed / 2**30) / 100:.2f}"
            remedy = f"; --memory {enough}GiB would fit" if where == "worker" else ""
            raise BudgetError(
                f"memory: a block of {zyx_text(plan.core_shape)} with its halo of {zyx_text(plan.halo)} needs {enough} GiB per "
                f"{where}, but its budget is {allowed / 2**30:.2f} GiB{remedy}."
            )


def _fits(plan: Plan, request: PlanRequest) -> bool:
    fits_device = plan.peak_bytes_per_device <= (request.resources.device_budget_bytes or 0)
    return fits_device and plan.peak_bytes_per_worker <= request.resources.budget_bytes


def _plan_with_core(request: PlanRequest, roi: Box, chunk: Triple, core: Triple, *, with_levels: bool = True) -> Plan:
    counts = Grid(roi.shape, core).counts
    blend = _choose_blend(request, core, counts)
    plan = Plan(
        zyx_shape=request.zyx_shape,
        roi=roi,
        timepoints=request.timepoints,
        channels=request.channels,
        core_shape=core,
        halo=request.halo or triple(_min_halo(request, axis, blend[axis]) for axis in range(3)),
        blend=blend,
        psf_shape=request.psf_shape,
        levels=_levels(request, Grid(roi.shape, core), chunk) if with_levels else (),
        memory=(),
        input_chunk_shape=request.input_chunk_shape,
    )
    on_gpu = request.resources.device_budget_bytes is not None
    return replace(
        plan,
        memory=(memory.host_terms if on_gpu else memory.worker_terms)(request.contents, plan.extents),
        device_memory=memory.device_terms(request.contents, plan.extents) if on_gpu else (),
        seam_errors=_seam_errors(plan, request) if with_levels else plan.seam_errors,
        probe_margin=triple(_probe_margin(request, axis) for axis in range(3)),
    )


def _min_halo(request: PlanRequest, axis: int, blend: int) -> int:
    profile = request.edge_profiles[axis]
    if profile is None:
        return 2 * (request.psf_shape[axis] // 2)
    cut_out = request.roi is not None and request.roi.shape[axis] < request.zyx_shape[axis]
    # At a face of the region there is no neighbour whose overlap helps.
    return seams.min_halo(profile, 0 if cut_out else blend, request.seam_tolerance)


def _probe_margin(request: PlanRequest, axis: int) -> int:
    profile = request.edge_profiles[axis]
    if profile is None:
        return request.zyx_shape[axis]
    return seams.min_halo(profile, 0, PROBE_SHARE * request.seam_tolerance)


def _seam_errors(plan: Plan, request: PlanRequest) -> tuple[float | None, ...]:
    def error(axis: int) -> float | None:
        profile = request.edge_profiles[axis]
        if plan.grid.counts[axis] == 1:
            return 0.0
        return None if profile is None else seams.pooled_error(profile, plan.reaches(axis), plan.blend[axis])

    return tuple(map(error, range(3)))


def _levels(request: PlanRequest, grid: Grid, chunk: Triple) -> tuple[Level, ...]:
    shard = choose_shard(request.shard_shape, grid, chunk) if request.sharded else None
    return plan_levels(grid, chunk, shard, request.voxel_zyx_um, request.n_levels)


def _choose_blend(request: PlanRequest, core: Triple, counts: Triple) -> Triple:
    if request.blend is None:
        return triple(min(BLEND, c // 2) if n > 1 else 0 for c, n in zip(core, counts, strict=True))
    for b, c, n in zip(request.blend, core, counts, strict=True):
        if n > 1 and 2 * b > c:
            raise InvalidInputError(
                f"blend: got {zyx_text(request.blend)} for cores of {zyx_text(core)}; twice the blend must fit in a core, "
                "lower --blend or raise --block-shape."
            )
    return triple(b if n > 1 else 0 for b, n in zip(request.blend, counts, strict=True))


def _choose_chunk(request: PlanRequest, roi: Box) -> Triple:
    if request.chunk_shape is not None:
        return triple(min(c, n) for c, n in zip(request.chunk_shape, roi.shape, strict=True))
    if request.block_shape is None:
        return triple(min(CHUNK, n) for n in roi.shape)
    return triple(
        min(CHUNK, n) if b >= n else _chunk_of_block(b) for b, n in zip(request.block_shape, roi.shape, strict=True)
    )


def _chunk_of_block(block: int) -> int:
    """Return the largest divisor of a block edge from 16 to `CHUNK`, or the edge itself."""
    divisors = [d for d in range(16, CHUNK + 1) if block % d == 0]
    return max(divisors, default=block)


def _fit_core(block: Triple, chunk: Triple, roi: Box) -> Triple:
    """Check a block shape, and clip it to the extent of the region."""
    for b, c, n in zip(block, chunk, roi.shape, strict=True):
        if b < 1 or (b < n and b % c):
            raise InvalidInputError(
                f"block-shape: got {zyx_text(block)} with chunks of {zyx_text(chunk)}; each extent must be a multiple of "
                "the chunk, or at least the volume's extent: change --block-shape or --chunks."
            )
    return triple(min(b, n) for b, n in zip(block, roi.shape, strict=True))


def _candidate_cores(request: PlanRequest, roi: Box, chunk: Triple) -> Iterator[Triple]:
    def edges(axis: int) -> list[int]:
        n, c = roi.shape[axis], chunk[axis]
        unit = c if request.shard_shape is None else request.shard_shape[axis]
        return sorted({min(m * unit, n) for m in _multiples(max(MAX_CORE // unit, 1))})

    cores = [triple(core) for core in product(edges(0), edges(1), edges(2))]
    blending = [core for core in cores if _fits_blend(request.blend, core, roi)]
    # Where no core has room for the ramps, making the plan raises the error.
    yield from blending or cores


def _fits_blend(blend: Triple | None, core: Triple, roi: Box) -> bool:
    return blend is None or all(n <= c or 2 * b <= c for b, c, n in zip(blend, core, roi.shape, strict=True))


def _multiples(most: int) -> Iterator[int]:
    """Yield 1 to 8, then numbers in steps of at most a quarter: few enough to try all of them."""
    yield from (m for m in range(1, most + 1) if m % max(1 << max(m.bit_length() - 3, 0), 1) == 0)


def _makespan(plan: Plan, request: PlanRequest) -> float:
    """Return the time of the worker with the most blocks, if they are spread evenly."""
    rounds = ceil_div(plan.n_blocks, request.resources.workers)
    return request.costs.total(plan, request.contents.n_views, request.iterations) / plan.n_blocks * rounds
