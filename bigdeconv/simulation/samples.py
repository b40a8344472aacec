"""Simulated samples and camera images of them, all from a seed.

Arrays are ``z y x``, or ``v z y x`` for several views; positions and lengths are in µm in the same order.  Random samples are
continuous objects (`Tubes`), which `sample` evaluates on a grid of any resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import fft
from scipy.interpolate import CubicSpline

from bigdeconv.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from bigdeconv.geometry import Triple

    Floats = npt.NDArray[np.float64]
    Range = tuple[float, float]

WINDOW_SIGMAS = 4.0
"""Standard deviations at which the Gaussian of a fluorophore is truncated."""


@dataclass(frozen=True, slots=True, eq=False)
class Tubes:
    """A continuous object: a set of fluorophores, each with a Gaussian profile."""

    positions_um: Floats
    """Positions ``n zyx`` from the corner of the sample."""
    sigma_um: float
    """Standard deviation of the Gaussian of a fluorophore."""
    extent_um: tuple[float, float, float]
    """Size of the sample, z y x."""


def tubes(
    seed: int,
    extent_zyx_um: Sequence[float],
    *,
    count: tuple[int, int] = (4, 12),
    outer_radius_um: Range = (0.05, 0.2),
    inner_share: Range = (0.0, 0.9),
    fluorophores_per_um: float = 1000.0,
    wobble: float = 0.06,
    sigma_um: float = 0.05,
) -> Tubes:
    """Simulate a random number of curved hollow tubes, like microtubules.

    After Pham (2025), "3D Deconvolution Microscopy with a Learned Regularizer", section 2.2.3.

    Parameters
    ----------
    seed : int
        The same seed gives the same object.
    extent_zyx_um : sequence of float
        Size of the sample in µm.  Every tube crosses the sample; in a flat sample the tubes lie in its plane.
    count : tuple of int
        Smallest and largest number of tubes.
    outer_radius_um : tuple of float
        Range of the outer radius in µm.
    inner_share : tuple of float
        Range of the inner radius as a fraction of the outer one; fluorophores are uniform between the two.
    fluorophores_per_um : float
        Mean number of fluorophores per µm of tube.
    wobble : float
        Standard deviation of the bends of a tube, as a fraction of the extent of the sample on each axis.
    sigma_um : float
        Standard deviation of the Gaussian of a fluorophore in µm.

    Returns
    -------
    Tubes
        Fluorophores in the sample, and those outside whose Gaussian reaches into it.

    Raises
    ------
    InvalidInputError
        If the extent is not three positive lengths, or another number is out of its range.

    Examples
    --------
    >>> specimen = tubes(1, (1.0, 2.0, 2.0))
    >>> specimen.positions_um.shape[1], specimen.extent_um
    (3, (1.0, 2.0, 2.0))
    """
    extent = _three_positive(extent_zyx_um, "extent_zyx_um")
    if not (sigma_um > 0 and 1 <= count[0] <= count[1] and fluorophores_per_um > 0):
        raise InvalidInputError(
            f"sigma_um, count, fluorophores_per_um: got {sigma_um}, {count}, {fluorophores_per_um}; "
            "expected positive numbers and a range of counts (smallest, largest) from 1."
        )
    rng = np.random.default_rng(seed)
    clouds = []
    for _ in range(rng.integers(count[0], count[1], endpoint=True)):
        curve = _curve(rng, extent, wobble)
        outer = rng.uniform(*outer_radius_um)
        clouds.append(_cloud(rng, curve, outer, outer * rng.uniform(*inner_share), fluorophores_per_um))
    positions = np.concatenate(clouds)
    margin = WINDOW_SIGMAS * sigma_um
    seen = np.all((positions > -margin) & (positions < extent + margin), axis=1)
    z, y, x = extent.tolist()
    return Tubes(positions[seen], float(sigma_um), (z, y, x))


def sample(
    specimen: Tubes,
    zyx_shape: Triple,
    voxel_zyx_um: Sequence[float],
    offset_um: Sequence[float] = (0.0, 0.0, 0.0),
    *,
    peak_one: bool = False,
) -> npt.NDArray[np.float32]:
    """Sample a continuous object on a grid: the sum of the Gaussians of its fluorophores at the voxel centres.

    Parameters
    ----------
    specimen : Tubes
        The object.
    zyx_shape : tuple of int
        Shape of the grid.
    voxel_zyx_um : sequence of float
        Distance of voxel centres in µm.  Above about ``1.4 sigma_um`` fluorophores between voxel centres appear too dim.
    offset_um : sequence of float
        Position, z y x, of the centre of voxel 0, 0, 0 in µm.
    peak_one : bool
        Whether to divide by the maximum.

    Returns
    -------
    ndarray, ``z y x``
        float32, fluorophores per µm³ (times the volume of a voxel the sum is their number), or with maximum 1.

    Raises
    ------
    InvalidInputError
        If a voxel size is not positive.

    Examples
    --------
    >>> specimen = tubes(1, (1.0, 2.0, 2.0))
    >>> volume = sample(specimen, (10, 40, 40), (0.1, 0.05, 0.05), peak_one=True)
    >>> volume.shape, float(volume.max())
    ((10, 40, 40), 1.0)
    """
    voxel = _three_positive(voxel_zyx_um, "voxel_zyx_um")
    sigma = specimen.sigma_um / voxel
    reach = np.ceil(WINDOW_SIGMAS * sigma).astype(int)
    points = (specimen.positions_um - np.asarray(offset_um, dtype=np.float64)) / voxel
    shape = np.asarray(zyx_shape)
    points = points[np.all((points >= -reach) & (points <= shape - 1 + reach), axis=1)]
    # The canvas is the grid with a margin of twice the reach before it.  The first corner of cell k is at k·cell - reach in the
    # grid, so that a point of cell k touches only canvas voxels from k·cell to k·cell + window.
    cell = np.maximum(2 * reach, 8)
    window = cell + 2 * reach + 1
    canvas = np.zeros((shape + 2 * reach) // cell * cell + window)
    for start, members in _by_cell(points + reach, cell):
        z, y, x = (
            np.exp(-0.5 * ((np.arange(window[a]) - reach[a] - (members[:, a, None] - start[a])) / sigma[a]) ** 2)
            for a in range(3)
        )
        # One matrix product per cell is ten times as fast as adding window by window.
        local = (z[:, :, None] * y[:, None, :]).reshape(len(members), -1).T @ x
        canvas[tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))] += local.reshape(window)
    grid = canvas[tuple(slice(2 * r, 2 * r + n) for r, n in zip(reach, shape, strict=True))]
    top = grid.max(initial=0.0) if peak_one else (2 * np.pi) ** 1.5 * specimen.sigma_um**3
    return np.asarray(grid / (top or 1.0), dtype=np.float32)


def acquire(
    truth: npt.ArrayLike,
    psf: npt.ArrayLike,
    *,
    photons: float,
    background: float = 0.0,
    seed: int,
    offset: float = 0.0,
    gain: float = 1.0,
    read_noise: float = 0.0,
    dtype: npt.DTypeLike = "uint16",
) -> npt.NDArray[Any]:
    """Simulate the counts of a camera that images an object through one or more PSFs, with photon noise.

    ``counts = offset + (Poisson(scale · (psf * truth) + background) + Normal(0, read_noise)) / gain``, the inverse of the
    solvers' ``photons = (counts - offset) · gain``.  The convolution is linear, and the object is dark outside the volume.

    Parameters
    ----------
    truth : array_like, ``z y x``
        The object, 0 or more.
    psf : array_like, ``z y x`` or ``v z y x``
        PSF, or PSF of each view, with its centre at ``shape // 2``; views keep their relative weights.
    photons : float
        Photons in the brightest voxel of the brightest view, without background and noise.
    background : float
        Photons per voxel and view.
    seed : int
        The same seed gives the same counts.
    offset : float
        Counts without light.
    gain : float
        Photons per count.
    read_noise : float
        Standard deviation of the read noise in photons.
    dtype : dtype_like
        Type of the counts.  Integers are rounded and clipped to their range, as a camera saturates.

    Returns
    -------
    ndarray, ``z y x`` or ``v z y x``
        Counts, with an axis of views if ``psf`` has one.

    Raises
    ------
    InvalidInputError
        If truth or PSF have other dimensions, or a number is out of its range.

    Examples
    --------
    >>> from bigdeconv.psf import gaussian
    >>> truth = np.zeros((8, 16, 16))
    >>> truth[4, 8, 8] = 1
    >>> counts = acquire(truth, gaussian((1, 1, 1)), photons=100, background=5, seed=0, offset=100)
    >>> counts.dtype, bool(counts.max() > 150)
    (dtype('uint16'), True)
    """
    objects, psfs = np.asarray(truth, dtype=np.float64), np.asarray(psf, dtype=np.float64)
    if objects.ndim != 3 or psfs.ndim not in (3, 4):
        raise InvalidInputError(
            f"truth, psf: got shapes {objects.shape}, {psfs.shape}; expected z y x, and z y x or v z y x."
        )
    if not (photons >= 0 and background >= 0 and gain > 0 and read_noise >= 0):
        raise InvalidInputError(
            f"photons, background, gain, read_noise: got {photons}, {background}, {gain}, {read_noise}; "
            "expected numbers of 0 or more, and a positive gain."
        )
    views = _blurred(objects, psfs if psfs.ndim == 4 else psfs[None])
    views *= photons / (views.max() or 1.0)
    rng = np.random.default_rng(seed)
    for view in views:
        electrons = rng.poisson(view + background).astype(np.float64)
        if read_noise > 0:
            electrons += rng.normal(0.0, read_noise, view.shape)
        view[:] = offset + electrons / gain
    return _as_counts(views if psfs.ndim == 4 else views[0], np.dtype(dtype))


def confocal(views: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return the sum of all views, the image of a detector without elements.

    Parameters
    ----------
    views : array_like, ``v z y x``
        Counts.

    Returns
    -------
    ndarray, ``z y x``
        float32; contains the camera offset once per view.

    Examples
    --------
    >>> confocal(np.ones((3, 1, 1, 2), np.uint16))
    array([[[3., 3.]]], dtype=float32)
    """
    return np.asarray(np.sum(views, axis=0, dtype=np.float64), dtype=np.float32)


