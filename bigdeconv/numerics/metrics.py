"""Image metrics: against a truth, against the data, between two images, and at the seams between blocks.

Arrays in, plain numbers out; all sums are in float64.
"""

from __future__ import annotations

from math import inf, log10, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdeconv.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]


def rsnr(estimate: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Return the regressed signal-to-noise ratio, ``20 log10(‖t‖ / ‖t - (a x + b)‖)`` with the best a and b.

    Parameters
    ----------
    estimate, truth : array_like
        Of the same shape; scale and offset of the estimate do not matter.

    Returns
    -------
    float
        In dB; infinite if the estimate is the truth up to scale and offset.

    Raises
    ------
    InvalidInputError
        If the shapes differ or the truth is all zero.

    Examples
    --------
    >>> rsnr([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])
    inf
    >>> round(rsnr([1.0, 2.0, 4.0], [0.0, 1.0, 2.0]), 2)
    18.45
    """
    x, t = _pair(estimate, truth, "estimate", "truth")
    if not t.any():
        raise InvalidInputError("truth: got only zeros; expected an array with a signal. Check the loaded file.")
    x_rise, t_rise = x - x.mean(), t - t.mean()
    energy = float(np.vdot(x_rise, x_rise))
    slope = float(np.vdot(x_rise, t_rise)) / energy if energy > 0 else 0.0
    residual = t_rise - slope * x_rise
    return _decibel(float(np.vdot(t, t)), float(np.vdot(residual, residual)))


def psnr(estimate: npt.ArrayLike, truth: npt.ArrayLike, peak: float = 1.0) -> float:
    """Return the peak signal-to-noise ratio, ``10 log10(peak² / mean squared error)``.

    Parameters
    ----------
    estimate, truth : array_like
        Of the same shape and scale.
    peak : float
        Largest value of the scale.

    Returns
    -------
    float
        In dB; infinite if both are equal.

    Raises
    ------
    InvalidInputError
        If the shapes differ or the peak is not positive.

    Examples
    --------
    >>> round(psnr([0.1, 0.9], [0.0, 1.0]), 6)
    20.0
    """
    x, t = _pair(estimate, truth, "estimate", "truth")
    if not peak > 0:
        raise InvalidInputError(f"peak: got {peak}; expected a positive number. Pass the largest value of the scale.")
    return _decibel(peak**2, float(np.mean((x - t) ** 2)))


def i_divergence(data: npt.ArrayLike, model: npt.ArrayLike) -> float:
    """Return the I-divergence ``Σ y log(y / m) - y + m``, the misfit of Poisson data (Csiszár 1991).

    Parameters
    ----------
    data, model : array_like
        Data y and expected data m, of the same shape, 0 or more.

    Returns
    -------
    float
        0 if the model equals the data.  A voxel with y = 0 adds m; the sum is infinite if m = 0 in a voxel with y > 0.

    Raises
    ------
    InvalidInputError
        If the shapes differ or a value is negative.

    Examples
    --------
    >>> i_divergence([2.0, 0.0], [2.0, 3.0])
    3.0
    """
    y, m = _pair(data, model, "data", "model")
    if (y < 0).any() or (m < 0).any():
        raise InvalidInputError(
            f"data, model: got minima {y.min():.6g}, {m.min():.6g}; expected values of 0 or more. Clip them first."
        )
    lit = y > 0
    if (m[lit] == 0).any():
        return inf
    return float((y[lit] * np.log(y[lit] / m[lit])).sum() + (m - y).sum())


def fourier_shell_correlation(
    a: npt.ArrayLike, b: npt.ArrayLike, voxel_zyx_um: Sequence[float]
) -> tuple[Floats, Floats]:
    """Correlate two images of one object over shells of spatial frequency (Harauz and van Heel 1986).

    The means are subtracted, and a Hann window suppresses the jump at the faces.  Shells are spheres in 1/µm for any voxel size,
    as thick as the finest frequency step of the three axes; beyond the Nyquist frequency of a coarse axis a shell is the measured
    part of its sphere.

    Parameters
    ----------
    a, b : array_like, ``z y x``
        Of the same shape; one plane (z = 1) gives the Fourier ring correlation.
    voxel_zyx_um : sequence of float
        Voxel size in µm.

    Returns
    -------
    frequencies_per_um : ndarray, ``shell``
        From the first shell above zero to the highest Nyquist frequency.
    correlation : ndarray, ``shell``
        From -1 to 1; 0 for a shell without signal.

    Raises
    ------
    InvalidInputError
        If the shapes differ or are not three-dimensional, or a voxel size is not positive.

    Examples
    --------
    >>> image = np.random.default_rng(0).random((4, 8, 8))
    >>> frequencies, correlation = fourier_shell_correlation(image, image, (0.2, 0.1, 0.1))
    >>> frequencies, correlation.round(6)
    (array([1.25, 2.5 , 3.75, 5.  ]), array([1., 1., 1., 1.]))
    """
    first, second = _pair(a, b, "a", "b")
    voxel_um = np.asarray(voxel_zyx_um, dtype=np.float64)
    if first.ndim != 3 or voxel_um.shape != (3,) or not (voxel_um > 0).all() or max(first.shape) < 2:
        raise InvalidInputError(
            f"a, voxel_zyx_um: got shape {first.shape}, voxel {voxel_zyx_um!r}; "
            "expected arrays z y x of more than one voxel and three positive lengths in µm."
        )
    shell, step, top = _shells(first.shape, voxel_um)
    fa, fb = (np.fft.rfftn(_windowed(image)) for image in (first, second))
    # The real transform holds one of each conjugate pair, except in its first (and for even lengths last) plane.
    twice = np.full(fa.shape[2], 2.0)
    twice[0] = 1.0
    if first.shape[2] % 2 == 0:
        twice[-1] = 1.0

    def pooled(product: Floats) -> Floats:
        sums = np.bincount(shell.ravel(), (product * twice).ravel(), minlength=top + 1)
        return np.asarray(sums[1 : top + 1], dtype=np.float64)

    cross = pooled((fa * fb.conj()).real)
    power = np.sqrt(pooled(np.abs(fa) ** 2) * pooled(np.abs(fb) ** 2))
    correlation: Floats = np.divide(cross, power, out=np.zeros_like(cross), where=power > 0)
    return np.arange(1.0, top + 1) * step, correlation


def seam_error(
    tiled: npt.ArrayLike, untiled: npt.ArrayLike, seams: Sequence[Sequence[int]], width: int
) -> tuple[float, float, float]:
    """Return the relative difference of a tiled from the untiled solution at the seams of each axis.

    It is the L2 norm of the difference over the voxels within ``width`` of the inner faces of the cores, divided by the norm of
    the untiled solution over the same voxels, all seams of an axis together.

    Parameters
    ----------
    tiled, untiled : array_like, ``z y x``
        Of the same shape.
    seams : sequence of sequence of int
        For each axis z, y, x the indices of the first voxels above the faces.
    width : int
        Voxels on each side of a face that count.

    Returns
    -------
    tuple of float
        One number per axis z, y, x; 0 for an axis without seams, infinite if the untiled solution is dark at the seams and the
        tiled one is not.

    Raises
    ------
    InvalidInputError
        If the shapes differ or are not three-dimensional, ``seams`` are not three, one lies outside, or the width is below 1.

    Examples
    --------
    >>> untiled = np.ones((1, 1, 8))
    >>> tiled = untiled.copy()
    >>> tiled[..., 4] = 1.1
    >>> [round(error, 3) for error in seam_error(tiled, untiled, ((), (), (4,)), width=2)]
    [0.0, 0.0, 0.05]
    """
    x, reference = np.asarray(tiled), np.asarray(untiled)
    _check_same(x, reference, "tiled", "untiled")
    if x.ndim != 3 or len(seams) != 3 or width < 1:
        raise InvalidInputError(
            f"tiled, seams, width: got shape {x.shape}, {len(seams)} axes of seams, width {width}; "
            "expected arrays z y x, seams for three axes and a width of at least 1."
        )
    z, y, x_axis = (_axis_seam_error(x, reference, axis, seams[axis], width) for axis in range(3))
    return z, y, x_axis


def _axis_seam_error(
    tiled: npt.NDArray[Any], untiled: npt.NDArray[Any], axis: int, seams: Sequence[int], width: int
) -> float:
    n = tiled.shape[axis]
    near = np.zeros(n, dtype=bool)
    for seam in seams:
        if not 0 < seam < n:
            raise InvalidInputError(
                f"seams: got {seam} on axis {'zyx'[axis]}; expected 1 to {n - 1}. Pass inner faces only."
            )
        near[max(seam - width, 0) : seam + width] = True
    difference = reference = 0.0
    for i in np.flatnonzero(near):  # plane by plane: volumes may be large
        plane = np.asarray(untiled.take(i, axis=axis), dtype=np.float64)
        error = np.asarray(tiled.take(i, axis=axis), dtype=np.float64) - plane
        difference += float(np.vdot(error, error))
        reference += float(np.vdot(plane, plane))
    if difference == 0:
        return 0.0
    return sqrt(difference / reference) if reference > 0 else inf


def _windowed(image: Floats) -> Floats:
    image = image - image.mean()
    for axis, n in enumerate(image.shape):
        if n > 3:  # on a shorter axis the window would remove most of the signal
            hann = np.hanning(n + 2)[1:-1]
            image = image * hann.reshape([n if a == axis else 1 for a in range(3)])
    return image


def _shells(zyx_shape: tuple[int, ...], voxel_um: Floats) -> tuple[npt.NDArray[np.int_], float, int]:
    """Return the shell number of every frequency of the real transform, the step in 1/µm, and the last shell."""
    z, y = (np.fft.fftfreq(n, v) for n, v in zip(zyx_shape[:2], voxel_um[:2], strict=True))
    x = np.fft.rfftfreq(zyx_shape[2], voxel_um[2])
    wide = [(n, float(v)) for n, v in zip(zyx_shape, voxel_um, strict=True) if n > 1]
    step = min(1 / (n * v) for n, v in wide)
    nyquist = max(0.5 / v for _, v in wide)
    radius = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    return np.rint(radius / step).astype(int), step, int(nyquist / step + 1e-6)


def _decibel(signal: float, error: float) -> float:
    return inf if error == 0 else 10 * log10(signal / error)


def _pair(a: npt.ArrayLike, b: npt.ArrayLike, name_a: str, name_b: str) -> tuple[Floats, Floats]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    _check_same(first, second, name_a, name_b)
    return first, second


def _check_same(a: npt.NDArray[Any], b: npt.NDArray[Any], name_a: str, name_b: str) -> None:
    if a.shape != b.shape or a.size == 0:
        raise InvalidInputError(
            f"{name_a}, {name_b}: got shapes {a.shape} and {b.shape}; expected two arrays of one shape, not empty."
        )
