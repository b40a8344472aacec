"""One block on a worker: solve it, merge it, write it.

The way of a block: one read, one upload, all iterations on the device, one download, rims to scratch, lower rims in, one write
of whole shards per level.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdeconv import blending
from bigdeconv.calibration import prepare_views
from bigdeconv.deconvolution import make_blur, make_prior, restore
from bigdeconv.errors import BigdeconvError
from bigdeconv.geometry import Box, Triple, triple
from bigdeconv.pyramid import downsample
from bigdeconv.storage import ledger
from bigdeconv.storage.arrays import read_box, read_region, write_region

if TYPE_CHECKING:
    from collections.abc import Callable

    from bigdeconv.blocks import BlockTask
    from bigdeconv.engine.recipe import Recipe
    from bigdeconv.physics.convolution import Blur
    from bigdeconv.priors import Prior

PYRAMID_SLAB = 32
"""Planes of a coarse level that are made at a time."""
_PLACES = BoundedSemaphore(2)
_SOLVER = Lock()
_WRITER = Lock()
"""What a worker does at a time, however many threads it has: it restores one block with all of its cores, while the next one is
read and the last one is written."""


@dataclass(frozen=True, slots=True)
class Solved:
    """A block between its two tasks: it waits on its worker for the rims of its lower neighbours."""

    core: np.ndarray | None
    """Weighted core in photons, ``z y x`` float32; None for a block without data."""
    stats: dict[str, Any]


def solve_block(recipe: Recipe, task: BlockTask) -> Solved:
    """Read a block, restore it, leave its rims in the scratch folder and return its core.

    Raises
    ------
    BigdeconvError
        If the estimate is not finite.
    """
    estimate, weights, stats = restore_window(recipe, task.timepoint, task.channel, task.read, task.core)
    del weights  # the next block's may come now
    if estimate is None:
        _leave_empty_rims(recipe, task)
        return Solved(None, stats)
    if not np.isfinite(estimate).all():
        raise BigdeconvError(f"block {task.index}: the estimate is not finite; lower --tau or raise --background.")
    laps = _Laps(stats)
    kept = estimate[task.keep.relative_to(task.read.start).slices].astype(np.float32)
    has_lower = triple(int(p > 0) for p in task.position)
    blending.weigh_(kept, task.core.shape, recipe.plan.blend, has_lower)
    for direction, box in blending.rim_boxes(kept.shape, task.core.shape):
        ledger.write_rim(recipe.scratch, task.index, direction, kept[box.slices])
    core = np.ascontiguousarray(kept[Box.of_shape(task.core.shape).slices])
    laps.end("blend")
    return Solved(core, stats)


def restore_window(
    recipe: Recipe, timepoint: int, channel: int, window: Box, owned: Box
) -> tuple[np.ndarray | None, np.ndarray | None, dict[str, Any]]:
    """Read a data window and restore it when it is its turn.

    A GPU's host turns counts into photons beside the window that the GPU is at.  On a CPU, where that takes the same cores,
    it would only take memory.

    Returns
    -------
    tuple
        The estimate ``z y x`` in photons, None where there are no data; the weights of the data ``v z y x``, None where all are
        1 or none is looked at; and statistics: seconds, and what was left out of ``owned``.
    """
    settings, validity = recipe.channels[channel].settings, recipe.channels[channel].validity
    on_cpu = settings.torch_device == "cpu"
    stats: dict[str, Any] = {}
    with _PLACES, ExitStack() as turn:
        laps = _Laps(stats)
        counts = _counts(recipe, timepoint, channel, window)
        laps.end("read")
        if validity.fill is not None and all((view == validity.fill).all() for view in counts):
            n = len(counts) * owned.size
            return None, None, stats | {"voxels": n, "fill": n, "skipped": True}
        if on_cpu:
            turn.enter_context(_SOLVER)
            laps.end("wait")
        of_owned = owned.relative_to(window.start).slices
        photons, weights, voxel_counts = prepare_views(counts, recipe.camera, validity, of_owned)
        del counts
        stats |= {name: n for name, n in asdict(voxel_counts).items() if n}
        laps.end("read")
        if weights is not None and not weights.any():
            return None, weights, stats | {"skipped": True}
        if not on_cpu:
            turn.enter_context(_SOLVER)
            laps.end("wait")
        blur, prior = _tools(recipe, channel, window.shape)
        estimate = restore(photons, weights, blur, prior, settings)
        laps.end("solve")
        return estimate, weights, stats


def _counts(recipe: Recipe, timepoint: int, channel: int, window: Box) -> np.ndarray:
    """Return the counts of a data window, ``v z y x``."""
    counts = read_box(recipe.volume, window, timepoint=timepoint, channel=channel, view_axis=recipe.view_axis)
    return counts if recipe.view_axis else counts[None]


def merge_block(recipe: Recipe, task: BlockTask, solved: Solved, rims: dict[Triple, int]) -> dict[str, Any]:
    """Add the rims of the lower neighbours to a core and write it, with the levels that it determines alone.

    Parameters
    ----------
    rims
        Index of the neighbour whose rim comes in, by its direction.

    Returns
    -------
    dict
        The block's statistics, for the ledger.
    """
    with _WRITER:
        stats = dict(solved.stats)
        laps = _Laps(stats)
        incoming = {d: ledger.read_rim(recipe.scratch, index, d) for d, index in rims.items()}
        core = np.zeros(task.core.shape, np.float32) if solved.core is None else solved.core.copy()
        blending.merge_(core, incoming)
        stats["max"] = round(float(core.max()), 4)
        laps.end("blend")
        stored, clipped = to_stored(core, recipe, task.channel)
        del core
        if solved.core is not None or any(rim.size for rim in incoming.values()):
            _write_levels(recipe, task, stored)
        laps.end("write")
        return {"block": task.index, **stats} | ({"clipped": clipped} if clipped else {})


def to_stored(core: np.ndarray, recipe: Recipe, channel: int) -> tuple[np.ndarray, int]:
    """Convert photons to what is stored, in the memory of ``core``; return it with the number of clipped voxels."""
    dtype = np.dtype(recipe.output_dtype)
    core *= np.float32(recipe.channels[channel].output_scale)
    if dtype.kind == "f":
        return (core if recipe.keep_bits is None else _round_mantissa(core, recipe.keep_bits)), 0
    limit = np.iinfo(dtype).max
    np.rint(core, out=core)
    clipped = int(np.count_nonzero(core > limit))
    return np.clip(core, 0, limit, out=core).astype(dtype), clipped


def downsample_region(recipe: Recipe, level: int, timepoint: int, channel: int, box: Box) -> None:
    """Make one write unit of a coarse level from the stored level above it.

    ``timepoint`` and ``channel`` count in the output.
    """
    fine, coarse = recipe.plan.levels[level - 1], recipe.plan.levels[level]
    step = triple(c // f for c, f in zip(coarse.factors, fine.factors, strict=True))
    result = np.empty(box.shape, recipe.output_dtype)
    for z in range(0, box.shape[0], PYRAMID_SLAB):
        part = Box(
            (box.start[0] + z, *box.start[1:]), (min(box.start[0] + z + PYRAMID_SLAB, box.stop[0]), *box.stop[1:])
        )
        source = Box(
            triple(a * s for a, s in zip(part.start, step, strict=True)),
            triple(min(b * s, n) for b, s, n in zip(part.stop, step, fine.shape, strict=True)),
        )
        result[z : z + part.shape[0]] = downsample(_read(recipe, level - 1, timepoint, channel, source), step)
    _write(recipe, level, timepoint, channel, box, result)


def read_stored(recipe: Recipe, level: int, timepoint: int, channel: int, box: Box) -> np.ndarray:
    """Return what is stored of a box ``z y x`` of a level; ``timepoint`` and ``channel`` count in the input."""
    plan = recipe.plan
    return _read(recipe, level, plan.timepoints.index(timepoint), plan.channels.index(channel), box)


def _leave_empty_rims(recipe: Recipe, task: BlockTask) -> None:
    """Tell the upper neighbours that nothing comes from here: an empty rim, which adds nothing."""
    for direction, _ in blending.rim_boxes(task.keep.shape, task.core.shape):
        ledger.write_rim(recipe.scratch, task.index, direction, np.empty((0, 0, 0), np.float32))


def _write_levels(recipe: Recipe, task: BlockTask, stored: np.ndarray) -> None:
    plan = recipe.plan
    timepoint, channel = plan.timepoints.index(task.timepoint), plan.channels.index(task.channel)
    core = task.core.relative_to(plan.roi.start)
    for n, level in enumerate(plan.levels):
        if not level.in_task:
            break
        if n:
            finer = plan.levels[n - 1].factors
            stored = downsample(stored, triple(c // f for c, f in zip(level.factors, finer, strict=True)))
        _write(recipe, n, timepoint, channel, core.coarsen(level.factors), stored)


def _read(recipe: Recipe, level: int, timepoint: int, channel: int, box: Box) -> np.ndarray:
    return read_region(recipe.output, str(level), _index(recipe, timepoint, channel, box)).reshape(box.shape)


def _write(recipe: Recipe, level: int, timepoint: int, channel: int, box: Box, data: np.ndarray) -> None:
    index = _index(recipe, timepoint, channel, box)
    shape = [i.stop - i.start for i in index if isinstance(i, slice)]
    write_region(recipe.output, str(level), index, data.reshape(shape))


def _index(recipe: Recipe, timepoint: int, channel: int, box: Box) -> tuple[int | slice, ...]:
    places: dict[str, int | slice] = {"t": timepoint, "c": channel}
    places |= dict(zip("zyx", box.slices, strict=True))
    return tuple(places[axis] for axis in recipe.output_axes)


def _round_mantissa(values: np.ndarray, keep_bits: int) -> np.ndarray:
    """Round float32 to ``keep_bits`` bits of mantissa, to nearest with ties to even; the rest become zeros that compress."""
    drop = 23 - keep_bits
    if drop <= 0:
        return values
    bits = values.astype(np.float32).view(np.uint32)
    half = np.uint32((1 << (drop - 1)) - 1) + ((bits >> np.uint32(drop)) & np.uint32(1))
    return ((bits + half) & np.uint32(~((1 << drop) - 1) & 0xFFFFFFFF)).view(np.float32)


class _Laps:
    """Adds to a block's statistics the seconds that went into each part of the work."""

    def __init__(self, stats: dict[str, Any]) -> None:
        self._stats, self._since = stats, time.perf_counter()

    def end(self, part: str) -> None:
        """Count the time since the last call, or since the start, for a part."""
        now, key = time.perf_counter(), f"{part}_seconds"
        self._stats[key] = round(self._stats.get(key, 0.0) + now - self._since, 3)
        self._since = now


_TOOLS: dict[str, tuple[Any, Any]] = {}


def _tools(recipe: Recipe, channel: int, window_shape: Triple) -> tuple[Blur, Prior | None]:
    """Return OTFs and prior, built once per worker for as long as channel and window stay the same."""
    settings, kernels = recipe.channels[channel].settings, recipe.channels[channel].kernels
    blur = _kept("blur", (recipe.token, channel, window_shape), lambda: make_blur(kernels, window_shape, settings))
    prior = _kept("prior", (recipe.token, channel), lambda: make_prior(settings, recipe.model))
    return blur, prior


def _kept(name: str, key: object, make: Callable[[], Any]) -> Any:
    """Return the tool of a name, made anew where it was made for another key.

    Blocks of one interior shape come one after the other, so one entry is enough, and memory stays bounded.
    """
    entry = _TOOLS.get(name)
    if entry is None or entry[0] != key:
        _TOOLS.pop(name, None)
        del entry
        entry = (key, make())
        _TOOLS[name] = entry
    return entry[1]