def calibration_target(zyx_shape: Triple, voxel_zyx_um: Sequence[float]) -> npt.NDArray[np.float32]:
    """Draw a fixed calibration sample: pairs of lines of growing spacing, rings, and cubes of several sizes and depths.

    ::

        y |  |  |   |    |        lines: one width, spacings 1, 2, 3, ... widths
          |  |  |   |    |
          | (O)   (O)   :. []     rings at three depths | cubes of four sizes at four depths
          +------------------ x

    Parameters
    ----------
    zyx_shape : tuple of int
        Shape of the volume.
    voxel_zyx_um : sequence of float
        Voxel size in µm.  All sizes are fractions of the extent in µm, so that the same extent with other voxels shows the same
        sample.

    Returns
    -------
    ndarray, ``z y x``
        float32 from 0 to 1; the value of a voxel is the fraction of it that is covered.

    Raises
    ------
    InvalidInputError
        If a voxel size is not positive.

    Examples
    --------
    >>> calibration_target((16, 64, 64), (0.2, 0.1, 0.1)).shape
    (16, 64, 64)
    """
    voxel = _three_positive(voxel_zyx_um, "voxel_zyx_um")
    extent = np.asarray(zyx_shape) * voxel
    unit_um = 0.012 * extent[1:].min()
    target = np.zeros(zyx_shape)
    for low, high in _target_boxes(extent, unit_um):
        z, y, x = (_covered(n, v, a, b) for n, v, a, b in zip(zyx_shape, voxel, low, high, strict=True))
        target = np.maximum(target, z[:, None, None] * y[:, None] * x)
    for centre, radius in _target_rings(extent, unit_um):
        z = _covered(zyx_shape[0], voxel[0], centre[0] - unit_um, centre[0] + unit_um)
        y, x = (((np.arange(n) + 0.5) * v - c) for n, v, c in zip(zyx_shape[1:], voxel[1:], centre[1:], strict=True))
        distance = np.abs(np.hypot(y[:, None], x) - radius)
        # The edge of a ring falls off over one voxel.
        ring = np.clip((0.5 * unit_um - distance) / voxel[1:].max() + 0.5, 0, 1)
        target = np.maximum(target, z[:, None, None] * ring)
    return target.astype(np.float32)


