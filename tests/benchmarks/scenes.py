"""Known objects and their noisy images, for benchmarks that need a truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bigdeconv import intensity, psf, simulation

VOXEL_ZYX_UM = (0.15, 0.08, 0.08)
BACKGROUND = 3.0
"""Photons per voxel."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A known object, its image, and what a reconstruction may know."""

    truth: np.ndarray
    """``z y x``, maximum 1."""
    kernel: np.ndarray
    photons: np.ndarray
    """The image, ``z y x``, float32."""
    scale: float
    """Intensity scale in photons, estimated from the image."""


def tubes(shape: tuple[int, int, int], seed: int, **options: object) -> np.ndarray:
    """Return microtubules."""
    extent_um = [n * v for n, v in zip(shape, VOXEL_ZYX_UM, strict=True)]
    specimen = simulation.tubes(seed, extent_um, **{"count": (4, 6), "outer_radius_um": (0.1, 0.25), **options})
    return simulation.sample(specimen, shape, VOXEL_ZYX_UM, peak_one=True)


def balls(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Return solid balls of several sizes and brightnesses with soft rims."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, np.float32)
    places = np.indices(shape).transpose(1, 2, 3, 0) * np.array(VOXEL_ZYX_UM)
    for _ in range(8):
        centre = rng.uniform(0.1, 0.9, 3) * np.multiply(shape, VOXEL_ZYX_UM)
        inside = np.linalg.norm(places - centre, axis=-1) < rng.uniform(0.1, 0.6)
        truth = np.maximum(truth, inside * np.float32(rng.uniform(0.3, 1.0)))
    soft = ndimage.gaussian_filter(truth, 0.5)
    return soft / soft.max()


def target(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Return lines, rings and blocks, the same for every seed."""
    del seed
    return simulation.calibration_target(shape, VOXEL_ZYX_UM)


PHANTOMS = {"tubes": tubes, "balls": balls, "target": target}


def image(truth: np.ndarray, photons: float, seed: int, kernel: np.ndarray | None = None) -> Scene:
    """Return what a microscope makes of an object: blurred (by a narrow PSF if none is given), on a background, with noise."""
    kernel = psf.gaussian((1.2, 1.3, 1.3)) if kernel is None else kernel
    counts = simulation.acquire(truth, kernel, photons=photons, background=BACKGROUND, seed=seed).astype(np.float32)
    scale = intensity.estimate_scale([counts], [np.ones(truth.shape, bool)], BACKGROUND)
    return Scene(truth, kernel, counts, scale)
