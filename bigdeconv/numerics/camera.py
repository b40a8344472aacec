"""Camera model and data mask: counts become photons, and voxels without data get the weight 0.

Every rule looks at one voxel and its neighbours, and at numbers chosen once for the whole volume.  So two blocks that share a
voxel classify it alike, except for the outermost voxels of a halo, whose neighbours are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

HOT_SIGNIFICANCE = 8.0
"""Excess of a hot voxel over the largest value that its neighbours allow, in standard deviations of the photon noise."""


@dataclass(frozen=True, slots=True)
class Camera:
    """Camera model: ``photons = max((counts − offset)·gain + read_noise², 0)``.

    Examples
    --------
    >>> import numpy as np
    >>> Camera(offset=100.0, gain=0.5).photons(np.array([90, 100, 300], np.uint16))
    array([  0.,   0., 100.], dtype=float32)
    """

    offset: float = 0.0
    """Counts without light."""
    gain: float = 1.0
    """Photons per count."""
    read_noise: float = 0.0
    """Standard deviation of the read noise in photons; its variance is added so that the noise stays Poisson-like."""

    def photons(self, counts: np.ndarray) -> np.ndarray:
        """Convert counts to photons.

        Parameters
        ----------
        counts : ndarray
            Any shape and real dtype.

        Returns
        -------
        ndarray
            Same shape, float32 (float64 for float64 counts), 0 or more; values that are not finite become 0.
        """
        photons: np.ndarray = counts.astype(np.float64 if counts.dtype == np.float64 else np.float32)
        photons -= self.offset
        photons *= self.gain
        photons += self.read_noise**2
        np.nan_to_num(photons, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        np.maximum(photons, 0, out=photons)
        return photons

    def background(self, counts: float) -> float:
        """Convert a background in counts above the offset to photons."""
        return counts * self.gain + self.read_noise**2


@dataclass(frozen=True, slots=True)
class DataMask:
    """Criteria for voxels without data, chosen once for the whole volume."""

    fill: float | None = None
    """Stored value that means "not measured"; None for no such value."""
    hot_ratio: float | None = None
    """Largest ratio of a voxel to its brightest neighbour (both above background) that the PSF allows; None for no limit."""
    background: float = 0.0
    """Photons."""
    intensity_scale: float = 1.0
    """Photons."""


@dataclass(frozen=True, slots=True)
class VoxelCounts:
    """Numbers of voxels that were masked or clipped, by reason."""

    voxels: int = 0
    """All voxels."""
    not_finite: int = 0
    fill: int = 0
    hot: int = 0
    negative: int = 0

    def __add__(self, other: VoxelCounts) -> VoxelCounts:
        return VoxelCounts(*(getattr(self, f) + getattr(other, f) for f in self.__slots__))


def invalid_voxels(
    counts: np.ndarray, photons: np.ndarray, data_mask: DataMask
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the voxels without data.

    Parameters
    ----------
    counts, photons : ndarray, ``z y x``
        Stored values, and the same in photons.
    data_mask : DataMask
        Criteria.

    Returns
    -------
    not_finite, fill, hot : ndarray of bool, ``z y x``
        One mask per reason.
    """
    not_finite = ~np.isfinite(counts) if counts.dtype.kind == "f" else np.zeros(counts.shape, bool)
    fill = np.zeros(counts.shape, bool) if data_mask.fill is None else counts == data_mask.fill
    hot = np.zeros(counts.shape, bool) if data_mask.hot_ratio is None else _hot(photons, data_mask)
    return not_finite, fill, hot


def _hot(photons: np.ndarray, data_mask: DataMask) -> np.ndarray:
    """Find single voxels that are brighter than the PSF allows beside their neighbours.

    Neighbours count as a tenth of the intensity scale or more, and the excess must be significant against photon noise: neither
    dim noise nor a sharp structure is taken for a defect.
    """
    assert data_mask.hot_ratio is not None
    b, ratio = data_mask.background, data_mask.hot_ratio
    least = ratio * 0.1 * data_mask.intensity_scale
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
    """Remove candidates that a nearest neighbour exceeds, in place: indices of a whole bright object would fill the memory."""
    for axis in range(3):
        kept, value = np.moveaxis(candidates, axis, 0), np.moveaxis(photons, axis, 0)
        kept[1:] &= value[1:] >= value[:-1]
        kept[:-1] &= value[:-1] >= value[1:]


def _brightest_neighbours(photons: np.ndarray, index: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return the brightest of the 26 neighbours of each indexed voxel; a filter of all voxels takes as long as the rest."""
    padded = np.pad(photons, 1, mode="reflect" if min(photons.shape) > 1 else "constant")
    brightest = np.zeros(len(index[0]), photons.dtype)
    for step in product(range(3), repeat=3):
        if step != (1, 1, 1):
            np.maximum(brightest, padded[tuple(i + s for i, s in zip(index, step, strict=True))], out=brightest)
    return brightest


def hot_ratio(psf_views: np.ndarray) -> float | None:
    """Return three times the largest ratio of a PSF's peak to its brightest neighbour; None where a PSF is a single voxel.

    Parameters
    ----------
    psf_views : ndarray, ``v z y x``
        PSF of each view.
    """
    ratios = []
    for kernel in psf_views:
        around = np.pad(kernel, 1)
        peak = np.unravel_index(int(np.argmax(around)), around.shape)
        neighbours = around[tuple(slice(i - 1, i + 2) for i in peak)].copy()
        neighbours[1, 1, 1] = 0
        if neighbours.max() <= 0:
            return None
        ratios.append(float(kernel.max() / neighbours.max()))
    return 3.0 * max(ratios)


def prepare_views(
    counts: np.ndarray, camera: Camera, data_mask: DataMask, owned: tuple[slice, ...] = (slice(None),) * 3
) -> tuple[np.ndarray, np.ndarray | None, VoxelCounts]:
    """Convert the counts of a data window to photons and voxel weights.

    Parameters
    ----------
    counts : ndarray, ``v z y x``
        Stored values.
    camera : Camera
    data_mask : DataMask
    owned : tuple of slice
        Part of the window, z y x, whose masked voxels are counted.

    Returns
    -------
    photons : ndarray, ``v z y x``
        float32 (float64 for float64 counts).
    voxel_weights : ndarray or None, ``v z y x``
        0 for voxels without data and 1 for valid ones; None where all are 1.
    voxel_counts : VoxelCounts
        Of ``owned``.
    """
    photons = np.empty(counts.shape, np.float64 if counts.dtype == np.float64 else np.float32)
    weights: np.ndarray | None = None
    total = VoxelCounts()
    for v, view in enumerate(counts):
        photons[v] = camera.photons(view)
        not_finite, fill, hot = invalid_voxels(view, photons[v], data_mask)
        invalid = not_finite | fill | hot
        below = (view < camera.offset) & ~invalid
        total += VoxelCounts(below[owned].size, *(int(mask[owned].sum()) for mask in (not_finite, fill, hot, below)))
        if invalid.any():
            weights = np.ones(counts.shape, np.float32) if weights is None else weights
            weights[v][invalid] = 0
    return photons, weights, total
