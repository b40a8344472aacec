"""From shapes, a PSF's reach and a memory budget to blocks: integers in, a frozen plan out.

One axis of one block; what is written is the core, what is blended reaches past its upper face only::

    read     |---- halo ----|------- core -------|- overlap -|---- halo ----|
    keep                    |------- core -------|- overlap -|
    owned                   |------- core -------|
                            ^ ramps up over 2·blend  ^ ramps down over 2·blend

The blocks are computed one by one when asked for: a plan of a million blocks is as small as a plan of one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise, product
from typing import TYPE_CHECKING, NamedTuple

from bigdeconv import seams
from bigdeconv.errors import BudgetError, InvalidInputError
from bigdeconv.geometry import PRIOR_MARGIN, Box, Grid, Triple, ceil_div, fast_length, round_up, triple, zyx_text
from bigdeconv.levels import Level, choose_shard, plan_levels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bigdeconv.seams import Decay

CHUNK = 64
"""Default edge of an output chunk: halo'd reads of such volumes decode least."""
MAX_CORE = 1024
BLEND = 4
"""Default half-width of the ramps at a seam, in voxels."""
PROBE_SHARE = 0.5
"""Part of the seam tolerance that the windows of probes may add themselves."""
PROCESS_BYTES = 450 * 2**20
"""Resident memory of a worker that has imported torch, Dask and zarr, before any block."""
HEAP_BYTES = 32 * 2**20
"""Up to this size glibc keeps freed arrays in heaps, where the next ones often do not fit; larger ones go back to the system."""
FRESH_BYTES = 60
"""Bytes of arrays that a pair of transforms makes per FFT voxel."""
PRIOR_FRESH_BYTES = 80
"""Bytes of arrays that a step in the prior makes per voxel."""
CUDA_PROCESS_BYTES = 3 * 2**30
"""Resident memory of a worker in which a CUDA context is open, before any block."""


@dataclass(frozen=True, slots=True)
class BlockTask:
    """One block of one time point and channel; all boxes count from the origin of the input level."""

    index: int
    timepoint: int
    channel: int
    position: Triple
    core: Box
    """What the block owns and writes."""
    keep: Box
    """The core and, past its upper faces, the overlap that is blended into the neighbours."""
    read: Box
    """The data window: ``keep`` and the halo, clipped to the volume."""
    volume: int = 0
    """Which volume of the job it is a block of."""


