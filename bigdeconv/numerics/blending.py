"""One-sided blending: ramps that sum to one, applied to a block's core and to the overlap slabs for its upper neighbours.

Along one axis, in the first ``2·blend`` voxels of a core::

    ramp of the block itself     0 ↗ 1
    ramp of its lower neighbour  1 ↘ 0      = 1 − the former, exactly

so in three dimensions the products of the ramps of a block and its at most seven lower neighbours sum to one by construction.
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
    """Return a rising ramp; the falling one is ``1 - ramp``.

    Parameters
    ----------
    width : int
        Voxels.

    Returns
    -------
    ndarray, ``width``
        float32, between 0 and 1.

    Examples
    --------
    >>> ramp(4)
    array([0.125, 0.375, 0.625, 0.875], dtype=float32)
    """
    return ((np.arange(width, dtype=np.float32) + np.float32(0.5)) / np.float32(max(width, 1))).astype(np.float32)


def weigh_(kept: np.ndarray, core_shape: Triple, blend: Triple, has_lower: Triple) -> np.ndarray:
    """Multiply the kept voxels of a block by its ramps, in place.

    Parameters
    ----------
    kept : ndarray, ``z y x``
        The core and the overlap past its upper faces.
    core_shape : tuple of int
        Extent of the core; voxels of ``kept`` beyond it are overlap.
    blend : tuple of int
        Half-width of the ramp on each axis, in voxels.
    has_lower : tuple of int
        1 on each axis with a lower neighbour, else 0.

    Returns
    -------
    ndarray, ``z y x``
        ``kept`` itself.

    Examples
    --------
    A block of 4 voxels with 2 voxels of overlap and a lower neighbour in x:

    >>> weigh_(np.ones((1, 1, 6), np.float32), (1, 1, 4), (0, 0, 1), (0, 0, 1))
    array([[[0.25, 0.75, 1.  , 1.  , 0.75, 0.25]]], dtype=float32)
    """
    for axis in range(3):
        ramps = np.ones(kept.shape[axis], np.float32)
        up = ramp(2 * blend[axis])
        if has_lower[axis]:
            # A last core may be shorter than the ramp: then only the beginning of the ramp fits.
            ramps[: min(len(up), core_shape[axis])] = up[: core_shape[axis]]
        overlap = kept.shape[axis] - core_shape[axis]
        ramps[core_shape[axis] :] = 1 - up[:overlap]
        kept *= ramps.reshape([-1 if a == axis else 1 for a in range(3)])
    return kept


def overlap_boxes(kept_shape: Triple, core_shape: Triple) -> Iterable[tuple[Triple, Box]]:
    """Yield each direction in which a block has overlap, with the box of that overlap slab inside the kept voxels.

    Parameters
    ----------
    kept_shape, core_shape : tuple of int
        Extents of the kept voxels and of the core, z y x.

    Examples
    --------
    >>> list(overlap_boxes((4, 4, 6), (4, 4, 4)))
    [((0, 0, 1), Box(start=(0, 0, 4), stop=(4, 4, 6)))]
    """
    for direction in DIRECTIONS:
        start = triple(c if d else 0 for c, d in zip(core_shape, direction, strict=True))
        stop = triple(k if d else c for k, c, d in zip(kept_shape, core_shape, direction, strict=True))
        box = Box(start, stop)
        if box.size:
            yield direction, box


def merge_(core: np.ndarray, overlaps: Mapping[Triple, np.ndarray]) -> np.ndarray:
    """Add the overlap slabs of the lower neighbours to a weighted core, in place and in a fixed order.

    Parameters
    ----------
    core : ndarray, ``z y x``
        The core, multiplied by its ramps.
    overlaps : mapping of tuple of int to ndarray, ``z y x``
        Overlap slabs, multiplied by their ramps, by the direction from the neighbour to this block.  Each lies at the lower
        corner of the core.

    Returns
    -------
    ndarray, ``z y x``
        ``core`` itself.
    """
    for direction in sorted(overlaps):
        overlap = overlaps[direction]
        core[tuple(slice(0, n) for n in overlap.shape)] += overlap
    return core
