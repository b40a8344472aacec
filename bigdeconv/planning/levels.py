"""Levels of the pyramid: shapes, chunks and shards, and the levels that the task of a core writes itself."""

from __future__ import annotations

from dataclasses import dataclass

from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import Grid, Triple, ceil_div, round_up, triple, zyx_text

MAX_SHARD = 512
"""Longest edge of a shard that is chosen."""


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the output pyramid."""

    factors: Triple
    """Ratio of its voxel size to that of level 0, per axis."""
    shape: Triple
    chunk_shape: Triple
    shard_shape: Triple | None
    in_task: bool
    """Whether the task of a core writes its part of this level; otherwise a later pass writes it."""

    @property
    def write_shape(self) -> Triple:
        """Smallest part that only one writer may touch: the shard, or the chunk where there are no shards."""
        return self.shard_shape or self.chunk_shape


def plan_levels(
    grid: Grid, chunk: Triple, shard: Triple | None, voxel_zyx_um: tuple[float, float, float], n_levels: int | None
) -> tuple[Level, ...]:
    """Return the levels of the pyramid over a grid of cores.

    Parameters
    ----------
    grid : Grid
        Cores of the region.
    chunk, shard : tuple of int, z y x
        Of level 0; None for no shards.
    voxel_zyx_um : tuple of float
        Voxel size of level 0 in µm.
    n_levels : int or None
        Number of levels; None to stop when a level fits in a chunk.
    """
    levels = [Level((1, 1, 1), grid.zyx_shape, chunk, shard, in_task=True)]
    while n_levels is None or len(levels) < n_levels:
        step = _next_step(levels[-1], voxel_zyx_um, chunk, only_if_large=n_levels is None)
        if step == (1, 1, 1):
            break
        levels.append(_coarser(levels[-1], step, grid))
    return tuple(levels)


def _next_step(level: Level, voxel_zyx_um: tuple[float, ...], chunk: Triple, *, only_if_large: bool) -> Triple:
    """Return the factors to the next level: halve the axes that are not yet much coarser than the finest one."""
    if only_if_large and all(n <= c for n, c in zip(level.shape, chunk, strict=True)):
        return (1, 1, 1)
    voxels = [v * f for v, f in zip(voxel_zyx_um, level.factors, strict=True)]
    halving = [n > 1 for n in level.shape]
    finest = min((v for v, h in zip(voxels, halving, strict=True) if h), default=0.0)
    return triple(2 if h and v < 2 * finest * 0.999 else 1 for h, v in zip(halving, voxels, strict=True))


def _coarser(fine: Level, step: Triple, grid: Grid) -> Level:
    factors = triple(f * s for f, s in zip(fine.factors, step, strict=True))
    shape = triple(ceil_div(n, s) for n, s in zip(fine.shape, step, strict=True))
    chunk = triple(min(c, n) for c, n in zip(fine.chunk_shape, shape, strict=True))
    unit = _shrunk_unit(fine, step, shape, chunk, grid) if fine.in_task else None
    in_task = unit is not None
    if unit is None:
        unit = triple(min(round_up(n, c), round_up(MAX_SHARD // 2, c)) for n, c in zip(shape, chunk, strict=True))
    return Level(factors, shape, chunk, None if fine.shard_shape is None else unit, in_task)


def _shrunk_unit(fine: Level, step: Triple, shape: Triple, chunk: Triple, grid: Grid) -> Triple | None:
    """Return write units of which a core's part of the level holds whole ones, or None.

    Shards may shrink with the level as long as they stay multiples of the chunk; chunks that are files of their own cannot.
    An axis with one core has nobody to share a unit with.
    """
    unit: list[int] = []
    for axis in range(3):
        part, odd = divmod(fine.write_shape[axis], step[axis])
        factor = fine.factors[axis] * step[axis]
        whole, rest = divmod(grid.core_shape[axis], factor)
        if grid.counts[axis] == 1:
            unit.append(round_up(min(shape[axis], MAX_SHARD), chunk[axis]))
        elif fine.shard_shape is None and not rest and whole % chunk[axis] == 0:
            unit.append(chunk[axis])
        elif fine.shard_shape is not None and not odd and part % chunk[axis] == 0:
            unit.append(part)
        else:
            return None
    return triple(unit)


def choose_shard(given: Triple | None, grid: Grid, chunk: Triple) -> Triple:
    """Return shards that a core holds a whole number of: those given, or as large as they may be.

    Raises
    ------
    InvalidInputError
        If the given shards do not fit.
    """
    core = grid.core_shape
    if given is not None:
        # A shard that spans the region ends with its last chunk.
        shards = triple(s if s <= n else round_up(n, k) for s, n, k in zip(given, grid.zyx_shape, chunk, strict=True))
        for s, c, k, n in zip(shards, core, chunk, grid.counts, strict=True):
            if s % k or (n > 1 and c % s):
                raise InvalidInputError(
                    f"shards: got {zyx_text(given)} for cores of {zyx_text(core)} and chunks of {zyx_text(chunk)}; "
                    "a shard must be a multiple of the chunk and a core a multiple of the shard."
                )
        return shards
    return triple(_shard_edge(c, k) for c, k in zip(core, chunk, strict=True))


def _shard_edge(core: int, chunk: int) -> int:
    whole = round_up(core, chunk) // chunk
    most = max(MAX_SHARD // chunk, 1)
    return chunk * max(d for d in range(1, whole + 1) if whole % d == 0 and (d <= most or d == 1))
