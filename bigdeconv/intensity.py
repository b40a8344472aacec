"""From counts to photons, and from photons to the numbers that all blocks share: which voxels are data, background, scale.

Every rule here looks at one voxel and its neighbours and at numbers decided once for the whole volume, so that two blocks that
share a voxel judge it alike (but for the outermost voxels of a halo, whose neighbours are not read).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Sequence

SCALE_PERCENTILE = 99.9
BACKGROUND_PERCENTILE = 0.5
HOT_SIGNIFICANCE = 8.0
"""Standard deviations of photon noise by which a hot voxel exceeds what its neighbours allow."""


@dataclass(frozen=True, slots=True)
class Camera:
    """How counts become photons: ``max((counts − offset)·gain + read_noise², 0)``."""

    offset: float = 0.0
    """Counts without light."""
    gain: float = 1.0
    """Photons per count."""
    read_noise: float = 0.0
    """Standard deviation of the read noise in photons; its variance is added so that the noise stays Poisson-like."""

    def photons(self, counts: np.ndarray) -> np.ndarray:
        """Return photons, float32 (float64 for float64 counts), never negative; what is not finite becomes 0."""
        photons: np.ndarray = counts.astype(np.float64 if counts.dtype == np.float64 else np.float32)
        photons -= self.offset
        photons *= self.gain
        photons += self.read_noise**2
        np.nan_to_num(photons, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        np.maximum(photons, 0, out=photons)
        return photons

    def background(self, counts: float) -> float:
        """Return the photons that a background of ``counts`` above the offset gives."""
        return counts * self.gain + self.read_noise**2


@dataclass(frozen=True, slots=True)
class Validity:
    """What makes a voxel no datum; decided once for the whole volume."""

    fill: float | None = None
    """Stored value that stands for "nothing was measured here"."""
    hot_ratio: float | None = None
    """How many times a voxel may exceed its brightest neighbour (both above background) given the PSF."""
    background: float = 0.0
    """Photons."""
    intensity_scale: float = 1.0
    """Photons."""


@dataclass(frozen=True, slots=True)
class VoxelCounts:
    """How many voxels were left out or mended, and why."""

    voxels: int = 0
    not_finite: int = 0
    fill: int = 0
    hot: int = 0
    negative: int = 0

    def __add__(self, other: VoxelCounts) -> VoxelCounts:
        return VoxelCounts(*(getattr(self, f) + getattr(other, f) for f in self.__slots__))


def data_mask(counts: np.ndarray, photons: np.ndarray, validity: Validity) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return three ``z y x`` masks of voxels that are no data: not finite, fill, hot."""
    not_finite = ~np.isfinite(counts) if counts.dtype.kind == "f" else np.zeros(counts.shape, bool)
    fill = np.zeros(counts.shape, bool) if validity.fill is None else counts == validity.fill
    hot = np.zeros(counts.shape, bool) if validity.hot_ratio is None else _hot(photons, validity)
    return not_finite, fill, hot


def _hot(photons: np.ndarray, validity: Validity) -> np.ndarray:
    """Find single voxels that no point source can have made: brighter than the PSF allows next to their neighbours.

    The neighbours count as at least a tenth of the intensity scale, and the excess must be significant against photon
    noise, so that neither dim noise nor a sharp structure is taken for a defect.
    """
    assert validity.hot_ratio is not None
    b, ratio = validity.background, validity.hot_ratio
    least = ratio * 0.1 * validity.intensity_scale
    candidates = photons > b + least + HOT_SIGNIFICANCE * np.sqrt(least + b)
    _keep_peaks_(candidates, photons)
    bright = np.nonzero(candidates)
    peak, brightest = photons[bright], _brightest_neighbours(photons, bright)
    allowed = np.maximum(ratio * (brightest.astype(np.float64) - b), least)
    excess = (allowed + HOT_SIGNIFICANCE * np.sqrt(allowed + b)).astype(photons.dtype)
    hot = np.zeros(photons.shape, bool)
    hot[bright] = (peak >= brightest) & (peak - b > excess)
    return hot


def _keep_peaks_(candidates: np.ndarray, photons: np.ndarray) -> None:
    """Drop the voxels that a next neighbour along an axis exceeds: in a bright object, indices of all would fill the memory."""
    for axis in range(3):
        kept, value = np.moveaxis(candidates, axis, 0), np.moveaxis(photons, axis, 0)
        kept[1:] &= value[1:] >= value[:-1]
        kept[:-1] &= value[:-1] >= value[1:]


