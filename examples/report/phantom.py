"""The samples of the report and their images by a many-view Airyscan detector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bigdeconv import PSF, psf, simulation
from bigdeconv.calibration.numbers import SignalLevels, UserOverrides, signal_levels
from bigdeconv.numerics.camera import Camera

VOXEL_ZYX_UM = (0.12, 0.04, 0.04)
TUBES = {"outer_radius_um": (0.04, 0.2), "sigma_um": 0.06, "fluorophores_per_um": 4000.0}
"""Of the kind that the prior was trained on, as in the report."""
TUBES_PER_UM3 = 0.2
PHOTONS = 100.0
"""In the brightest voxel of the brightest view; with so many, RL is best near 20 iterations."""
LOW_PHOTONS = 20.0
"""Of the calibration sample."""
BACKGROUND = 1.0
"""Photons per voxel and view."""
APERTURES = {"wide": 1.1, "narrow": 1.4}
TUNING_SEED = 1000
"""Added to a seed for a phantom on which strengths are chosen; no reported phantom has such a seed."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A known object, its image, and the numbers that a reconstruction may use."""

    truth: np.ndarray
    """``z y x``."""
    psf: PSF
    photons: np.ndarray
    """Measurements, ``v z y x``."""
    levels: SignalLevels
    """Background and intensity scale in photons, estimated from the measurements."""

    @property
    def scale(self) -> float:
        """Intensity scale in photons."""
        return self.levels.intensity_scale


def microtubules(seed: int, views: int, zyx_shape: tuple[int, int, int]) -> Scene:
    """Return pseudo-microtubules through the narrow PSFs: a part of a sample that goes on outside."""
    narrow = _psf("narrow", views)
    around = narrow.radius_zyx
    sample = tubes(seed, tuple(n + 2 * r for n, r in zip(zyx_shape, around, strict=True)))
    seen = tuple(slice(r, r + n) for n, r in zip(zyx_shape, around, strict=True))
    return _acquired(sample, narrow, PHOTONS, seed, seen)


def calibration(seed: int, views: int, zyx_shape: tuple[int, int, int], aperture: str) -> Scene:
    """Return the calibration sample with few photons; ``aperture`` is wide or narrow and names the PSFs."""
    target = simulation.calibration_target(zyx_shape, VOXEL_ZYX_UM)
    return _acquired(target, _psf(aperture, views), LOW_PHOTONS, seed)


def tubes(seed: int, zyx_shape: tuple[int, int, int]) -> np.ndarray:
    """Return a volume of pseudo-microtubules with maximum 1, ``z y x``."""
    extent_um = [n * v for n, v in zip(zyx_shape, VOXEL_ZYX_UM, strict=True)]
    count = max(round(TUBES_PER_UM3 * float(np.prod(extent_um))), 4)
    specimen = simulation.tubes(seed, extent_um, count=(count, count + 2), **TUBES)
    return simulation.sample(specimen, zyx_shape, VOXEL_ZYX_UM, peak_one=True)


def _psf(aperture: str, views: int) -> PSF:
    return PSF(psf.airyscan(voxel_zyx_um=VOXEL_ZYX_UM, na=APERTURES[aperture], n_views=views), VOXEL_ZYX_UM)


def _acquired(sample, detector, photons, seed, seen=(slice(None),) * 3) -> Scene:
    """Return the scene of the part of a sample that is seen."""
    counts = simulation.acquire(sample, detector.views, photons=photons, background=BACKGROUND, seed=seed)
    data = np.ascontiguousarray(counts[(slice(None), *seen)], dtype=np.float32)
    valid = np.ones(data.shape[1:], bool)
    levels = signal_levels(lambda: ((view, valid) for view in data), detector, Camera(), UserOverrides())
    return Scene(np.ascontiguousarray(sample[seen]), detector, data, levels)
