"""Preparation of measured PSFs: background, voxel size, centre, box and scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from bigdeconv.errors import InvalidInputError
from bigdeconv.psf.psf import PSF
from bigdeconv.psf.scaling import rebinned
from bigdeconv.psf.voxels import checked_voxel

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
"""A reference point within this distance of the centre voxel is not moved."""
MAX_VALUE = 1e30
"""Of a voxel, as sums of squares must not overflow."""
MAX_VOXELS = 2**28
"""Voxels of a resampled PSF, all views together."""
VOXEL_TOLERANCE = 0.01
"""Relative difference of two voxel sizes that counts as rounding in the metadata."""


def prepare(
    psf: npt.ArrayLike,
    *,
    voxel_zyx_um: Sequence[float],
    psf_voxel_zyx_um: Sequence[float] | None = None,
    volume_zyx_shape: Triple | None = None,
    name: str = "PSF",
) -> PSF:
    """Prepare PSFs for the solvers: correct background, voxel size, centre, box and scale, in this order.

    All views get the same shift and the same scale: the position of a detector element and its share of the light are
    information.

    Parameters
    ----------
    psf : array_like, ``y x``, ``z y x`` or ``v z y x``
        One plane, one PSF, or one PSF per view; any real type and scale.
    voxel_zyx_um : sequence of float
        Voxel size of the data in µm.
    psf_voxel_zyx_um : sequence of float, optional
        Voxel size of the PSF in µm; by default that of the data.
    volume_zyx_shape : tuple of int, optional
        Shape of the volume.  A PSF wider than the volume in y or x is then refused; in z it may be.
    name : str
        Name of the PSF in messages and notes.

    Returns
    -------
    PSF
        Odd extents, centre at ``shape // 2``; the mean view has sum 1.  A PSF that is already centred, non-negative and on the
        grid of the data is only cropped and scaled, without a note.

    Raises
    ------
    InvalidInputError
        If the array is not a PSF (dimensions, type, NaN or infinity, all zero, negative sum, an empty view), a voxel size is
        not three positive numbers, or the PSF is wider than the volume.

    Examples
    --------
    >>> from bigdeconv.psf import gaussian
    >>> measured = np.pad(100 * gaussian((2, 1.5, 1.5)), ((0, 0), (0, 4), (0, 0)))
    >>> psf = prepare(measured, voxel_zyx_um=(0.2, 0.1, 0.1))
    >>> psf.support_zyx, float(psf.views.sum().round(4))
    ((15, 11, 11), 1.0)
    >>> psf.notes
    ('PSF: moved by 0.00,2.00,0.00 voxels (z,y,x) to the centre, all views alike.',)
    """
    notes: list[str] = []
    voxel_um = checked_voxel(voxel_zyx_um, "voxel_zyx_um")
    psf_voxel_um = voxel_um if psf_voxel_zyx_um is None else checked_voxel(psf_voxel_zyx_um, "psf_voxel_zyx_um")
    views = _checked(psf, name)
    views = _without_background(views, name, notes)
    views = _without_negatives(views, name, notes)
    views = _resampled(views, psf_voxel_um, voxel_um, name, notes)
    views = _centred(views, name, notes)
    views = _cropped(views)
    if volume_zyx_shape is not None:
        _refuse_wider(views, volume_zyx_shape, name)
    scaled = np.ascontiguousarray(views / (views.sum() / len(views)), dtype=np.float32)
    return PSF(scaled, voxel_um, tuple(notes))


def _checked(psf: npt.ArrayLike, name: str) -> Floats:
    """Return the PSF as ``v z y x`` in float64; refuse arrays that cannot be a PSF."""
    array: npt.NDArray[Any] = np.asarray(psf)
    if array.dtype.kind not in "biuf":
        raise InvalidInputError(
            f"{name}: got values of type {array.dtype}; expected real numbers. Convert the array first."
        )
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise InvalidInputError(
            f"{name}: got an array of shape {array.shape}; expected y x, z y x or v z y x without an empty axis. "
            "Select one channel and one time point."
        )
    views = array.astype(np.float64).reshape((1,) * (4 - array.ndim) + array.shape)
    bad = np.count_nonzero(~np.isfinite(views))
    if bad:
        raise InvalidInputError(
            f"{name}: got NaN or infinity in {bad} voxels; expected finite numbers. Replace these voxels."
        )
    if (largest := np.abs(views).max()) > MAX_VALUE:
        raise InvalidInputError(f"{name}: got values up to {largest:g}; expected at most {MAX_VALUE:g}. Scale it.")
    for number, view in enumerate(views):
        label = name if len(views) == 1 else f"{name} of view {number}"
        if not view.any():
            raise InvalidInputError(f"{label}: got only zeros; expected a PSF with positive voxels. Check the file.")
        if view.sum() <= 0:
            raise InvalidInputError(
                f"{label}: got a sum of {view.sum():.6g}; expected a positive one. Subtract less background."
            )
    return views


def _without_background(views: Floats, name: str, notes: list[str]) -> Floats:
    """Subtract a constant pedestal from every view and remove its noise; keep genuine tails."""
    mean = views.mean(axis=0)
    regions = _border_regions(mean.shape)
    if not _has_pedestal(mean, regions):
        return views
    # Each view has the dark level of its own detector; only the test for a pedestal is made on their mean.
    levels = np.array([max(min(_medians(view, regions)), 0.0) for view in views])
    cleaned: Floats = views - levels[:, None, None, None]
    notes.append(f"{name}: a constant background of {levels.mean():.4g} was subtracted.")
    support, limit = _support(cleaned.mean(axis=0))
    if support is not None:
        cleaned = np.where(support, cleaned, 0.0)
        notes.append(f"{name}: voxels within the noise (below {limit:.3g}) were set to 0.")
    return cleaned


def _has_pedestal(mean: Floats, regions: list[Mask]) -> bool:
    """Distinguish a constant pedestal from the genuine tails of a tightly cropped PSF.

    A pedestal is the same in the corners as in the middle of the faces; tails fall off with distance, and corners are
    farther from the centre.  In a crop at w standard deviations the corners of a Gaussian are at about ``exp(-w²/2)`` of its
    faces, so that three regions agree within 20 % only for w < 0.7.  But such a box is all peak: more than half of its voxels are
    above the middle between border and maximum, while of a bead on a background only a few are.  Below 1 % of the energy a
    pedestal does not matter, and subtracting it would remove the far tails of computed PSFs.
    """
    levels = sorted(_medians(mean, regions))
    if len(levels) < 3:  # a line has ends but no corners to compare with
        return False
    lowest = levels[0]
    high = np.count_nonzero(mean >= 0.5 * (lowest + mean.max()))
    return bool(lowest * mean.size > 0.01 * mean.sum() and lowest >= 0.8 * levels[2] and high <= 0.25 * mean.size)


def _border_regions(zyx_shape: tuple[int, ...]) -> list[Mask]:
    """Return masks of the outermost shell: its corners, then the middle of its faces on each axis."""
    # Distance from the centre along an axis, 1 at the faces; an axis of one voxel has no faces.
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
    """Return the voxels around the peak that exceed the noise, and the limit; None where noise does not matter.

    Clipping at 0 keeps the positive half of the noise, 0.4 standard deviations per voxel: over the 10⁶ voxels of a measured
    bead stack this was five times the light of the bead.
    """
    smooth = ndimage.gaussian_filter(mean, [1.0 if n > 1 else 0.0 for n in mean.shape])
    noise = 1.4826 * float(np.median(np.abs(mean - smooth)[_shell(mean.shape)]))
    if 0.4 * noise * mean.size <= (1 - KEPT_ENERGY) * np.clip(mean, 0, None).sum():
        return None, 0.0
    # Smoothing divides white noise by 3.5 (2-D) or 6.6 (3-D), so the limit is 7 or 13 of its standard deviations.  Voxels above
    # it are not noise, but may be a slope of the background or another bead: hence only the component of the peak is kept.
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
    """Resample the PSF to the voxel size of the data; the centre voxel stays the centre voxel."""
    axes = [a for a in range(3) if abs(new_um[a] / old_um[a] - 1) > VOXEL_TOLERANCE and views.shape[a + 1] > 1]
    if not axes:
        return views
    made = views.size * np.prod([old_um[axis] / new_um[axis] for axis in axes])
    if made > MAX_VOXELS:
        raise InvalidInputError(
            f"{name}: resampled from voxels of {_in_um(old_um)} to the data's {_in_um(new_um)} (z,y,x) it would have {made:.2g} "
            f"voxels; expected at most {MAX_VOXELS:.2g}. Give both voxel sizes in µm (--psf-voxel-um, --voxel-um)."
        )
    views = _boxed(views, [n // 2 for n in views.shape[1:]])
    for axis in axes:
        views = rebinned(views, axis + 1, new_um[axis] / old_um[axis])
    notes.append(f"{name}: resampled from voxels of {_in_um(old_um)} to the data's {_in_um(new_um)} (z,y,x).")
    return views


def _centred(views: Floats, name: str, notes: list[str]) -> Floats:
    """Move the reference point to the centre voxel, all views together, without losing a voxel at the faces."""
    centre = np.array([n // 2 for n in views.shape[1:]])
    offset = _reference_point(views.mean(axis=0)) - centre
    offset[np.abs(offset) <= OFF_CENTRE_VOXELS] = 0
    whole = np.rint(offset).astype(int)
    fraction = offset - whole
    fraction[np.abs(fraction) < 0.01] = (
        0  # an exact shift by whole voxels is better than interpolation by a hundredth of one
    )
    moved = _boxed(views, centre + whole)
    if fraction.any():
        # One more voxel of zeros on each side keeps light that moves across the faces.
        border = [(int(f != 0),) * 2 for f in fraction]
        moved = np.pad(moved, [(0, 0), *border])
        moved = np.stack([ndimage.shift(view, -fraction, order=3, mode="constant") for view in moved]).clip(0, None)
    if offset.any():
        z, y, x = 0.0 - offset
        notes.append(f"{name}: moved by {z:.2f},{y:.2f},{x:.2f} voxels (z,y,x) to the centre, all views alike.")
    return moved


def _reference_point(mean: Floats) -> Floats:
    """Return the centroid, z y x, of the values above half of the maximum.

    The weight of a voxel is its excess over that threshold: with equal weights, voxels that cross the threshold would move the
    point by 0.25 voxels.
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
    """Crop to the box around the centre that keeps `KEPT_ENERGY` of every view; each axis may lose the same share."""
    axes = [a for a in (1, 2, 3) if views.shape[a] > 1]
    box = [slice(None)] * 4
    for axis in axes:
        marginal = views.sum(axis=tuple(a for a in (1, 2, 3) if a != axis))
        radius = marginal.shape[1] // 2
        # rings[:, r]: energy at distance r on both sides; outside[:, r]: energy beyond it.
        rings = marginal[:, radius:] + np.pad(marginal[:, :radius][:, ::-1], [(0, 0), (1, 0)])
        outside = np.cumsum(rings[:, ::-1], axis=1)[:, ::-1] - rings
        tolerated = (1 - KEPT_ENERGY) / len(axes) * marginal.sum(axis=1)
        kept = int(np.argmax((outside <= tolerated[:, None]).all(axis=0)))
        box[axis] = slice(radius - kept, radius + kept + 1)
    return views[tuple(box)]


def _refuse_wider(views: Floats, volume_zyx_shape: Triple, name: str) -> None:
    extent, limit = views.shape[2:], tuple(volume_zyx_shape)[1:]
    if any(a > b for a, b in zip(extent, limit, strict=True)):
        raise InvalidInputError(
            f"{name}: got a PSF of {extent[0]},{extent[1]} voxels (y,x) after cropping to {KEPT_ENERGY:.1%} of its energy; "
            f"expected at most the volume's {limit[0]},{limit[1]}. Check the voxel sizes, or crop the PSF."
        )


def _in_um(voxel_um: TripleUm) -> str:
    return ",".join(f"{v:g}" for v in voxel_um) + " µm"