def _brightest_neighbours(photons: np.ndarray, index: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return the brightest of the 26 neighbours of some voxels: a maximum filter of all would take half of the preparation."""
    padded = np.pad(photons, 1, mode="reflect" if min(photons.shape) > 1 else "constant")
    brightest = np.zeros(len(index[0]), photons.dtype)
    for step in product(range(3), repeat=3):
        if step != (1, 1, 1):
            np.maximum(brightest, padded[tuple(i + s for i, s in zip(index, step, strict=True))], out=brightest)
    return brightest


def hot_ratio(kernels: np.ndarray) -> float | None:
    """Return three times the ratio of the PSFs' peaks to their brightest neighbours, or None where a PSF is one voxel.

    Parameters
    ----------
    kernels
        ``v z y x``.
    """
    ratios = []
    for kernel in kernels:
        around = np.pad(kernel, 1)
        peak = np.unravel_index(int(np.argmax(around)), around.shape)
        neighbours = around[tuple(slice(i - 1, i + 2) for i in peak)].copy()
        neighbours[1, 1, 1] = 0
        if neighbours.max() <= 0:
            return None
        ratios.append(float(kernel.max() / neighbours.max()))
    return 3.0 * max(ratios)


def detect_fill(samples: Sequence[np.ndarray], fill_value: float) -> float | None:
    """Tell whether ``fill_value`` in the stored counts means "no datum": it is set apart from every measured count.

    A fused mosaic is padded with zeros far below its dark level; photon counts have zeros next to ones.  The value counts as
    fill only if it occurs and the darkest 0.1 % of the other voxels stay away from it by four counts and by one percent of
    the brightest.
    """
    values = np.concatenate([s[np.isfinite(s)].ravel() for s in samples])
    others = values[values != fill_value]
    if others.size == 0 or others.size == values.size:
        return None
    darkest, brightest = np.percentile(others, [0.1, SCALE_PERCENTILE])
    others = others[:: max(others.size // 1_000_000, 1)]
    # The smallest step between two stored values is what one photon, or one bit, counts there.
    steps = np.diff(np.unique(others.astype(np.float64)))
    least = 4.0 if values.dtype.kind in "iu" else 0.0
    gap = max(
        0.01 * abs(float(brightest) - fill_value), 4 * float(steps.min(initial=np.inf)) if steps.size else 0.0, least
    )
    return float(fill_value) if float(darkest) - fill_value > gap else None


def estimate_background(samples: Sequence[np.ndarray], masks: Sequence[np.ndarray], radius_zyx: Sequence[int]) -> float:
    """Estimate the background from the lowest PSF-smoothed regions, biased low.

    An overestimate removes dim structure, an underestimate leaves a haze: so a low percentile of the smoothed photons is
    taken, over voxels whose surroundings are mostly data.

    Parameters
    ----------
    samples, masks
        Photons ``z y x`` and where they are data.
    radius_zyx
        Radius of the PSF box in voxels; the smoothing is as wide as half of it.
    """
    size = [max(int(r), 1) for r in radius_zyx]
    smoothed = []
    for photons, mask in zip(samples, masks, strict=True):
        share = ndimage.uniform_filter(mask.astype(np.float32), size, mode="nearest")
        mean = ndimage.uniform_filter(np.where(mask, photons, 0).astype(np.float32), size, mode="nearest")
        inside = share > 0.5
        smoothed.append(mean[inside] / share[inside])
    values = np.concatenate(smoothed) if smoothed else np.empty(0, np.float32)
    return float(max(np.percentile(values, BACKGROUND_PERCENTILE), 0.0)) if values.size else 0.0


def estimate_scale(samples: Sequence[np.ndarray], masks: Sequence[np.ndarray], background: float) -> float:
    """Return the 99.9th percentile of the data above the background, in photons; 0 for a constant or empty volume."""
    if not samples:
        return 0.0
    values = np.concatenate([p[m] for p, m in zip(samples, masks, strict=True)])
    return float(max(np.percentile(values, SCALE_PERCENTILE) - background, 0.0)) if values.size else 0.0
