"""One-sided blending: ramps that sum to one, cut into the part a block owns and the rims its neighbours wait for.

Along one axis, in the first ``2·blend`` voxels of a core::

    weight of the block itself     0 ↗ 1
    weight of its lower neighbour  1 ↘ 0      = 1 − the former, exactly

so in three dimensions the products of a block and its at most seven lower neighbours sum to one by construction.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from bigdeconv.geometry import Box, Triple, triple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DIRECTIONS: tuple[Triple, ...] = tuple(triple(d) for d in product((0, 1), repeat=3) if any(d))
"""From a block to its upper neighbours."""


def ramp(width: int) -> np.ndarray:
    """Return the rising weights of a ramp, float32; the falling ones are ``1 - ramp``."""
    return ((np.arange(width, dtype=np.float32) + np.float32(0.5)) / np.float32(max(width, 1))).astype(np.float32)


def weigh_(kept: np.ndarray, core_shape: Triple, blend: Triple, has_lower: Triple) -> np.ndarray:
    """Multiply a block's kept voxels by its ramps, in place.

    Parameters
    ----------
    kept
        ``z y x``: the core and the overlap past its upper faces.
    core_shape
        Extent of the core; what ``kept`` has beyond it is overlap.
    has_lower
        1 on each axis with a lower neighbour.
    """
    for axis in range(3):
        weights = np.ones(kept.shape[axis], np.float32)
        up = ramp(2 * blend[axis])
        if has_lower[axis]:
            # A last core may be shorter than the ramp: it takes the part that it has room for.
            weights[: min(len(up), core_shape[axis])] = up[: core_shape[axis]]
        overlap = kept.shape[axis] - core_shape[axis]
        weights[core_shape[axis] :] = 1 - up[:overlap]
        kept *= weights.reshape([-1 if a == axis else 1 for a in range(3)])
    return kept


def rim_boxes(kept_shape: Triple, core_shape: Triple) -> Iterable[tuple[Triple, Box]]:
    """Yield each direction that has overlap, with the box of its rim inside the kept voxels."""
    for direction in DIRECTIONS:
        start = triple(c if d else 0 for c, d in zip(core_shape, direction, strict=True))
        stop = triple(k if d else c for k, c, d in zip(kept_shape, core_shape, direction, strict=True))
        box = Box(start, stop)
        if box.size:
            yield direction, box


def merge_(core: np.ndarray, rims: Mapping[Triple, np.ndarray]) -> np.ndarray:
    """Add to a weighted core the rims of its lower neighbours, in place and in a fixed order.

    Parameters
    ----------
    core
        ``z y x``.
    rims
        By the direction in which they came; each lies at the core's lower corner.
    """
    for direction in sorted(rims):
        rim = rims[direction]
        core[tuple(slice(0, n) for n in rim.shape)] += rim
    return core
