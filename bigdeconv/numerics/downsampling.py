"""Downsampling: every voxel of a coarser level is the exact mean of the voxels of the finer level that it covers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from bigdeconv.geometry import Triple


def downsample(fine: np.ndarray, step: Triple) -> np.ndarray:
    """Return the means over cells of voxels.

    At an odd upper face a cell is the mean of the voxels that exist.  Integers are rounded to nearest, ties upwards; the sum is
    exact for dtypes up to 32 bits.

    Parameters
    ----------
    fine : ndarray, ``z y x``
        Values of the finer level.
    step : tuple of int
        Voxels per cell, 1 or 2 on each axis.

    Returns
    -------
    ndarray, ``z y x``
        In the dtype of ``fine``.

    Examples
    --------
    >>> downsample(np.array([[[1, 2, 5]]], np.uint8), (1, 1, 2))
    array([[[2, 5]]], dtype=uint8)
    """
    sums = fine.astype(_accumulator(fine.dtype))
    counts: list[np.ndarray] = []
    for axis, factor in enumerate(step):
        n = sums.shape[axis]
        if factor == 1:
            counts.append(np.ones(n, sums.dtype))
            continue
        even, odd = (np.take(sums, range(start, n, 2), axis=axis) for start in (0, 1))
        head = [slice(None)] * 3
        head[axis] = slice(0, odd.shape[axis])
        even[tuple(head)] += odd
        sums = even
        counts.append(np.minimum(2, n - 2 * np.arange(sums.shape[axis])).astype(sums.dtype))
    cells = counts[0][:, None, None] * counts[1][:, None] * counts[2]
    if fine.dtype.kind in "iu":
        return np.asarray((2 * sums + cells) // (2 * cells), fine.dtype)
    return np.asarray(sums / cells, fine.dtype)


def _accumulator(dtype: np.dtype) -> type[np.generic]:
    """Return a type that holds twice the sum of eight voxels."""
    if dtype.kind not in "iu":
        return np.float64
    return np.int32 if dtype.itemsize <= 2 else np.int64
