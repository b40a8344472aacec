"""Whole-volume reference of the method, from its equations alone: numpy and scipy, float64, nothing of the package.

Clarity over speed; volumes of some 20 voxels per axis.  Axes are ``z y x``; several views are stacked in front.

A PSF ``h`` of extent P has its centre at index ``c = P // 2``.  On one axis, with the data window D of extent n::

    estimate window E   |  P-1-c  |        n  = D        |  c  |      n + P - 1 voxels
                                   y[m] = sum_j h[j] x[m + c - j]

Index ``u`` of E is position ``u - (P-1-c)`` of D, so ``y = (h * x)`` on the positions where h lies inside E ("valid").
"""

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from scipy.ndimage import uniform_filter
from scipy.signal import convolve

FLOOR = 1e-6
"""Lowest value of the predicted data, of the extrapolated point p and of the estimate, in units of the scale."""
WEIGHT_FLOOR = 1e-3
"""Lowest value of H^T w, as a fraction of its maximum."""


# ------------------------------------------------------------------------------------------------ the forward model


def prior_slices(data_shape, psf_shape, margin=6):
    """Slices on which the prior acts: the data window and up to six voxels around it, as far as the estimate window reaches."""
    ends = [(n + p - 1, s) for n, p, s in zip(data_shape, psf_shape, data_slices(data_shape, psf_shape), strict=True)]
    return tuple(slice(max(s.start - margin, 0), min(s.stop + margin, n)) for n, s in ends)


