"""One block on a worker: solved in one task, merged and written in another.

The path of a block: one read, one upload, all iterations on the device, one download, overlap slabs to scratch, those of the
lower neighbours in, one write of whole shards per level.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigdeconv.errors import BigdeconvError, BudgetError, DamagedOverlapError, InvalidInputError
from bigdeconv.geometry import Box, Triple, triple, zyx_text
from bigdeconv.numerics import blending
from bigdeconv.numerics.camera import prepare_views
from bigdeconv.numerics.downsampling import downsample
from bigdeconv.numerics.restoration import make_prior, restore
from bigdeconv.storage.absent import as_ranges, name_of, numbers_in, read_and_look
from bigdeconv.storage.arrays import files_of_region, read_region, write_region
from bigdeconv.storage.overlaps import absent_from_overlap, read_overlap, write_overlap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bigdeconv.engine.recipe import Recipe
    from bigdeconv.numerics.convolution import Blur
    from bigdeconv.numerics.priors.protocol import Prior
    from bigdeconv.planning.blocks import BlockTask
    from bigdeconv.planning.levels import Level
    from bigdeconv.storage.absent import Range
    from bigdeconv.storage.seals import FileMark

PYRAMID_SLAB = 32
"""Planes of a coarse level that are made at a time."""
# However many threads a worker has, it restores one block at a time with all of its cores, while the next block is read and the
# last one is written.
_WINDOWS = BoundedSemaphore(2)
"""Data windows in memory: the one that is restored and the next."""
_SOLVER = Lock()
_WRITER = Lock()


@dataclass(frozen=True, slots=True)
class Solved:
    """A block between its two tasks: it waits on its worker for the overlap slabs of its lower neighbours."""

    core: np.ndarray | None
    """Weighted core in photons, ``z y x`` float32; None for a block without data."""
    stats: dict[str, Any]


def solve_block(recipe: Recipe, task: BlockTask, require_standing: Callable[[], None] = lambda: None) -> Solved:
    """Read and restore a block, write its overlap slabs to the scratch folder and return its core.

    Parameters
    ----------
    recipe : Recipe
    task : BlockTask
    require_standing : callable
        As for `merge_block`.

    Raises
    ------
    BigdeconvError
        If the estimate is not finite.
    """
    estimate, voxel_weights, stats = restore_window(recipe, task.timepoint, task.channel, task.read, task.core)
    require_standing()
    del voxel_weights  # makes room for those of the next block
    if estimate is None:
        _write_empty_overlaps(recipe, task, stats.get("absent", ()))
        return Solved(None, stats)
    laps = _Laps(stats)
    kept = kept_voxels(estimate, task, recipe.plan.blend)
    for direction, box in blending.overlap_boxes(kept.shape, task.core.shape):
        require_standing()
        write_overlap(recipe.scratch, task.index, direction, kept[box.slices], stats.get("absent", ()))
    core = np.ascontiguousarray(kept[Box.of_shape(task.core.shape).slices])
    laps.end("blend")
    return Solved(core, stats)


def kept_voxels(estimate: np.ndarray, task: BlockTask, blend: Triple) -> np.ndarray:
    """Return the core of a block and the overlap past its upper faces, multiplied by the ramps of the blend.

    Parameters
    ----------
    estimate : ndarray, ``z y x``
        Of the data window, in photons.
    task : BlockTask
    blend : tuple of int, z y x
        Half-width of the ramps.

    Raises
    ------
    BigdeconvError
        If the estimate is not finite.
    """
    if not np.isfinite(estimate).all():
        raise BigdeconvError(f"block {task.index}: the estimate is not finite; lower --tau or raise --background.")
    kept = estimate[task.keep.relative_to(task.read.start).slices].astype(np.float32)
    has_lower = triple(int(p > 0) for p in task.position)
    return blending.weigh_(kept, task.core.shape, blend, has_lower)


def restore_window(
    recipe: Recipe, timepoint: int, channel: int, window: Box, owned: Box
) -> tuple[np.ndarray | None, np.ndarray | None, dict[str, Any]]:
    """Read a data window, and restore it when the worker's solver is free.

    The host of a GPU converts counts to photons while the GPU restores another window.  On a CPU the conversion waits: it would
    compete for the same cores and take memory.

    Parameters
    ----------
    recipe : Recipe
    timepoint, channel : int
        Of the input.
    window : Box
        Data window in voxels of the input level.
    owned : Box
        Part of the window whose masked voxels are counted.

    Returns
    -------
    estimate : ndarray or None, ``z y x``
        Photons; None for a window without data.
    voxel_weights : ndarray or None, ``v z y x``
        None where all are 1, or where nothing but fill was read.
    stats : dict
        Seconds by kind of work, and voxel counts of ``owned``.
    """
    numbers = recipe.channels[channel]
    settings, data_mask = numbers.settings, numbers.data_mask
    on_cpu = settings.device == "cpu"
    stats: dict[str, Any] = {}
    with _WINDOWS, ExitStack() as turn:
        laps = _Laps(stats)
        counts, absent = _counts(recipe, timepoint, channel, window)
        stats |= absent
        laps.end("read")
        if data_mask.fill is not None and all((view == data_mask.fill).all() for view in counts):
            n = len(counts) * owned.size
            return None, None, stats | {"voxels": n, "fill": n, "skipped": True}
        if on_cpu:
            turn.enter_context(_SOLVER)
            laps.end("wait")
        of_owned = owned.relative_to(window.start).slices
        photons, weights, voxel_counts = prepare_views(counts, numbers.camera, data_mask, of_owned)
        del counts
        stats |= {name: n for name, n in asdict(voxel_counts).items() if n}
        laps.end("read")
        if weights is not None and not weights.any():
            return None, weights, stats | {"skipped": True}
        if not on_cpu:
            turn.enter_context(_SOLVER)
            laps.end("wait")
        estimate, memory = _restored(recipe, channel, window, photons, weights)
        stats |= memory
        laps.end("solve")
        return estimate, weights, stats


def _restored(
    recipe: Recipe, channel: int, window: Box, photons: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Restore a window, on a GPU without memory once more after all that is kept for other windows; with a statistic of that."""
    for again in (False, True):
        try:
            estimate = _solved(recipe, channel, window, photons, weights)
        except torch.OutOfMemoryError as error:
            problem = str(error).partition(". ")[0]
        else:
            return estimate, {"out_of_memory": 1} if again else {}
        # Here, since a handled error keeps the arrays of the frames that it passed.
        _TOOLS.clear()
        torch.cuda.empty_cache()
    raise BudgetError(
        f"GPU memory: a window of {zyx_text(window.shape)} voxels does not fit ({problem}); "
        "end what else uses this GPU, or begin anew with a smaller --block-shape."
    )


