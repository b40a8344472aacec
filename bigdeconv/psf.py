"""Point-spread functions: measured ones made ready for the solvers, and two simple models.

Arrays are ``z y x``, or ``v z y x`` for several views of one object; lengths are in µm.  A voxel holds the integral of the
PSF over that voxel: `gaussian` samples so, and `prepare` resamples so, hence both agree at any voxel size.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from scipy.interpolate import CubicSpline
from scipy.special import ndtr

from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import triple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from bigdeconv.geometry import Triple

    Floats = npt.NDArray[np.float64]
    Mask = npt.NDArray[np.bool_]
    TripleUm = tuple[float, float, float]

KEPT_ENERGY = 0.999
"""Share of the energy of every view that the cropped box keeps."""

OFF_CENTRE_VOXELS = 0.25
"""A reference point nearer than this to the centre voxel stays where it is."""

VOXEL_TOLERANCE = 0.01
"""Relative difference of two voxel sizes that is taken for rounding in the metadata."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedPSF:
    """PSFs on the data's grid, centred, cropped and scaled; made by `prepare`."""

    kernels: npt.NDArray[np.float32]
    """``v z y x`` (v = 1 for one view), odd extents, centre at ``shape // 2``; the mean view sums to 1."""
    voxel_zyx_um: TripleUm
    """Voxel size of the kernels and of the data."""
    notes: tuple[str, ...]
    """One sentence for each thing that was mended."""

    @property
    def radius_zyx(self) -> Triple:
        """Voxels from the centre to the faces of the box."""
        return triple(n // 2 for n in self.kernels.shape[1:])


def prepare(
    psf: npt.ArrayLike,
    *,
    voxel_zyx_um: Sequence[float],
    psf_voxel_zyx_um: Sequence[float] | None = None,
    volume_zyx_shape: Triple | None = None,
    name: str = "PSF",
) -> PreparedPSF:
    """Make PSFs ready for the solvers: background, voxel size, centre, box and scale, in this order.

    Shift and scale are common to all views: where a detector element sits and how much light it gets is information.

    Parameters
    ----------
    psf
        ``y x`` (one plane), ``z y x`` or ``v z y x``; any real type and scale.
    voxel_zyx_um
        Voxel size of the data in µm.
    psf_voxel_zyx_um
        Voxel size of the PSF in µm; that of the data where not given.
    volume_zyx_shape
        Shape of the volume; where given, a PSF wider than it in y or x is refused (a volume thinner in z works).
    name
        What messages call the PSF.

    Returns
    -------
    PreparedPSF
        A PSF that is already centred, non-negative and on the data's grid is only cropped and scaled, without a note.

    Raises
    ------
    InvalidInputError
        If the array is no PSF (dimensions, type, NaN or infinity, all zero, negative sum, an empty view), a voxel size is
        not three positive numbers, or the PSF is wider than the volume.
    """
    notes: list[str] = []
    voxel_um = _checked_voxel(voxel_zyx_um, "voxel_zyx_um")
    psf_voxel_um = voxel_um if psf_voxel_zyx_um is None else _checked_voxel(psf_voxel_zyx_um, "psf_voxel_zyx_um")
    views = _checked(psf, name)
    views = _without_background(views, name, notes)
    views = _without_negatives(views, name, notes)
    views = _resampled(views, psf_voxel_um, voxel_um, name, notes)
    views = _centred(views, name, notes)
    views = _cropped(views)
    if volume_zyx_shape is not None:
        _refuse_wider(views, volume_zyx_shape, name)
    kernels = np.ascontiguousarray(views / (views.sum() / len(views)), dtype=np.float32)
    return PreparedPSF(kernels, voxel_um, tuple(notes))


def gaussian(sigma_zyx: Sequence[float], *, truncate: float = 4.0) -> npt.NDArray[np.float32]:
    """Return a Gaussian PSF, each voxel the integral over its volume.

    Parameters
    ----------
    sigma_zyx
        Standard deviations in voxels; 0 gives one voxel on that axis.
    truncate
        Half extent in standard deviations.

    Returns
    -------
    ndarray
        ``z y x``, odd extents, sums to 1.

    Raises
    ------
    InvalidInputError
        If a standard deviation is negative or not finite, or there are not three.
    """
    sigmas = tuple(float(s) for s in sigma_zyx)
    if len(sigmas) != 3 or not all(isfinite(s) and s >= 0 for s in sigmas):
        raise InvalidInputError(f"sigma_zyx: got {sigmas!r}, allowed are three numbers of voxels that are 0 or more")
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
    """Return a model of the PSFs of an Airyscan detector: one view per element of a hexagonal array.

    The view of an element at d is the product of the excitation and of the detection displaced by d and blurred by the
    element's area (Sheppard 1988, "Super-resolution in confocal imaging").  Both are three-dimensional Gaussians with the
    non-paraxial widths of Zhang, Zerubia and Olivo-Marin (2007), "Gaussian approximations of fluorescence microscope
    point-spread function models", and so is the product: displaced by ``d σ_ex² / (σ_ex² + σ_det²)`` and weighted by
    ``exp(-|d|² / 2(σ_ex² + σ_det²))``.  Side lobes and the widening with defocus are left out.

    Parameters
    ----------
    voxel_zyx_um
        Voxel size in µm.
    na, excitation_um, emission_um, refractive_index
        Numerical aperture (below the refractive index), wavelengths in vacuum in µm, index of the immersion.
    n_views
        Number of elements, taken outwards from the centre.
    pitch_airy
        Distance of neighbouring elements in Airy units, 1.22 λ_em / NA.
    truncate
        Half extent of the box in standard deviations, beyond the view that is displaced most.

    Returns
    -------
    ndarray
        ``v z y x``, odd extents, view 0 central; the mean view sums to 1 and the views keep their relative weights.

    Raises
    ------
    InvalidInputError
        If the aperture is not between 0 and the refractive index, there is no view, or a voxel size is not positive.
    """
    voxel_um = np.asarray(_checked_voxel(voxel_zyx_um, "voxel_zyx_um"))
    if not 0 < na < refractive_index:
        raise InvalidInputError(
            f"na: got {na}, allowed is more than 0 and less than refractive_index={refractive_index}"
        )
    if n_views < 1:
        raise InvalidInputError(f"n_views: got {n_views}, allowed is 1 or more")
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
    # Rounded so that the order within a ring does not hang on the last bit.
    order = np.lexsort((np.arctan2(points[:, 1], points[:, 2]).round(9), (points**2).sum(axis=1).round(9)))
    return points[order[:count]]


def _checked_voxel(voxel_zyx_um: Sequence[float], argument: str) -> TripleUm:
    values = tuple(float(v) for v in voxel_zyx_um)
    if len(values) != 3 or not all(isfinite(v) and v > 0 for v in values):
        raise InvalidInputError(
            f"{argument}: got {values!r}, allowed are three positive lengths in µm in the order z,y,x"
        )
    return values


def _checked(psf: npt.ArrayLike, name: str) -> Floats:
    """Return the PSF as ``v z y x`` in float64, or refuse what is no PSF."""
    array: npt.NDArray[Any] = np.asarray(psf)
    if array.dtype.kind not in "biuf":
        raise InvalidInputError(
            f"{name}: got values of type {array.dtype}, allowed are real numbers; convert the array first"
        )
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise InvalidInputError(
            f"{name}: got an array of shape {array.shape}, allowed is y x, z y x or v z y x without an empty axis; "
            "select one channel and one time point of it"
        )
    views = array.astype(np.float64).reshape((1,) * (4 - array.ndim) + array.shape)
    bad = np.count_nonzero(~np.isfinite(views))
    if bad:
        raise InvalidInputError(
            f"{name}: got NaN or infinity in {bad} voxels, allowed are finite numbers; mend these voxels"
        )
    for number, view in enumerate(views):
        what = name if len(views) == 1 else f"{name} of view {number}"
        if not view.any():
            raise InvalidInputError(f"{what}: got only zeros, allowed is a PSF with light in it; check the file")
        if view.sum() <= 0:
            raise InvalidInputError(
                f"{what}: got a sum of {view.sum():.6g}, allowed is a positive one; subtract less background from it"
            )
    return views


def _without_background(views: Floats, name: str, notes: list[str]) -> Floats:
    """Subtract a constant pedestal from every view and drop the noise that it leaves; leave genuine tails alone."""
    mean = views.mean(axis=0)
    regions = _border_regions(mean.shape)
    if not _has_pedestal(mean, regions):
        return views
    # Each view has the dark level of its own detector; that a pedestal is there at all was decided on their mean.
    levels = np.array([max(min(_medians(view, regions)), 0.0) for view in views])
    cleaned: Floats = views - levels[:, None, None, None]
    notes.append(f"{name}: a constant background of {levels.mean():.4g} was subtracted.")
    support, limit = _support(cleaned.mean(axis=0))
    if support is not None:
        cleaned = np.where(support, cleaned, 0.0)
        notes.append(f"{name}: voxels that do not stand out of the noise (below {limit:.3g}) were set to 0.")
    return cleaned


def _has_pedestal(mean: Floats, regions: list[Mask]) -> bool:
    """Tell a constant pedestal from the genuine tails of a tightly cropped PSF.

    A pedestal is the same in the corners as in the middle of the faces; tails fall off with distance, and corners are
    farther.  At a crop at w standard deviations a Gaussian's corners are at about ``exp(-w²/2)`` of its faces, so that three
    regions agree within 20 % only for w < 0.7; but such a box is all peak: more than half of its voxels lie above the
    middle between border and maximum, where a bead on a background has a few.  Below 1 % of the energy a pedestal does
    not matter, and cutting it would cut the far tails of computed PSFs instead.
    """
    levels = sorted(_medians(mean, regions))
    if len(levels) < 3:  # a line has ends, but no corners to compare them with
        return False
    lowest = levels[0]
    high = np.count_nonzero(mean >= 0.5 * (lowest + mean.max()))
    return bool(lowest * mean.size > 0.01 * mean.sum() and lowest >= 0.8 * levels[2] and high <= 0.25 * mean.size)


def _border_regions(zyx_shape: tuple[int, ...]) -> list[Mask]:
    """Return masks of the outermost shell: its corners, then the middle of its faces on each axis."""
    # Distance from the centre along an axis, 1 at the faces; an axis of one voxel has none.
    reach = [np.abs(np.linspace(-1, 1, n)) if n > 1 else np.array([0.75]) for n in zyx_shape]
    grids = np.meshgrid(*reach, indexing="ij", sparse=True)
    full = np.zeros(zyx_shape, dtype=bool)
    corners = full | _all([g >= 0.5 for g in grids]) & _shell(zyx_shape)
    masks = [corners]
    for axis, here in enumerate(grids):
        others = [g <= 0.75 if g.size == 1 else g <= 0.5 for other, g in enumerate(grids) if other != axis]
        masks.append(full | _all([here == 1, *others]))
    return [m for m in masks if m.any()]


def _all(masks: list[Mask]) -> Mask:
    result = masks[0]
    for mask in masks[1:]:
        result = result & mask
    return result


def _shell(zyx_shape: tuple[int, ...]) -> Mask:
    """Mark the outermost voxels; an axis of one voxel has no faces."""
    shell = np.ones(zyx_shape, dtype=bool)
    shell[tuple(slice(1, -1) if n > 1 else slice(None) for n in zyx_shape)] = False
    return shell


def _medians(view: Floats, regions: list[Mask]) -> list[float]:
    return [float(np.median(view[region])) for region in regions]


def _support(mean: Floats) -> tuple[Mask | None, float]:
    """Return the voxels around the peak that stand out of the noise, and the limit; None where noise does not matter.

    Clipping at 0 keeps the positive half of the noise, 0.4 standard deviations per voxel: over the 10⁶ voxels of a real
    bead stack that was five times the light of the bead.
    """
    smooth = ndimage.gaussian_filter(mean, [1.0 if n > 1 else 0.0 for n in mean.shape])
    noise = 1.4826 * float(np.median(np.abs(mean - smooth)[_shell(mean.shape)]))
    if 0.4 * noise * mean.size <= (1 - KEPT_ENERGY) * np.clip(mean, 0, None).sum():
        return None, 0.0
    # Smoothing divides white noise by 3.5 (2-D) or 6.6 (3-D), so this is 7 or 13 of its standard deviations.  What is above
    # is no noise, but may be a slope of the background or another bead: hence the component of the peak.
    limit = 2 * noise
    labels, _ = ndimage.label(smooth > limit)
    return labels == labels[np.unravel_index(smooth.argmax(), smooth.shape)], limit


def _without_negatives(views: Floats, name: str, notes: list[str]) -> Floats:
    negative = -views[views < 0].sum()
    if negative == 0:
        return views
    share = negative / views[views > 0].sum()
    if share > 1 - KEPT_ENERGY:
        notes.append(f"{name}: negative voxels, {share:.2%} of the energy, were set to 0.")
    return np.clip(views, 0, None)


def _resampled(views: Floats, old_um: TripleUm, new_um: TripleUm, name: str, notes: list[str]) -> Floats:
    """Bring the PSF to the data's voxel size, the centre voxel staying the centre voxel."""
    axes = [a for a in range(3) if abs(new_um[a] / old_um[a] - 1) > VOXEL_TOLERANCE and views.shape[a + 1] > 1]
    if not axes:
        return views
    views = _boxed(views, [n // 2 for n in views.shape[1:]])
    for axis in axes:
        views = _rebinned(views, axis + 1, new_um[axis] / old_um[axis])
    notes.append(f"{name}: resampled from voxels of {_in_um(old_um)} to the data's {_in_um(new_um)} (z,y,x).")
    return views


def _rebinned(views: Floats, axis: int, ratio: float) -> Floats:
    """Integrate over voxels that are ``ratio`` times as wide: differences of the splined cumulative sum.

    The sum of an axis is kept exactly, and where voxels become wider this integral is the filter against aliasing.
    """
    n = views.shape[axis]
    zero = np.zeros_like(views.take([0], axis=axis))
    cumulative = np.concatenate([zero, np.cumsum(views, axis=axis)], axis=axis)
    spline = CubicSpline(np.arange(n + 1.0), cumulative, axis=axis, bc_type="natural")
    # The last new voxel covers the last old face; the small number keeps 2.0000001 from becoming 3.
    radius = max(ceil(0.5 * n / ratio - 0.5 - 1e-6), 0)
    edges = 0.5 * n + (np.arange(2 * radius + 2) - radius - 0.5) * ratio
    fine = np.diff(spline(np.clip(edges, 0, n)), axis=axis)
    return np.clip(fine, 0, None)  # a spline swings a little below 0 beside sharp edges


def _centred(views: Floats, name: str, notes: list[str]) -> Floats:
    """Move the reference point to the centre voxel, all views together, without losing a voxel at the faces."""
    centre = np.array([n // 2 for n in views.shape[1:]])
    offset = _reference_point(views.mean(axis=0)) - centre
    offset[np.abs(offset) <= OFF_CENTRE_VOXELS] = 0
    whole = np.rint(offset).astype(int)
    fraction = offset - whole
    fraction[np.abs(fraction) < 0.01] = 0  # an exact shift by whole voxels is worth more than a hundredth of one
    moved = _boxed(views, centre + whole)
    if fraction.any():
        # One more voxel of zeros, so that what moves out of the faces stays.
        rim = [(int(f != 0),) * 2 for f in fraction]
        moved = np.pad(moved, [(0, 0), *rim])
        moved = np.stack([ndimage.shift(view, -fraction, order=3, mode="constant") for view in moved]).clip(0, None)
    if offset.any():
        z, y, x = 0.0 - offset
        notes.append(f"{name}: moved by {z:.2f},{y:.2f},{x:.2f} voxels (z,y,x) to the centre, all views alike.")
    return moved


def _reference_point(mean: Floats) -> Floats:
    """Return the centroid z y x of what rises above half of the maximum.

    The rise is the weight: with equal weights, voxels that enter or leave at the threshold move the point by 0.25 voxels.
    """
    rise = np.clip(mean - 0.5 * mean.max(), 0, None)
    marginals = [rise.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return np.array([m @ np.arange(m.size) / m.sum() for m in marginals])


def _boxed(views: Floats, centre: Sequence[int] | npt.NDArray[np.int_]) -> Floats:
    """Pad with zeros to the smallest box with odd extents around ``centre`` (z y x) that keeps every voxel."""
    pads = [(0, 0)]
    for n, c in zip(views.shape[1:], centre, strict=True):
        radius = max(int(c), n - 1 - int(c))
        pads.append((radius - int(c), radius - (n - 1 - int(c))))
    return np.pad(views, pads)


def _cropped(views: Floats) -> Floats:
    """Crop to the box about the centre that keeps `KEPT_ENERGY` of every view; each axis may lose the same share."""
    axes = [a for a in (1, 2, 3) if views.shape[a] > 1]
    box = [slice(None)] * 4
    for axis in axes:
        marginal = views.sum(axis=tuple(a for a in (1, 2, 3) if a != axis))
        radius = marginal.shape[1] // 2
        # rings[:, r]: light at distance r on both sides; outside[:, r]: light beyond it.
        rings = marginal[:, radius:] + np.pad(marginal[:, :radius][:, ::-1], [(0, 0), (1, 0)])
        outside = np.cumsum(rings[:, ::-1], axis=1)[:, ::-1] - rings
        allowed = (1 - KEPT_ENERGY) / len(axes) * marginal.sum(axis=1)
        kept = int(np.argmax((outside <= allowed[:, None]).all(axis=0)))
        box[axis] = slice(radius - kept, radius + kept + 1)
    return views[tuple(box)]


def _refuse_wider(views: Floats, volume_zyx_shape: Triple, name: str) -> None:
    extent, allowed = views.shape[2:], tuple(volume_zyx_shape)[1:]
    if any(a > b for a, b in zip(extent, allowed, strict=True)):
        raise InvalidInputError(
            f"{name}: got a PSF of {extent[0]},{extent[1]} voxels (y,x) after cropping to {KEPT_ENERGY:.1%} of its energy, "
            f"allowed is at most the volume's {allowed[0]},{allowed[1]}; check the voxel sizes, or crop the PSF"
        )


def _in_um(voxel_um: TripleUm) -> str:
    return ",".join(f"{v:g}" for v in voxel_um) + " µm"
