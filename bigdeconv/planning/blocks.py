"""A plan and its blocks, in plain integers.

One axis of one block; the core is written, and the overlap that is blended lies past its upper face only::

    read     |---- halo ----|------- core -------|- overlap -|---- halo ----|
    keep                    |------- core -------|- overlap -|
    owned                   |------- core -------|
                            ^ ramps up over 2·blend  ^ ramps down over 2·blend

Blocks are computed one by one on request: a plan of a million blocks is as small as a plan of one.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise, product
from typing import TYPE_CHECKING, NamedTuple

from bigdeconv.geometry import Box, Grid, Triple, ceil_div, fast_length, round_up, triple
from bigdeconv.planning.levels import Level  # noqa: TC001  (read at run time, as a plan is stored by its annotations)
from bigdeconv.planning.memory import Extents

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class BlockTask:
    """One block of one time point and channel; all boxes count from the origin of the input level."""

    index: int
    timepoint: int
    channel: int
    position: Triple
    core: Box
    """Voxels that the block owns and writes."""
    keep: Box
    """The core and, past its upper faces, the overlap with the neighbours."""
    read: Box
    """The data window: ``keep`` and the halo, clipped to the volume."""
    volume: int = 0
    """Number of its volume in the job."""


@dataclass(frozen=True)
class Plan:
    """Blocks of a volume: how it is cut, read and written."""

    zyx_shape: Triple
    """Extent of the input level."""
    roi: Box
    """Region that is deconvolved and written."""
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
    """Predicted error next to the seams of each axis; 0 without seams, None without calibration."""
    probe_margin: Triple = (0, 0, 0)
    """Distance from the end of a window at which its error is well below the seam tolerance."""
    device_memory: tuple[tuple[str, int], ...] = ()
    """Named terms of the peak memory of a worker's GPU, in bytes; none without a GPU."""
    input_chunk_shape: Triple = (1, 1, 1)
    """Smallest part of the input that a read decodes."""

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
        """Axes from slowest to fastest: blocks go across the narrowest cross-section, so that few overlap slabs wait."""
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
        """Return the index of a block from the number of its time point and channel and its position in the grid."""
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
        """Return the range of voxels that influences each core along an axis: its halo, or the ramps beyond its faces.

        A core is computed and blended as if blocks outside its range did not exist.
        """
        wide = max(self.halo[axis], 2 * self.blend[axis])
        cores = (self._axis(axis).extent(i).core for i in range(self.grid.counts[axis]))
        return [(max(start - wide, 0), min(stop + wide, self.zyx_shape[axis])) for start, stop in cores]

    def readers(self, box: Box) -> Iterator[Triple]:
        """Yield the positions of the blocks whose data windows reach into a box of the input level."""
        ranges = []
        for axis in range(3):
            reads = [self._axis(axis).extent(i).read for i in range(self.grid.counts[axis])]
            first = bisect_right([stop for _, stop in reads], box.start[axis])
            ranges.append(range(first, bisect_left([start for start, _ in reads], box.stop[axis])))
        yield from map(triple, product(*ranges))

    @property
    def has_overlaps(self) -> bool:
        """Whether blocks write overlap slabs for their neighbours."""
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
    def extents(self) -> Extents:
        """Largest extents of any block, per axis."""
        return Extents(self.read_shape, self.fft_shape, self.core_shape)

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
    def n_window_shapes(self) -> int:
        """Number of changes of the shape of the data window from one block to the next, the first block included."""
        rows, changes = 1, 0
        for totals in (self._totals[axis] for axis in self.axis_order):
            # From the end of a row to the start of the next.
            between = rows - 1 if totals.ends_differ else changes
            changes = rows * totals.changes + between
            rows *= totals.n_blocks
        return 1 + changes

    @property
    def overlap_bytes(self) -> int:
        """Largest scratch space in bytes: the overlap slabs of a cross-section, a row and a block, float32."""
        slow, middle, fast = self.axis_order
        core, counts = self.core_shape, self.grid.counts
        width = [2 * b if n > 1 else 0 for b, n in zip(self.blend, counts, strict=True)]
        kept = [c + w for c, w in zip(core, width, strict=True)]
        # Slabs overlap one another at edges and corners, once per seam.
        spans = [e + (n - 1) * w for e, n, w in zip(self.roi.shape, counts, width, strict=True)]
        sheet = width[slow] * spans[middle] * spans[fast]
        row = width[middle] * kept[slow] * spans[fast]
        block = width[fast] * kept[slow] * kept[middle]
        # A block's own slabs are written before those that it has added are dropped.
        own = math.prod(kept) - math.prod(core)
        return 4 * (sheet + row + block + own)

    @property
    def predicted_seam_error(self) -> float | None:
        """Predicted error next to the seams of the worst axis; None where one was not calibrated."""
        errors = [e for e in self.seam_errors if e is not None]
        return max(errors) if len(errors) == 3 else None

    def reaches(self, axis: int) -> Iterator[tuple[int | None, int | None]]:
        """Yield, for every seam of an axis, the reach of the windows on both sides beyond it: see `seam_error.seam_error`."""
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
class BlockSequence:
    """Blocks of several volumes, one volume after the other, under one running index."""

    plans: tuple[Plan, ...]
    """One for each volume."""

    @cached_property
    def _stops(self) -> list[int]:
        return list(accumulate(plan.n_blocks for plan in self.plans))

    @property
    def n_blocks(self) -> int:
        """Blocks of all volumes."""
        return self._stops[-1]

    def volume(self, index: int) -> int:
        """Return the number of the volume of a block."""
        return bisect_right(self._stops, index)

    def first(self, volume: int) -> int:
        """Return the index of the first block of a volume."""
        return self._stops[volume] - self.plans[volume].n_blocks

    def task(self, index: int) -> BlockTask:
        """Return one block; its index counts through all volumes."""
        volume = self.volume(index)
        plan = self.plans[volume]
        return replace(plan.task(index - self.first(volume)), index=index, volume=volume)


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
        # Voxels gained by rounding up to a fast FFT length become halo where there are data.
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
    n_blocks: int
    changes: int
    """Changes of the length of the read from one block to the next."""
    ends_differ: bool


@lru_cache(maxsize=1024)
def _axis_totals(axis: _Axis) -> _AxisTotals:
    count = ceil_div(axis.stop - axis.start, axis.core)
    extents = [axis.extent(i).read for i in range(count)]
    reads = [stop - start for start, stop in extents]
    ffts = [axis.fft_length(read) for read in reads]
    decoded = (min(round_up(stop, axis.chunk), axis.size) - start // axis.chunk * axis.chunk for start, stop in extents)
    changes = sum(a != b for a, b in pairwise(reads))
    return _AxisTotals(
        max(reads), max(ffts), sum(reads), sum(ffts), sum(decoded), count, changes, reads[0] != reads[-1]
    )