def data_slices(data_shape, psf_shape):
    """Slices of the data window in the estimate window."""
    return tuple(slice(p - 1 - p // 2, p - 1 - p // 2 + n) for n, p in zip(data_shape, psf_shape, strict=True))


def forward(x, psfs):
    """``H x`` for each view: x on E (z y x), psfs (v z y x) -> v z y x on D."""
    return np.stack([convolve(x, h, mode="valid", method="direct") for h in psfs])


def adjoint(r, psfs):
    """``sum_v H_v^T r_v``: r on D (v z y x) -> z y x on E."""
    return sum(convolve(rv, h[::-1, ::-1, ::-1], mode="full", method="direct") for rv, h in zip(r, psfs, strict=True))


# ----------------------------------------------------------------------------------------------------------- TV


def _shifted(x, axis, last):
    """Part of x that starts at 0, or at 1 along `axis`; one shorter on every axis that is longer than 1."""
    cut = []
    for a, n in enumerate(x.shape):
        start = 1 if a == axis else 0
        cut.append(slice(start, start + n - 1) if a in last else slice(None))
    return tuple(cut)


def _differences(x, voxel):
    """Scaled forward differences at the positions m where m+1 lies inside on every axis, as (axis, values) pairs."""
    long_axes = [a for a, n in enumerate(x.shape) if n > 1]
    here = x[_shifted(x, None, long_axes)]
    return [(a, (min(voxel) / voxel[a]) * (x[_shifted(x, a, long_axes)] - here)) for a in long_axes]


def tv_value(x, voxel, epsilon=1e-6):
    """``sum_m sqrt(|D x|^2 + epsilon)``."""
    differences = _differences(x, voxel)
    if not differences:
        return x.size * np.sqrt(epsilon)
    return np.sqrt(sum(d**2 for _, d in differences) + epsilon).sum()


def tv_gradient(x, voxel, epsilon=1e-6):
    """``D^T (D x / sqrt(|D x|^2 + epsilon))``."""
    gradient = np.zeros_like(x)
    differences = _differences(x, voxel)
    long_axes = [a for a, _ in differences]
    if differences:
        norm = np.sqrt(sum(d**2 for _, d in differences) + epsilon)
    for a, d in differences:
        flow = (min(voxel) / voxel[a]) * d / norm
        gradient[_shifted(x, a, long_axes)] += flow
        gradient[_shifted(x, None, long_axes)] -= flow
    return gradient


def tv_bound(x, voxel, epsilon=1e-6):
    """Curvature of a separable quadratic majoriser of R: ``2 |D|^2^T (1 / sqrt(|D x|^2 + epsilon))``."""
    bound = np.zeros_like(x)
    differences = _differences(x, voxel)
    long_axes = [a for a, _ in differences]
    if differences:
        norm = np.sqrt(sum(d**2 for _, d in differences) + epsilon)
    for a, _ in differences:
        for ends in (_shifted(x, a, long_axes), _shifted(x, None, long_axes)):
            bound[ends] += 2 * (min(voxel) / voxel[a]) ** 2 / norm
    return bound


# ------------------------------------------------------------------------------------------- the learned prior


@dataclass(frozen=True)
class Learned:
    """Parameters of the weakly convex prior, as trained (W not yet divided by its norm)."""

    layers: tuple  # arrays (out, in, 3, 3, 3)
    scaling: np.ndarray  # channels x knots: s_l on uniform knots of [0, sigma_max]
    sigma_max: float
    sigma_unit: float  # model sigma = sigma / sigma_unit
    log_mu: float
    beta: float
    gamma: float
    lambda_max: float

    @property
    def mu(self):
        return np.exp(self.log_mu)

    @property
    def concavity(self):
        return min(abs(self.gamma), 1.0)


def correlate_layer(x, w):
    """One 'valid' convolution layer without flip: x (in z y x), w (out in 3 3 3) -> (out z-2 y-2 x-2)."""
    extent = [n - k + 1 for n, k in zip(x.shape[1:], w.shape[2:], strict=True)]
    out = np.zeros((w.shape[0], *extent))
    for tap in product(*map(range, w.shape[2:])):
        window = tuple(slice(t, t + e) for t, e in zip(tap, extent, strict=True))
        out += np.tensordot(w[(slice(None), slice(None), *tap)], x[(slice(None), *window)], axes=1)
    return out


def transpose_layer(r, w):
    """Transpose of `correlate_layer`: r (out z-2 y-2 x-2) -> (in z y x)."""
    x = np.zeros((w.shape[1], *(n + k - 1 for n, k in zip(r.shape[1:], w.shape[2:], strict=True))))
    for tap in product(*map(range, w.shape[2:])):
        window = tuple(slice(t, t + e) for t, e in zip(tap, r.shape[1:], strict=True))
        x[(slice(None), *window)] += np.tensordot(w[(slice(None), slice(None), *tap)].T, r, axes=1)
    return x


def reach(prior):
    """Extent per axis of the layers seen as one filter."""
    return tuple(1 + sum(w.shape[2 + a] - 1 for w in prior.layers) for a in range(3))


def analysis(x, prior):
    """``W x``, divided by the norm of W: z y x -> channels z y x, at the positions whose taps all lie inside."""
    x = x[np.newaxis]
    for w in prior.layers:
        x = correlate_layer(x, w)
    return x / np.sqrt(prior.lambda_max)


def synthesis(r, prior):
    """``W^T r``, divided by the norm of W."""
    for w in prior.layers[::-1]:
        r = transpose_layer(r, w)
    return r[0] / np.sqrt(prior.lambda_max)


def scales(prior, sigma):
    """``alpha_l = exp(s_l(sigma)) / (sigma + 1e-5)`` for sigma in the user's unit, shaped to multiply ``W x``."""
    sigma = sigma / prior.sigma_unit
    knots = np.linspace(0.0, prior.sigma_max, prior.scaling.shape[1])
    spline = np.array([np.interp(sigma, knots, s) for s in prior.scaling])
    return (np.exp(spline) / (sigma + 1e-5)).reshape(-1, 1, 1, 1)


def potential_slope(t, prior):
    """``psi'(t) = sign(t) max(0, min(mu |t|, beta - g |t|))``."""
    a = np.abs(t)
    return np.sign(t) * np.maximum(0.0, np.minimum(prior.mu * a, prior.beta - prior.concavity * a))


def potential(t, prior):
    """The integral of `potential_slope` from 0: a parabola, a concave cap, a plateau."""
    a = np.abs(t)
    mu, g = prior.mu, prior.concavity
    knee = prior.beta / (mu + g)
    end = prior.beta / g if g > 0 else np.inf
    inner = mu * np.minimum(a, knee) ** 2 / 2
    b = np.clip(a, knee, end)
    return inner + prior.beta * (b - knee) - g * (b**2 - knee**2) / 2


def _fits(x, prior):
    return all(n >= k for n, k in zip(x.shape, reach(prior), strict=True))


def learned_value(x, prior, sigma):
    """``R = sum_l alpha_l^-2 psi(alpha_l W_l x)``."""
    if not _fits(x, prior):
        return 0.0
    alpha = scales(prior, sigma)
    return (potential(alpha * analysis(x, prior), prior) / alpha**2).sum()


def learned_gradient(x, prior, sigma):
    """``W^T (psi'(alpha W x) / alpha)``."""
    if not _fits(x, prior):
        return np.zeros_like(x)
    alpha = scales(prior, sigma)
    return synthesis(potential_slope(alpha * analysis(x, prior), prior) / alpha, prior)


def fourier_norm_squared(layers, n=32):
    """Largest eigenvalue of ``W^T W`` for the unbounded volume: max over an n^3 grid of frequencies, then refined."""
    response = None
    offsets = [np.arange(k) for k in layers[0].shape[2:]]

    def at(frequencies):
        """``sum_l |W_l(f)|^2`` at (m, 3) frequencies in cycles per voxel."""
        total = None
        for w in layers:
            phases = [np.exp(2j * np.pi * np.outer(frequencies[:, a], offsets[a])) for a in range(3)]
            one = np.einsum("oizyx,mz,my,mx->moi", w, *phases, optimize=True)
            total = one if total is None else one @ total
        return (np.abs(total) ** 2).sum(axis=(1, 2))

    axis = np.arange(n) / n
    grid = np.stack(np.meshgrid(axis, axis, axis[: n // 2 + 1], indexing="ij"), -1).reshape(-1, 3)
    response = np.concatenate([at(part) for part in np.array_split(grid, 16)])
    best, step = grid[response.argmax()], 1 / n
    steps = np.array(list(product((-1, 0, 1), repeat=3)))
    value = response.max()
    while step > 1e-7:
        trial = best + step * steps
        values = at(trial)
        if values.max() > value:
            best, value = trial[values.argmax()], values.max()
        else:
            step /= 2
    return float(value)


# -------------------------------------------------------------------------------------------- the accelerated iteration


def start(y, weights, psfs):
    """``x0 = H^T (w y) / H^T w``, and the floored ``H^T w``."""
    sensitivity = adjoint(weights, psfs)
    sensitivity = np.maximum(sensitivity, WEIGHT_FLOOR * sensitivity.max())
    return np.maximum(adjoint(weights * y, psfs) / sensitivity, FLOOR), sensitivity


def multiplicative_step(p, y, b, weights, psfs, sensitivity, tau, gradient, saturated):
    """``p (H^T (w y / (H p + b)) - tau grad R(p)) / H^T w``, floored."""
    ratio = y / np.maximum(forward(p, psfs) + b, FLOOR)
    ratio = np.where(saturated, np.maximum(1.0, ratio), ratio)
    window = prior_slices(y.shape[1:], psfs.shape[1:])
    slope = np.zeros_like(p)
    slope[window] = gradient(p[window])
    return np.maximum(p * (adjoint(weights * ratio, psfs) - tau * slope) / sensitivity, FLOOR)


def curvature_along_move(before, after, bound):
    """``sqrt(mean |d grad R|^2 / mean |d u|^2)`` over 3 x 3 voxels of a plane (0 outside), from two pairs (u, grad R(u)).

    Moves of less than 0.003 count with the bound; the result is kept between 0.02 and 1 times the bound.
    """
    moved, bent = (
        uniform_filter((new - old) ** 2, (1, 3, 3), mode="constant") for old, new in zip(before, after, strict=True)
    )
    return np.clip(np.sqrt((bent + (0.003 * bound) ** 2) / (moved + 0.003**2)), 0.02 * bound, bound)


def surrogate_step(p, y, b, weights, psfs, sensitivity, tau, gradient, saturated, *, bound, steps, last):
    """Minimise, in some steps, ``sum (H^T w) u - e log u + tau R(u)`` with ``u = x + m``, ``m = b / max(H 1)``.

    ``last`` holds the last point and gradient in the prior, and is replaced; None where the bound is taken as it is.
    """
    ratio = y / np.maximum(forward(p, psfs) + b, FLOOR)
    ratio = np.where(saturated, np.maximum(1.0, ratio), ratio)
    m = b / forward(np.ones_like(p), psfs).max()
    e = (p + m) * adjoint(weights * ratio, psfs)
    x = e / sensitivity - m
    window = prior_slices(y.shape[1:], psfs.shape[1:])
    e, s = e[window], sensitivity[window]
    u = u_before = p[window] + m
    t = 1.0
    for _ in range(steps):
        t_next = (1 + np.sqrt(1 + 4 * t**2)) / 2
        q = np.maximum(u + (t - 1) / t_next * (u - u_before), FLOOR + m)
        t, u_before = t_next, u
        largest = tau * bound(q - m)
        c = np.maximum(largest / 2, largest - s / 2)
        here = q, gradient(q - m)
        if last is not None:
            before = last or (q, np.zeros_like(q))  # the bound, before the first move
            c = np.minimum(c, tau * curvature_along_move(before, here, bound(q - m)))
            last[:] = here
        slope = s + tau * here[1] - c * q
        size = np.abs(slope) + np.sqrt(slope**2 + 4 * c * e)
        u = 2 * e / size
        u[slope <= 0] = (size / 2)[slope <= 0] / c[slope <= 0]
    x[window] = u - m
    return np.maximum(x, FLOOR)


def deconvolve(
    y,
    psf,
    *,
    iterations,
    intensity_scale,
    background=0.0,
    method="rl",
    tau=0.0,
    sigma=None,
    prior=None,
    weights=None,
    saturation=None,
    voxel=(1.0, 1.0, 1.0),
    update="reference",
):
    """The deconvolved volume (z y x) on the data window, in the data's units."""
    y = np.asarray(y, dtype=np.float64)
    psfs = np.asarray(psf, dtype=np.float64)
    weights = np.ones_like(y) if weights is None else np.asarray(weights, dtype=np.float64)
    saturated = np.zeros(y.shape, dtype=bool) if saturation is None else y >= saturation
    if y.ndim == 3:
        y, psfs, weights, saturated = y[None], psfs[None], weights[None], saturated[None]
    y = np.maximum(y, 0.0) / intensity_scale
    b = background / intensity_scale
    gradient = {
        "rl": np.zeros_like,
        "rltv": lambda x: tv_gradient(x, voxel),
        "garl": lambda x: learned_gradient(x, prior, sigma),
    }[method]

    bound = {
        "rl": None,
        "rltv": lambda x: tv_bound(x, voxel),
        "garl": lambda x: np.full_like(x, max(prior.mu, prior.concavity)),
    }[method]

    def step(p):
        common = (p, y, b, weights, psfs, sensitivity, tau, gradient, saturated)
        if not convergent:
            return multiplicative_step(*common)
        inner = 4 if method == "rltv" else min(max(len(y) // 4, 1), 4)
        return surrogate_step(*common, bound=bound, steps=inner, last=last)

    last = [] if method == "garl" else None
    convergent = update == "convergent" and method != "rl"
    x, sensitivity = start(y, weights, psfs)
    x_previous, t = x, 1.0
    for _ in range(iterations):
        t_next = (1 + np.sqrt(1 + 4 * t**2)) / 2
        momentum = min((t - 1) / t_next, {"rltv": 0.875, "garl": 0.95}[method] if convergent else 1.0)
        p = np.maximum(x + momentum * (x - x_previous), FLOOR)
        x, x_previous = step(p), x
        t = t_next
    return x[data_slices(y.shape[1:], psfs.shape[1:])] * intensity_scale


# --------------------------------------------------------------------------------------------- made-up problems


def random_prior(seed=0, channels=(1, 4, 8), mu=10.0, beta=2.0, gamma=1.2):
    """A small model with random filters and scalings in the range of trained ones (sigma in units of 1/255)."""
    rng = np.random.default_rng(seed)
    layers = [rng.normal(size=(o, i, 3, 3, 3)) for i, o in pairwise(channels)]
    layers[0] -= layers[0].mean(axis=(1, 2, 3, 4), keepdims=True)
    return Learned(
        layers=tuple(layers),
        scaling=rng.uniform(4.0, 6.5, size=(channels[-1], 11)),
        sigma_max=50.0,
        sigma_unit=1 / 255,
        log_mu=float(np.log(mu)),
        beta=beta,
        gamma=gamma,
        lambda_max=fourier_norm_squared(layers, 16),
    )


def random_psf(seed, shape, views=1):
    """Lopsided positive PSFs, of which the mean sums to 1: (v z y x)."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij", sparse=True)
    psfs = []
    for _ in range(views):
        centre, width = rng.uniform(-0.7, 0.7, 3), rng.uniform(0.8, 1.5, 3)
        bump = np.exp(-sum((a - c) ** 2 / (2 * w**2) for a, c, w in zip(axes, centre, width, strict=True)))
        psfs.append(bump * rng.uniform(0.5, 1.5, shape))
    psfs = np.stack(psfs)
    return psfs * views / psfs.sum()


def random_data(seed, shape, psfs, background, photons=200.0):
    """Poisson counts of a few bright blobs on a dim floor: (v z y x)."""
    rng = np.random.default_rng(seed)
    grown = tuple(n + p - 1 for n, p in zip(shape, psfs.shape[1:], strict=True))
    x = np.full(grown, 0.02)
    for _ in range(max(3, int(np.prod(shape) // 300))):
        x[tuple(rng.integers(0, n) for n in grown)] += rng.uniform(2, 20)
    return rng.poisson(photons * forward(x, psfs) + background).astype(np.float64)


def random_weights(seed, shape):
    """Weights in [0, 1] with scattered zeros and one corner without any valid voxel."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.0, 1.0, shape)
    weights[rng.uniform(size=shape) < 0.1] = 0.0
    weights[rng.uniform(size=shape) > 0.6] = 1.0
    weights[..., : shape[-3] // 3, : shape[-2] // 3, : shape[-1] // 3] = 0.0
    return weights


def relative(a, b):
    """``|a - b| / |b|``."""
    return np.linalg.norm(np.asarray(a, dtype=np.float64) - b) / np.linalg.norm(b)