@dataclass(frozen=True)
class Plan:
    """How a volume is cut, read and written."""

    zyx_shape: Triple
    """Extent of the input level."""
    roi: Box
    """Part of it that is deconvolved and written."""
    timepoints: tuple[int, ...]
    channels: tuple[int, ...]
    core_shape: Triple
    halo: Triple
    blend: Triple
    psf_shape: Triple
    levels: tuple[Level, ...]
    memory: tuple[tuple[str, int], ...]
    """Named terms of the peak memory of a worker, in bytes."""
    seam_errors: tuple[float | None, ...] = (None, None, None)
    """Predicted error next to the seams of each axis; 0 without seams, None where nothing was calibrated."""
    probe_margin: Triple = (0, 0, 0)
    """Distance from the end of a window at which its error is far below the seam tolerance."""
    device_memory: tuple[tuple[str, int], ...] = ()
    """Named terms of what a worker's GPU allocates; none without a GPU."""
    input_chunk_shape: Triple = (1, 1, 1)
    """What one read of the input decodes at least."""

    @cached_property
    def grid(self) -> Grid:
        """The cores, counted from the origin of the region of interest."""
        return Grid(self.roi.shape, self.core_shape)

    @property
    def n_blocks(self) -> int:
        """Blocks of all time points and channels."""
        return len(self.timepoints) * len(self.channels) * len(self.grid)

    @property
    def peak_bytes_per_worker(self) -> int:
        """Sum of the memory terms."""
        return sum(size for _, size in self.memory)

    @property
    def peak_bytes_per_device(self) -> int:
        """Sum of the memory terms of a GPU."""
        return sum(size for _, size in self.device_memory)

    @cached_property
    def axis_order(self) -> Triple:
        """Axes from slowest to fastest: blocks go across the narrowest cross-section, so that few rims wait."""
        return triple(sorted(range(3), key=lambda a: (-self.roi.shape[a], a)))

    def task(self, index: int) -> BlockTask:
        """Return one block."""
        volume, inner = divmod(index, len(self.grid))
        timepoint, channel = divmod(volume, len(self.channels))
        position = [0, 0, 0]
        for axis in reversed(self.axis_order):
            inner, position[axis] = divmod(inner, self.grid.counts[axis])
        extents = [self._axis(axis).extent(position[axis]) for axis in range(3)]
        core, keep, read = (Box(triple(e[i][0] for e in extents), triple(e[i][1] for e in extents)) for i in range(3))
        return BlockTask(index, self.timepoints[timepoint], self.channels[channel], triple(position), core, keep, read)

    def tasks(self) -> Iterator[BlockTask]:
        """Yield every block in the order of submission: a block comes after its lower neighbours."""
        return map(self.task, range(self.n_blocks))

    def index(self, volume: int, position: Triple) -> int:
        """Return the index of a block from the number of its time point and channel and its place in the grid."""
        for axis in self.axis_order:
            volume = volume * self.grid.counts[axis] + position[axis]
        return volume

    def neighbour(self, task: BlockTask, direction: Triple) -> int | None:
        """Return the index of the neighbour of a block, or None at a face of the region."""
        position = [p + d for p, d in zip(task.position, direction, strict=True)]
        counts = self.grid.counts
        if any(not 0 <= p < n for p, n in zip(position, counts, strict=True)):
            return None
        step = 0
        for axis in self.axis_order:
            step = step * counts[axis] + direction[axis]
        return task.index + step

    def reach(self, axis: int) -> list[tuple[int, int]]:
        """Return the range of voxels that each core along an axis has to do with: the halo or the ramps beyond its faces.

        What lies in no neighbour's reach is computed, and blended, as if that neighbour did not exist.
        """
        wide = max(self.halo[axis], 2 * self.blend[axis])
        cores = (self._axis(axis).extent(i).core for i in range(self.grid.counts[axis]))
        return [(max(start - wide, 0), min(stop + wide, self.zyx_shape[axis])) for start, stop in cores]

    @property
    def overlaps(self) -> bool:
        """Whether blocks hand rims to their neighbours."""
        return any(b > 0 and n > 1 for b, n in zip(self.blend, self.grid.counts, strict=True))

    @property
    def read_shape(self) -> Triple:
        """Largest data window of any block, per axis."""
        return triple(totals.max_read for totals in self._totals)

    @property
    def fft_shape(self) -> Triple:
        """Largest FFT of any block, per axis."""
        return triple(totals.max_fft for totals in self._totals)

    @property
    def read_amplification(self) -> float:
        """Voxels read per voxel written."""
        return math.prod(totals.sum_read for totals in self._totals) / self.roi.size

    @property
    def decode_amplification(self) -> float:
        """Voxels decoded per voxel written: reads touch whole chunks of the input."""
        return math.prod(totals.sum_decoded for totals in self._totals) / self.roi.size

    @property
    def compute_amplification(self) -> float:
        """FFT voxels computed per voxel written."""
        return math.prod(totals.sum_fft for totals in self._totals) / self.roi.size

    @property
    def rim_bytes(self) -> int:
        """Scratch space of the rims that wait at one time: a cross-section, a row and a block of them, float32."""
        slow, middle, fast = self.axis_order
        core, counts = self.core_shape, self.grid.counts
        width = [2 * b if n > 1 else 0 for b, n in zip(self.blend, counts, strict=True)]
        kept = [c + w for c, w in zip(core, width, strict=True)]
        # Rims overlap one another at edges and corners, once per seam.
        spans = [e + (n - 1) * w for e, n, w in zip(self.roi.shape, counts, width, strict=True)]
        sheet = width[slow] * spans[middle] * spans[fast]
        row = width[middle] * kept[slow] * spans[fast]
        block = width[fast] * kept[slow] * kept[middle]
        # A block's own rims are written before those that it takes in are dropped.
        own = math.prod(kept) - math.prod(core)
        return 4 * (sheet + row + block + own)

    @property
    def predicted_seam_error(self) -> float | None:
        """Predicted error next to the seams of the worst axis; None where one was not calibrated."""
        errors = [e for e in self.seam_errors if e is not None]
        return max(errors) if len(errors) == 3 else None

    def reaches(self, axis: int) -> Iterator[tuple[int | None, int | None]]:
        """Yield, for every seam of an axis, how far beyond it the windows of its blocks reach: see `seams.seam_error`."""
        size = self.zyx_shape[axis]
        extents = map(self._axis(axis).extent, range(self.grid.counts[axis]))
        for lower, upper in pairwise(extents):
            face = upper.core[0]
            yield (
                None if upper.read[0] == 0 else face - upper.read[0],
                None if lower.read[1] == size else lower.read[1] - face,
            )

    @cached_property
    def _totals(self) -> tuple[_AxisTotals, ...]:
        return tuple(_axis_totals(self._axis(axis)) for axis in range(3))

    def _axis(self, axis: int) -> _Axis:
        return _Axis(
            self.zyx_shape[axis],
            self.roi.start[axis],
            self.roi.stop[axis],
            self.core_shape[axis],
            self.halo[axis],
            self.blend[axis],
            self.psf_shape[axis],
            self.input_chunk_shape[axis],
        )


