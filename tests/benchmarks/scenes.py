"""Known objects and their noisy images, for benchmarks that need a truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bigdeconv import PSF, psf, simulation
from bigdeconv.numerics.estimation import estimate_scale

VOXEL_ZYX_UM = (0.15, 0.08, 0.08)
BACKGROUND = 3.0
"""Photons per voxel."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A known object, its image, and the numbers that a reconstruction may use."""

    truth: np.ndarray
    """``z y x``, maximum 1."""
    psf: PSF
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
    """Return solid balls of several sizes and brightnesses with soft overlaps."""
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


def puncta(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Return points."""
    return simulation.objects("puncta", seed, shape, VOXEL_ZYX_UM)


def mesh(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Return a network of thin filaments."""
    return simulation.objects("mesh", seed, shape, VOXEL_ZYX_UM)


PHANTOMS = {"tubes": tubes, "balls": balls, "target": target, "puncta": puncta, "mesh": mesh}


def image(truth: np.ndarray, photons: float, seed: int, psf_zyx: np.ndarray | None = None) -> Scene:
    """Return the noisy image of an object, blurred (by a narrow PSF if none is given) and on a background."""
    psf_zyx = psf.gaussian((1.2, 1.3, 1.3)) if psf_zyx is None else psf_zyx
    counts = simulation.acquire(truth, psf_zyx, photons=photons, background=BACKGROUND, seed=seed).astype(np.float32)
    scale = estimate_scale([(counts, np.ones(truth.shape, bool))], BACKGROUND)
    return Scene(truth, PSF(psf_zyx[None], VOXEL_ZYX_UM), counts, scale)