def _three_positive(values: Sequence[float], argument: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (3,) or not (np.isfinite(array) & (array > 0)).all():
        raise InvalidInputError(
            f"{argument}: got {values!r}; expected three positive lengths in µm in the order z,y,x."
        )
    return array


def _curve(rng: np.random.Generator, extent: Floats, wobble: float) -> CubicSpline[np.float64]:
    """Return a smooth curve with parameter 0 to 1, which passes a random point of the sample and ends outside on both sides."""
    heading = rng.normal(size=3)
    heading *= extent / np.abs(heading).max()  # as long as the sample on one axis, for any direction
    knots = np.linspace(-1.2, 1.2, 7)
    bends = rng.normal(size=(knots.size, 3)) * wobble * extent
    start = rng.uniform(0.1, 0.9, size=3) * extent
    return CubicSpline(np.linspace(0, 1, knots.size), start + knots[:, None] * heading + bends)


def _cloud(
    rng: np.random.Generator, curve: CubicSpline[np.float64], outer_um: float, inner_um: float, per_um: float
) -> Floats:
    """Return fluorophores ``n 3`` around a curve, uniform along its length and over the ring between the radii."""
    parameters = np.linspace(0, 1, 1001)
    steps = np.linalg.norm(np.diff(curve(parameters), axis=0), axis=1)
    length = np.concatenate([[0.0], np.cumsum(steps)])
    n = rng.poisson(per_um * length[-1])
    where = np.interp(rng.uniform(0, length[-1], n), length, parameters)
    tangent = curve(where, 1)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    # Any two normals serve, as the angle is uniform: the first is normal to the axis most nearly normal to the tangent.
    helper = np.eye(3)[np.argmin(np.abs(tangent), axis=1)]
    first = np.cross(tangent, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(tangent, first)
    radius = np.sqrt(rng.uniform(inner_um**2, outer_um**2, n))[:, None]
    angle = rng.uniform(0, 2 * np.pi, n)[:, None]
    return np.asarray(curve(where) + radius * (np.cos(angle) * first + np.sin(angle) * second))


def _by_cell(points: Floats, cell: npt.NDArray[np.int_]) -> Iterator[tuple[npt.NDArray[np.int_], Floats]]:
    """Yield the first corner of each occupied cell and its points, at most 1024 at a time to bound the memory."""
    if not len(points):
        return
    index = np.floor(points / cell).astype(int)
    order = np.lexsort(index.T[::-1])
    cells, starts = np.unique(index[order], axis=0, return_index=True)
    for corner, members in zip(cells * cell, np.split(order, starts[1:]), strict=True):
        for first in range(0, len(members), 1024):
            yield corner, points[members[first : first + 1024]]


def _blurred(truth: Floats, psf_views: Floats) -> Floats:
    """Convolve with the PSF of every view, linearly, and keep the volume of ``truth``."""
    full = [fft.next_fast_len(n + p - 1, real=True) for n, p in zip(truth.shape, psf_views.shape[1:], strict=True)]
    spectrum = fft.rfftn(truth, full)
    inner = tuple(slice(p // 2, p // 2 + n) for n, p in zip(truth.shape, psf_views.shape[1:], strict=True))
    views = np.empty((len(psf_views), *truth.shape))
    for view, psf in zip(views, psf_views, strict=True):
        view[:] = fft.irfftn(spectrum * fft.rfftn(psf, full), full)[inner]
    return views.clip(0, None)  # rounding of the transforms leaves values a little below 0


def _as_counts(values: Floats, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if dtype.kind not in "iu":
        return values.astype(dtype)
    return np.rint(values).clip(0, np.iinfo(dtype).max).astype(dtype)


def _covered(n: int, voxel_um: float, low_um: float, high_um: float) -> Floats:
    """Return the fraction of each of ``n`` voxels that an interval covers; a single voxel counts as covered."""
    if n == 1:
        return np.ones(1)
    edges = np.arange(n + 1) * voxel_um
    return np.asarray(np.diff(np.clip(edges, low_um, high_um)) / voxel_um)


def _target_boxes(extent: Floats, unit_um: float) -> Iterator[tuple[Sequence[float], Sequence[float]]]:
    """Yield lines and cubes as first and last corner, z y x, in µm."""
    depth, height, width = extent
    left = 0.06 * width
    for spacing in range(1, 8):
        for x in (left, left + (1 + spacing) * unit_um):
            yield (0.5 * depth - unit_um, 0.06 * height, x), (0.5 * depth + unit_um, 0.46 * height, x + unit_um)
        left += (7.5 + spacing) * unit_um * width / extent[1:].min()
    for number, (units, z, x) in enumerate(((1, 0.2, 0.6), (2, 0.4, 0.7), (4, 0.6, 0.8), (8, 0.8, 0.92))):
        centre = (z * depth, (0.62 + 0.08 * number) * height, x * width)
        half = 0.5 * units * unit_um
        yield tuple(c - half for c in centre), tuple(c + half for c in centre)


def _target_rings(extent: Floats, unit_um: float) -> Iterator[tuple[Floats, float]]:
    """Yield centre, z y x, and radius in µm of three concentric rings at each of two places and depths."""
    for z, x in ((0.35, 0.16), (0.65, 0.42)):
        for radius in (2.5, 5.0, 9.0):
            yield np.array([z, 0.74, x]) * extent, radius * unit_um
