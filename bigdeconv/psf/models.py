"""Simple PSF models; a voxel holds the integral of the PSF over its volume."""

from __future__ import annotations

from math import ceil, isfinite
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr

from bigdeconv.errors import InvalidInputError
from bigdeconv.psf.voxels import checked_voxel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]


def gaussian(sigma_zyx: Sequence[float], *, truncate: float = 4.0) -> npt.NDArray[np.float32]:
    """Return a Gaussian PSF.

    Parameters
    ----------
    sigma_zyx : sequence of float
        Standard deviations in voxels; 0 gives an extent of one voxel on that axis.
    truncate : float
        Half extent in standard deviations.

    Returns
    -------
    ndarray, ``z y x``
        float32, odd extents, sum 1.

    Raises
    ------
    InvalidInputError
        If a standard deviation is negative or not finite, or there are not three.

    Examples
    --------
    >>> gaussian((0, 0, 0.5)).round(3)
    array([[[0.001, 0.157, 0.683, 0.157, 0.001]]], dtype=float32)
    """
    sigmas = tuple(float(s) for s in sigma_zyx)
    if len(sigmas) != 3 or not all(isfinite(s) and s >= 0 for s in sigmas):
        raise InvalidInputError(f"sigma_zyx: got {sigmas!r}; expected three numbers of voxels, each 0 or more.")
    z, y, x = (_bell(s, 0.0, ceil(max(truncate * s - 0.5, 0.0))) for s in sigmas)
    product: Floats = z[:, None, None] * y[:, None] * x
    return np.asarray(product / product.sum(), dtype=np.float32)


def airyscan(
    *,
    voxel_zyx_um: Sequence[float],
    na: float = 1.4,
    excitation_um: float = 0.488,
    emission_um: float = 0.52,
    refractive_index: float = 1.518,
    n_views: int = 32,
    pitch_airy: float = 0.2,
    truncate: float = 4.0,
) -> npt.NDArray[np.float32]:
    """Return a model of the PSFs of an Airyscan detector, one view per element of a hexagonal array.

    The PSF of an element at d is the product of the excitation and of the detection, displaced by d and blurred by the area of
    the element (Sheppard 1988, "Super-resolution in confocal imaging").  Both are three-dimensional Gaussians with the
    non-paraxial widths of Zhang, Zerubia and Olivo-Marin (2007), "Gaussian approximations of fluorescence microscope
    point-spread function models".  So is the product, displaced by ``d σ_ex² / (σ_ex² + σ_det²)`` and weighted by
    ``exp(-|d|² / 2(σ_ex² + σ_det²))``.  The model has no side lobes, and its width does not grow with defocus.

    Parameters
    ----------
    voxel_zyx_um : sequence of float
        Voxel size in µm.
    na : float
        Numerical aperture, below the refractive index.
    excitation_um, emission_um : float
        Wavelengths in vacuum in µm.
    refractive_index : float
        Refractive index of the immersion.
    n_views : int
        Number of elements, counted outwards from the centre.
    pitch_airy : float
        Distance of neighbouring elements in Airy units, 1.22 λ_em / NA.
    truncate : float
        Half extent in standard deviations beyond the centre of the view that is displaced most.

    Returns
    -------
    ndarray, ``v z y x``
        float32, odd extents, view 0 central; the mean view has sum 1 and the views keep their relative weights.

    Raises
    ------
    InvalidInputError
        If the aperture is not between 0 and the refractive index, there is no view, or a voxel size is not positive.

    Examples
    --------
    >>> views = airyscan(voxel_zyx_um=(0.15, 0.04, 0.04), n_views=7)
    >>> views.shape
    (7, 9, 15, 15)
    """
    voxel_um = np.asarray(checked_voxel(voxel_zyx_um, "voxel_zyx_um"))
    if not 0 < na < refractive_index:
        raise InvalidInputError(
            f"na: got {na}; expected more than 0 and less than refractive_index={refractive_index}."
        )
    if n_views < 1:
        raise InvalidInputError(f"n_views: got {n_views}; expected 1 or more.")
    pitch_um = pitch_airy * 1.22 * emission_um / na
    element_variance = 5 / 72 * pitch_um**2  # of a uniform hexagon of this width across the flats, per axis
    excitation = _widefield_variances_um2(na, excitation_um, refractive_index)
    detection = _widefield_variances_um2(na, emission_um, refractive_index) + np.array([0.0, *(element_variance,) * 2])
    sigma_zyx = np.sqrt(excitation * detection / (excitation + detection)) / voxel_um
    elements_um = _hexagonal_zyx(n_views) * pitch_um
    shifts_zyx = elements_um * excitation / (excitation + detection) / voxel_um
    weights = np.exp(-0.5 * (elements_um**2 / (excitation + detection)).sum(axis=1))
    radii = np.ceil(truncate * sigma_zyx + np.abs(shifts_zyx).max(axis=0) - 0.5).astype(int)
    z, y, x = (
        np.stack([_bell(sigma, shift, radius) for shift in shifts])
        for sigma, shifts, radius in zip(sigma_zyx, shifts_zyx.T, radii, strict=True)
    )
    views = np.einsum("v,vz,vy,vx->vzyx", weights, z, y, x)
    return np.asarray(views / (views.sum() / n_views), dtype=np.float32)


def _bell(sigma: float, shift: float, radius: int) -> Floats:
    """Integrate a unit Gaussian at ``shift`` over the voxels from ``-radius`` to ``radius``."""
    edges = np.arange(-radius, radius + 2) - 0.5 - shift
    return np.diff(ndtr(edges / sigma)) if sigma > 0 else np.diff((edges > 0).astype(np.float64))


def _widefield_variances_um2(na: float, wavelength_um: float, refractive_index: float) -> Floats:
    """Return the variances z y x of the non-paraxial 3-D widefield Gaussian of Zhang et al. (2007)."""
    wavenumber = 2 * np.pi * refractive_index / wavelength_um
    c = np.sqrt(1 - (na / refractive_index) ** 2)
    lateral = 7 * (1 - c**1.5) / (4 - 7 * c**1.5 + 3 * c**3.5)
    axial = 175 * (1 - c**1.5) ** 2 / (6 * (4 * c**5 - 25 * c**3.5 + 42 * c**2.5 - 25 * c**1.5 + 4))
    return np.array([axial, lateral, lateral]) / wavenumber**2


def _hexagonal_zyx(count: int) -> Floats:
    """Return the ``count`` points of a hexagonal lattice of unit pitch that are nearest to the origin, ``n 3``."""
    reach = np.arange(-count, count + 1) if count < 8 else np.arange(-ceil(count**0.5) - 1, ceil(count**0.5) + 2)
    rows, columns = (a.ravel() for a in np.meshgrid(reach, reach, indexing="ij"))
    points = np.stack([np.zeros(rows.size), rows * np.sqrt(0.75), columns + 0.5 * rows], axis=1)
    # Rounded so that the order within a ring does not depend on the last bit.
    order = np.lexsort((np.arctan2(points[:, 1], points[:, 2]).round(9), (points**2).sum(axis=1).round(9)))
    return points[order[:count]]