@dataclass(frozen=True)
class Series:
    """The blocks of several volumes, one volume after the other, under one running index."""

    plans: tuple[Plan, ...]
    """One for each volume."""

    @cached_property
    def _stops(self) -> list[int]:
        return list(accumulate(plan.n_blocks for plan in self.plans))

    @property
    def n_blocks(self) -> int:
        """Blocks of all volumes."""
        return self._stops[-1]

    def task(self, index: int) -> BlockTask:
        """Return one block; its index counts through all volumes."""
        volume = bisect_right(self._stops, index)
        plan = self.plans[volume]
        first = self._stops[volume] - plan.n_blocks
        return replace(plan.task(index - first), index=index, volume=volume)


class _Extent(NamedTuple):
    """One axis of one block."""

    core: tuple[int, int]
    keep: tuple[int, int]
    read: tuple[int, int]


class _Axis(NamedTuple):
    """One axis of a plan: blocks are products of what happens on each axis."""

    size: int
    start: int
    stop: int
    core: int
    halo: int
    blend: int
    psf: int
    chunk: int

    def extent(self, i: int) -> _Extent:
        start = self.start + i * self.core
        stop = min(start + self.core, self.stop)
        keep_stop = min(stop + 2 * self.blend, self.stop)
        lower, upper = max(start - self.halo, 0), min(keep_stop + self.halo, self.size)
        # What the rounding to a fast FFT length gives away becomes halo where there are data.
        spare = self.fft_length(upper - lower) - (upper - lower + self.psf - 1)
        below = min(spare // 2, lower)
        above = min(spare - below, self.size - upper)
        below = min(spare - above, lower)
        return _Extent((start, stop), (start, keep_stop), (lower - below, upper + above))

    def fft_length(self, read: int) -> int:
        return fast_length(read + self.psf - 1)


class _AxisTotals(NamedTuple):
    max_read: int
    max_fft: int
    sum_read: int
    sum_fft: int
    sum_decoded: int


@lru_cache(maxsize=1024)
def _axis_totals(axis: _Axis) -> _AxisTotals:
    count = ceil_div(axis.stop - axis.start, axis.core)
    extents = [axis.extent(i).read for i in range(count)]
    reads = [stop - start for start, stop in extents]
    ffts = [axis.fft_length(read) for read in reads]
    decoded = (min(round_up(stop, axis.chunk), axis.size) - start // axis.chunk * axis.chunk for start, stop in extents)
    return _AxisTotals(max(reads), max(ffts), sum(reads), sum(ffts), sum(decoded))


@dataclass(frozen=True, slots=True)
class PriorMemory:
    """What a prior takes, beside the estimate."""

    window_bytes: int
    """Work per voxel that the prior acts on."""
    fixed_bytes: int = 0
    """Work whatever the block."""


def prior_voxels(read: Triple, fft: Triple) -> int:
    """Return how many voxels a prior acts on at most, for a data window and its FFT window."""
    return math.prod(min(r + 2 * PRIOR_MARGIN, f) for r, f in zip(read, fft, strict=True))


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one core, or of a GPU with its worker; the defaults are those of some machine, for their ratios."""

    fft: float = 6e-10
    """Per FFT voxel, its logarithm to base 2, iteration, and pair of transforms."""
    prior: float = 0.0
    """Per voxel that the prior acts on and iteration."""
    prior_steps: int = 1
    """Steps in the prior per iteration."""
    prepare: float = 4e-8
    """Per voxel and view that is turned into photons."""
    fault: float = 0.0
    """Per byte of memory that the system hands out anew, as it does for each array larger than `HEAP_BYTES`."""
    decode: float = 4e-9
    """Per voxel decoded."""
    write: float = 2e-8
    """Per voxel merged, encoded and averaged to the next levels."""
    block: float = 0.01
    """Per block: messages, small files, the journal."""

    def total(self, plan: Plan, n_views: int, iterations: int) -> float:
        """Return the seconds of all blocks of a plan, on one core or GPU."""
        volumes = len(plan.timepoints) * len(plan.channels)
        n_fft = math.prod(plan.fft_shape)
        fresh = self.fault if 4 * n_fft >= HEAP_BYTES else 0.0
        # The start of the iteration costs as much as a step of it.
        transforms = (iterations + 1) * (n_views + 1) * (self.fft * math.log2(max(n_fft, 2)) + FRESH_BYTES * fresh)
        prior = iterations * (self.prior + (PRIOR_FRESH_BYTES * fresh * self.prior_steps if self.prior else 0.0))
        prior *= prior_voxels(plan.read_shape, plan.fft_shape) / math.prod(plan.read_shape)
        per_voxel = (
            plan.compute_amplification * transforms
            + plan.read_amplification * (prior + n_views * self.prepare)
            + plan.decode_amplification * n_views * self.decode
            + self.write
        )
        return volumes * plan.roi.size * per_voxel + plan.n_blocks * self.block


@dataclass(frozen=True, slots=True)
class Request:
    """What a plan is made from: numbers only."""

    zyx_shape: Triple
    psf_shape: Triple
    """Box of the widest PSF."""
    voxel_zyx_um: tuple[float, float, float]
    roi: Box | None = None
    timepoints: tuple[int, ...] = (0,)
    channels: tuple[int, ...] = (0,)
    n_views: int = 1
    input_itemsize: int = 2
    output_itemsize: int = 2
    prior: PriorMemory | None = None
    budget_bytes: int = 8 * 2**30
    device_budget_bytes: int | None = None
    """Memory of a worker's GPU; None where blocks are computed on CPUs."""
    n_workers: int = 1
    costs: Costs = Costs()
    iterations: int = 1
    input_chunk_shape: Triple = (1, 1, 1)
    block_shape: Triple | None = None
    halo: Triple | None = None
    decays: tuple[Decay | None, ...] = (None, None, None)
    """How an error decays along each axis; without, the halo is twice the PSF's radius and no error is predicted."""
    seam_tolerance: float = 1e-3
    blend: Triple | None = None
    chunk_shape: Triple | None = None
    shard_shape: Triple | None = None
    n_levels: int | None = None
    sharded: bool = True


def make_plan(request: Request) -> Plan:
    """Choose the blocks.

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


def memory_terms(request: Request, read: Triple, fft: Triple, core: Triple) -> tuple[tuple[str, int], ...]:
    """Return the named terms of a worker's peak memory in bytes, for its largest block.

    A worker restores one block while it reads the next and writes the last.
    """
    n_read, n_core = request.n_views * math.prod(read), math.prod(core)
    beside = (
        ("next block", n_read * request.input_itemsize),
        ("solved core that waits", 4 * n_core),
        # The core once more, what is stored of it, its sums to the next level, and the codec's buffers.
        ("last block: core, rims, levels, codecs", n_core * (4 + 2 * request.output_itemsize + 8)),
    )
    if request.device_budget_bytes is not None:
        photons = n_read * (_photon_bytes(request) + 5)
        return ("process", CUDA_PROCESS_BYTES), ("photons and weights, two blocks", 2 * photons), *beside
    solver = dict(_solver_terms(request, read, fft))
    kept = 3 * solver[_WORK] // 4 if 4 * math.prod(read) < HEAP_BYTES else 0
    return ("process", PROCESS_BYTES), *solver.items(), ("gaps in heaps", kept), *beside


def device_memory_terms(request: Request, read: Triple, fft: Triple) -> tuple[tuple[str, int], ...]:
    """Return the named terms of what a block allocates on a GPU, in bytes."""
    # The library of the transforms takes a work space of its own.
    return (*_solver_terms(request, read, fft), ("FFT library", _spectrum_bytes(fft)))


_WORK = "FFT work, or the prior's"


def _solver_terms(request: Request, read: Triple, fft: Triple) -> tuple[tuple[str, int], ...]:
    """Return what is in memory at the most demanding moment of an iteration."""
    n_read, real, spectrum = math.prod(read), 4 * math.prod(fft), _spectrum_bytes(fft)
    views, prior = request.n_views, request.prior or PriorMemory(0)
    # The spectrum of the estimate, that of its planes once blurred, with several views also the sum of the back-projections; what
    # comes back, and the slabs in which all that is made.
    slabbed = (2 if views == 1 else 3) * spectrum + real
    # A GPU makes it in one piece: the product, the transform's input as the library wants it, and its output.
    transforms = slabbed if request.device_budget_bytes is None else slabbed + 2 * spectrum
    priors = real + prior.window_bytes * prior_voxels(read, fft) + prior.fixed_bytes
    return (
        ("photons", views * n_read * _photon_bytes(request)),
        ("weights", views * n_read * 4),
        ("estimate, momentum, sensitivity", 3 * real),
        ("OTFs", views * spectrum),
        (_WORK, max(transforms, priors)),
    )


def _photon_bytes(request: Request) -> int:
    """Return the bytes of a voxel in photons: float32, and float64 beside it where the input may be that."""
    return 12 if request.input_itemsize == 8 else 4


def _spectrum_bytes(fft: Triple) -> int:
    return 8 * fft[0] * fft[1] * (fft[2] // 2 + 1)


def _require_budget(plan: Plan, request: Request) -> None:
    for needed, allowed, where in (
        (plan.peak_bytes_per_worker, request.budget_bytes, "worker"),
        (plan.peak_bytes_per_device, request.device_budget_bytes or 0, "GPU"),
    ):
        if needed > allowed:
            raise BudgetError(
                f"memory: a block of {zyx_text(plan.core_shape)} with its halo needs {needed / 2**30:.2f} GiB per {where}, "
                f"allowed are {allowed / 2**30:.2f} GiB; {'raise --memory, ' if where == 'worker' else ''}lower --halo, or give "
                "a smaller --block-shape."
            )


def _fits(plan: Plan, request: Request) -> bool:
    fits_device = plan.peak_bytes_per_device <= (request.device_budget_bytes or 0)
    return fits_device and plan.peak_bytes_per_worker <= request.budget_bytes


def _plan_with_core(request: Request, roi: Box, chunk: Triple, core: Triple, *, with_levels: bool = True) -> Plan:
    counts = Grid(roi.shape, core).counts
    blend = _choose_blend(request, core, counts)
    plan = Plan(
        zyx_shape=request.zyx_shape,
        roi=roi,
        timepoints=request.timepoints,
        channels=request.channels,
        core_shape=core,
        halo=request.halo or triple(_least_halo(request, axis, blend[axis]) for axis in range(3)),
        blend=blend,
        psf_shape=request.psf_shape,
        levels=_levels(request, Grid(roi.shape, core), chunk) if with_levels else (),
        memory=(),
        input_chunk_shape=request.input_chunk_shape,
    )
    read, fft = plan.read_shape, plan.fft_shape
    return replace(
        plan,
        memory=memory_terms(request, read, fft, core),
        device_memory=() if request.device_budget_bytes is None else device_memory_terms(request, read, fft),
        seam_errors=_seam_errors(plan, request) if with_levels else plan.seam_errors,
        probe_margin=triple(_probe_margin(request, axis) for axis in range(3)),
    )


def _least_halo(request: Request, axis: int, blend: int) -> int:
    decay = request.decays[axis]
    if decay is None:
        return 2 * (request.psf_shape[axis] // 2)
    cut_out = request.roi is not None and request.roi.shape[axis] < request.zyx_shape[axis]
    # At a face of the region no neighbour's overlap helps.
    return seams.least_halo(decay, 0 if cut_out else blend, request.seam_tolerance)


def _probe_margin(request: Request, axis: int) -> int:
    decay = request.decays[axis]
    if decay is None:
        return request.zyx_shape[axis]
    return seams.least_halo(decay, 0, PROBE_SHARE * request.seam_tolerance)


def _seam_errors(plan: Plan, request: Request) -> tuple[float | None, ...]:
    def error(axis: int) -> float | None:
        decay = request.decays[axis]
        if plan.grid.counts[axis] == 1:
            return 0.0
        return None if decay is None else seams.pooled_error(decay, plan.reaches(axis), plan.blend[axis])

    return tuple(map(error, range(3)))


def _levels(request: Request, grid: Grid, chunk: Triple) -> tuple[Level, ...]:
    shard = choose_shard(request.shard_shape, grid, chunk) if request.sharded else None
    return plan_levels(grid, chunk, shard, request.voxel_zyx_um, request.n_levels)


def _choose_blend(request: Request, core: Triple, counts: Triple) -> Triple:
    if request.blend is None:
        return triple(min(BLEND, c // 2) if n > 1 else 0 for c, n in zip(core, counts, strict=True))
    for b, c, n in zip(request.blend, core, counts, strict=True):
        if n > 1 and 2 * b > c:
            raise InvalidInputError(
                f"blend: got {zyx_text(request.blend)} for cores of {zyx_text(core)}; twice the blend must fit in a core, "
                "lower --blend or raise --block-shape."
            )
    return triple(b if n > 1 else 0 for b, n in zip(request.blend, counts, strict=True))


def _choose_chunk(request: Request, roi: Box) -> Triple:
    if request.chunk_shape is not None:
        return triple(min(c, n) for c, n in zip(request.chunk_shape, roi.shape, strict=True))
    if request.block_shape is None:
        return triple(min(CHUNK, n) for n in roi.shape)
    return triple(
        min(CHUNK, n) if b >= n else _chunk_of_block(b) for b, n in zip(request.block_shape, roi.shape, strict=True)
    )


def _chunk_of_block(block: int) -> int:
    """Return the largest divisor of a block edge that makes a sensible chunk, or the edge itself."""
    divisors = [d for d in range(16, CHUNK + 1) if block % d == 0]
    return max(divisors, default=block)


def _fit_core(block: Triple, chunk: Triple, roi: Box) -> Triple:
    """Check a block shape; on an axis that it spans it becomes the whole axis."""
    for b, c, n in zip(block, chunk, roi.shape, strict=True):
        if b < 1 or (b < n and b % c):
            raise InvalidInputError(
                f"block-shape: got {zyx_text(block)} with chunks of {zyx_text(chunk)}; each extent must be a multiple of "
                "the chunk, or at least the volume's extent: change --block-shape or --chunks."
            )
    return triple(min(b, n) for b, n in zip(block, roi.shape, strict=True))


def _candidate_cores(request: Request, roi: Box, chunk: Triple) -> Iterator[Triple]:
    def edges(axis: int) -> list[int]:
        n, c = roi.shape[axis], chunk[axis]
        unit = c if request.shard_shape is None else request.shard_shape[axis]
        return sorted({min(m * unit, n) for m in _multiples(max(MAX_CORE // unit, 1))})

    cores = [triple(core) for core in product(edges(0), edges(1), edges(2))]
    blending = [core for core in cores if _fits_blend(request.blend, core, roi)]
    # Where no core has room for the ramps, making the plan says so.
    yield from blending or cores


def _fits_blend(blend: Triple | None, core: Triple, roi: Box) -> bool:
    return blend is None or all(n <= c or 2 * b <= c for b, c, n in zip(blend, core, roi.shape, strict=True))


def _multiples(most: int) -> Iterator[int]:
    """Yield 1 to 8, then ever wider steps of at most a quarter: enough to choose from, few enough to try all."""
    yield from (m for m in range(1, most + 1) if m % max(1 << max(m.bit_length() - 3, 0), 1) == 0)


def _makespan(plan: Plan, request: Request) -> float:
    """Return the time of the longest worker's share, blocks dealt out evenly."""
    rounds = ceil_div(plan.n_blocks, request.n_workers)
    return request.costs.total(plan, request.n_views, request.iterations) / plan.n_blocks * rounds
