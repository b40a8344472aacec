"""Estimates from samples of a volume: fill value, background, intensity scale.

Samples come one at a time, and one number per voxel is kept of them: the memory that this takes is a term of the plan
(`bigdeconv.planning.memory.driver_terms`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SCALE_PERCENTILE = 99.9
BACKGROUND_PERCENTILE = 0.5


def detect_fill(samples: Iterable[np.ndarray], fill_value: float) -> float | None:
    """Return ``fill_value`` if voxels of that stored value were not measured, else None.

    Fused mosaics are padded with a value far below their dark level, while photon counts have zeros next to ones.  The value
    counts as fill if it occurs and the darkest 0.1 % of the other voxels exceed it by four counts and by one percent of the
    brightest.

    Parameters
    ----------
    samples : iterable of ndarray
        Stored counts of one dtype.
    fill_value : float
        Fill value of the stored array.

    Examples
    --------
    >>> import numpy as np
    >>> detect_fill([np.array([0, 0, 100, 103, 99, 250])], 0.0)
    0.0
    >>> detect_fill([np.array([0, 0, 1, 3, 2, 1])], 0.0) is None
    True
    """
    pieces, n_fill = [], 0
    for counts in samples:
        finite = np.isfinite(counts)
        is_fill = finite & (counts == fill_value)
        n_fill += int(np.count_nonzero(is_fill))
        pieces.append(counts[finite & ~is_fill].ravel())
    others = np.concatenate(pieces)
    del pieces
    if others.size == 0 or n_fill == 0:
        return None
    some = others[:: max(others.size // 1_000_000, 1)].astype(np.float64)
    darkest, brightest = np.percentile(others, [0.1, SCALE_PERCENTILE], overwrite_input=True)
    # The smallest step between two stored values is what one photon, or one bit, counts there.
    steps = np.diff(np.unique(some))
    least = 4.0 if others.dtype.kind in "iu" else 0.0
    gap = max(
        0.01 * abs(float(brightest) - fill_value), 4 * float(steps.min(initial=np.inf)) if steps.size else 0.0, least
    )
    return float(fill_value) if float(darkest) - fill_value > gap else None


def estimate_background(samples: Iterable[tuple[np.ndarray, np.ndarray]], radius_zyx: Sequence[int]) -> float:
    """Estimate the background from the darkest PSF-smoothed regions, biased low.

    An overestimate removes dim structure, an underestimate leaves a haze: hence a low percentile of the smoothed photons, over
    voxels whose surroundings are mostly valid.

    Parameters
    ----------
    samples : iterable of (ndarray, ndarray of bool)
        Photons ``z y x`` and the mask of valid voxels.
    radius_zyx : sequence of int
        Radius of the PSF's support in voxels; the smoothing is half as wide as the support.

    Returns
    -------
    float
        Photons per voxel, 0 or more.
    """
    size = [max(int(r), 1) for r in radius_zyx]

    def smoothed(photons: np.ndarray, valid: np.ndarray) -> np.ndarray:
        share = ndimage.uniform_filter(valid.astype(np.float32), size, mode="nearest")
        mean = ndimage.uniform_filter(np.where(valid, photons, 0).astype(np.float32), size, mode="nearest")
        inside = share > 0.5
        kept: np.ndarray = mean[inside] / share[inside]
        return kept

    return float(max(_percentile((smoothed(*sample) for sample in samples), BACKGROUND_PERCENTILE), 0.0))


def estimate_scale(samples: Iterable[tuple[np.ndarray, np.ndarray]], background: float) -> float:
    """Return the 99.9th percentile of the valid voxels above the background; 0 for a constant or empty volume.

    Parameters
    ----------
    samples : iterable of (ndarray, ndarray of bool)
        Photons ``z y x`` and the mask of valid voxels.
    background : float
        Photons.

    Returns
    -------
    float
        Photons.
    """
    top = _percentile((photons[valid] for photons, valid in samples), SCALE_PERCENTILE)
    return float(max(top - background, 0.0))


def _percentile(pieces: Iterable[np.ndarray], percentile: float) -> np.floating | float:
    """Return a percentile of all values together, in their own precision; 0 where there are none."""
    collected = list(pieces)
    values = np.concatenate(collected) if collected else np.empty(0, np.float32)
    del collected
    return np.percentile(values, percentile, overwrite_input=True) if values.size else 0.0