def _solved(recipe: Recipe, channel: int, window: Box, photons: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    operator, prior = _tools(recipe, channel, window)
    return restore(photons, weights, operator, prior, recipe.channels[channel].settings)


def _counts(recipe: Recipe, timepoint: int, channel: int, window: Box) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the counts of a data window, ``v z y x``, and the files of the input that it lacks, as a statistic."""
    info = recipe.volume
    counts, absent = read_and_look(info, window, timepoint=timepoint, channel=channel, view_axis=recipe.view_axis)
    if absent and recipe.refuses_absent:
        raise InvalidInputError(
            f"input: {name_of(info, absent[0][0])} of {info.location} is absent; restore it, or let absent chunks be fill with "
            "--missing fill."
        )
    return (counts if recipe.view_axis else counts[None]), ({"absent": absent} if absent else {})


def merge_block(
    recipe: Recipe,
    task: BlockTask,
    solved: Solved,
    overlaps: dict[Triple, int],
    require_standing: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Add the overlap slabs of the lower neighbours to a core and write it, with the levels that it determines alone.

    Parameters
    ----------
    recipe : Recipe
    task : BlockTask
    solved : Solved
    overlaps : dict of int
        Index of the neighbour by the direction from which its slab comes.
    require_standing : callable
        Called just before something is written: raises where another attempt has taken the place of this one.

    Returns
    -------
    dict
        Journal record of the block.
    """
    with _WRITER:
        stats = dict(solved.stats)
        laps = _Laps(stats)
        incoming = _incoming(recipe.scratch, overlaps, stats)
        core = np.zeros(task.core.shape, np.float32) if solved.core is None else solved.core.copy()
        blending.merge_(core, incoming)
        stats["max"] = round(float(core.max()), 4)
        laps.end("blend")
        scale = recipe.channels[task.channel].output_scale
        stored, clipped = to_stored(core, np.dtype(recipe.output_dtype), scale, recipe.keep_bits)
        del core
        files: list[FileMark] = []
        if solved.core is not None or any(slab.size for slab in incoming.values()):
            files = _write_levels(recipe, task, stored, require_standing)
        laps.end("write")
        return {"block": task.index, **stats, "files": files} | ({"clipped": clipped} if clipped else {})


def _incoming(scratch: str, overlaps: dict[Triple, int], stats: dict[str, Any]) -> dict[Triple, np.ndarray]:
    """Return the slabs of the lower neighbours, and note the absent files of the input that they come from.

    Raises
    ------
    DamagedOverlapError
        If some are missing or damaged: with all their blocks.
    """
    slabs: dict[Triple, np.ndarray] = {}
    damaged: list[DamagedOverlapError] = []
    absent = list(stats.get("absent", ()))
    for direction, index in overlaps.items():
        try:
            slabs[direction] = read_overlap(scratch, index, direction)
        except DamagedOverlapError as error:
            damaged.append(error)
        else:
            absent += absent_from_overlap(scratch, index, direction)
    if damaged:
        blocks = dict.fromkeys(block for error in damaged for block in error.blocks)
        raise DamagedOverlapError("; ".join(map(str, damaged)), tuple(blocks))
    if absent:
        stats["absent"] = as_ranges(numbers_in(absent))
    return slabs


def to_stored(core: np.ndarray, dtype: np.dtype, output_scale: float, keep_bits: int | None) -> tuple[np.ndarray, int]:
    """Convert photons to stored values, in the memory of ``core``.

    Parameters
    ----------
    core : ndarray, ``z y x``
        Photons, float32.
    dtype : dtype
        Of the output: integers are rounded and clipped.
    output_scale : float
        Factor from photons to stored values.
    keep_bits : int or None
        Mantissa bits to keep of floating point.

    Returns
    -------
    stored : ndarray, ``z y x``
    clipped : int
        Number of clipped voxels.
    """
    core *= np.float32(output_scale)
    if dtype.kind == "f":
        return (core if keep_bits is None else _round_mantissa(core, keep_bits)), 0
    limit = np.iinfo(dtype).max
    np.rint(core, out=core)
    clipped = int(np.count_nonzero(core > limit))
    return np.clip(core, 0, limit, out=core).astype(dtype), clipped


def levels_of(stored: np.ndarray, levels: Sequence[Level]) -> Iterator[np.ndarray]:
    """Yield the levels of the pyramid that a core determines alone, from its stored voxels on."""
    for n, level in enumerate(levels):
        if not level.in_task:
            return
        if n:
            finer = levels[n - 1].factors
            stored = downsample(stored, triple(c // f for c, f in zip(level.factors, finer, strict=True)))
        yield stored


def downsample_region(
    recipe: Recipe,
    level: int,
    timepoint: int,
    channel: int,
    box: Box,
    require_standing: Callable[[], None] = lambda: None,
) -> list[FileMark]:
    """Make one write unit of a coarse level from the next finer stored level, and return the files that it wrote.

    Time point and channel count in the output.
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
    require_standing()
    return _write(recipe, level, timepoint, channel, box, result)


def read_stored(recipe: Recipe, level: int, timepoint: int, channel: int, box: Box) -> np.ndarray:
    """Return the stored values of a box ``z y x`` of a level; time point and channel count in the input."""
    plan = recipe.plan
    return _read(recipe, level, plan.timepoints.index(timepoint), plan.channels.index(channel), box)


def _write_empty_overlaps(recipe: Recipe, task: BlockTask, absent: Sequence[Range]) -> None:
    """Write an empty slab for each upper neighbour: nothing is added there."""
    for direction, _ in blending.overlap_boxes(task.keep.shape, task.core.shape):
        write_overlap(recipe.scratch, task.index, direction, np.empty((0, 0, 0), np.float32), absent)


def _write_levels(
    recipe: Recipe, task: BlockTask, stored: np.ndarray, require_standing: Callable[[], None]
) -> list[FileMark]:
    plan = recipe.plan
    timepoint, channel = plan.timepoints.index(task.timepoint), plan.channels.index(task.channel)
    core = task.core.relative_to(plan.roi.start)
    files: list[FileMark] = []
    for n, values in enumerate(levels_of(stored, plan.levels)):
        require_standing()
        files += _write(recipe, n, timepoint, channel, core.coarsen(plan.levels[n].factors), values)
    return files


def _read(recipe: Recipe, level: int, timepoint: int, channel: int, box: Box) -> np.ndarray:
    return read_region(recipe.output, str(level), _index(recipe, timepoint, channel, box)).reshape(box.shape)


def _write(recipe: Recipe, level: int, timepoint: int, channel: int, box: Box, data: np.ndarray) -> list[FileMark]:
    index = _index(recipe, timepoint, channel, box)
    shape = [i.stop - i.start for i in index if isinstance(i, slice)]
    write_region(recipe.output, str(level), index, data.reshape(shape))
    return files_of_region(recipe.output, str(level), index, syncs=recipe.syncs)


def _index(recipe: Recipe, timepoint: int, channel: int, box: Box) -> tuple[int | slice, ...]:
    places: dict[str, int | slice] = {"t": timepoint, "c": channel}
    places |= dict(zip("zyx", box.slices, strict=True))
    return tuple(places[axis] for axis in recipe.output_axes)


def _round_mantissa(values: np.ndarray, keep_bits: int) -> np.ndarray:
    """Round float32 to ``keep_bits`` bits of mantissa, to nearest with ties to even; the other bits become zeros."""
    drop = 23 - keep_bits
    if drop <= 0:
        return values
    bits = values.astype(np.float32).view(np.uint32)
    half = np.uint32((1 << (drop - 1)) - 1) + ((bits >> np.uint32(drop)) & np.uint32(1))
    return ((bits + half) & np.uint32(~((1 << drop) - 1) & 0xFFFFFFFF)).view(np.float32)


class _Laps:
    """Seconds of each kind of work, added to a block's statistics."""

    def __init__(self, stats: dict[str, Any]) -> None:
        self._stats, self._since = stats, time.perf_counter()

    def end(self, part: str) -> None:
        """Add the time since the last call, or since the start, to a kind of work."""
        now, key = time.perf_counter(), f"{part}_seconds"
        self._stats[key] = round(self._stats.get(key, 0.0) + now - self._since, 3)
        self._since = now


_TOOLS: dict[str, tuple[Any, Any]] = {}


def _tools(recipe: Recipe, channel: int, window: Box) -> tuple[Blur, Prior | None]:
    """Return the operator and the prior of a window; each worker builds them once while channel and window stay alike."""
    settings, psf = recipe.channels[channel].settings, recipe.psfs[channel]
    key = recipe.token, channel
    operator = _cached_tool("operator", (*key, psf.operator_key(window)), lambda: psf.operator(window, settings))
    return operator, _cached_tool("prior", key, lambda: make_prior(settings, recipe.model))


def _cached_tool(name: str, key: object, make: Callable[[], Any]) -> Any:
    """Return the tool of a name, made again if it was made for another key.

    Blocks of one interior shape follow one another, so a cache of one entry suffices and bounds the memory.
    """
    entry = _TOOLS.get(name)
    if entry is None or entry[0] != key:
        _TOOLS.pop(name, None)
        del entry  # releases the old tool before the new one is made
        entry = (key, make())
        _TOOLS[name] = entry
    return entry[1]
