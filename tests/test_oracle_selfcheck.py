"""The oracle against loops over single voxels and against finite differences, on tiny arrays."""

from itertools import product

import numpy as np
import pytest
from scipy.integrate import quad

from tests import oracle

SHAPES = [((3, 4, 5), (3, 3, 3)), ((4, 3, 2), (2, 4, 3)), ((1, 5, 4), (1, 2, 5)), ((2, 2, 3), (5, 4, 1))]


def loop_forward(x, h, data_shape):
    """``y[m] = sum_j h[j] x[m + c - j]``; position i of x is stored at index i + P - 1 - c."""
    centre = [p // 2 for p in h.shape]
    y = np.zeros(data_shape)
    for m in product(*map(range, data_shape)):
        for j in product(*map(range, h.shape)):
            position = [m[a] + centre[a] - j[a] for a in range(3)]
            y[m] += h[j] * x[tuple(position[a] + h.shape[a] - 1 - centre[a] for a in range(3))]
    return y


def grown(data_shape, psf_shape):
    return tuple(n + p - 1 for n, p in zip(data_shape, psf_shape, strict=True))


def dense(psfs, data_shape):
    """H as one matrix, column by column, rows of all views below each other."""
    columns = []
    for u in range(int(np.prod(grown(data_shape, psfs.shape[1:])))):
        x = np.zeros(grown(data_shape, psfs.shape[1:]))
        x.flat[u] = 1.0
        columns.append(np.concatenate([loop_forward(x, h, data_shape).ravel() for h in psfs]))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize(("data_shape", "psf_shape"), SHAPES)
def test_forward_is_the_double_loop(data_shape, psf_shape):
    rng = np.random.default_rng(1)
    psfs = rng.uniform(size=(2, *psf_shape))
    x = rng.normal(size=grown(data_shape, psf_shape))
    expected = np.stack([loop_forward(x, h, data_shape) for h in psfs])
    # 1e-13: at most 60 sums of products of order one in float64.
    np.testing.assert_allclose(oracle.forward(x, psfs), expected, atol=1e-13)


@pytest.mark.parametrize(("data_shape", "psf_shape"), SHAPES[:2])
def test_adjoint_is_the_transposed_matrix(data_shape, psf_shape):
    rng = np.random.default_rng(2)
    psfs = rng.uniform(size=(2, *psf_shape))
    r = rng.normal(size=(2, *data_shape))
    expected = dense(psfs, data_shape).T @ r.ravel()
    np.testing.assert_allclose(oracle.adjoint(r, psfs).ravel(), expected, atol=1e-13)


@pytest.mark.parametrize(("data_shape", "psf_shape"), SHAPES)
def test_a_point_of_the_data_window_becomes_the_psf_around_it(data_shape, psf_shape):
    h = np.random.default_rng(3).uniform(size=psf_shape)
    x = np.zeros(grown(data_shape, psf_shape))
    point = tuple(n // 2 for n in data_shape)
    x[oracle.data_slices(data_shape, psf_shape)][point] = 1.0
    y = oracle.forward(x, h[None])[0]
    for m in product(*map(range, data_shape)):
        j = tuple(m[a] - point[a] + psf_shape[a] // 2 for a in range(3))
        inside = all(0 <= j[a] < psf_shape[a] for a in range(3))
        assert y[m] == pytest.approx(h[j] if inside else 0.0, abs=1e-15)


def test_two_iterations_with_explicit_matrices():
    data_shape, psf_shape = (3, 4, 3), (2, 3, 2)
    rng = np.random.default_rng(4)
    psfs = rng.uniform(0.1, 1.0, size=(2, *psf_shape))
    psfs /= psfs.sum()
    y = rng.uniform(1.0, 5.0, size=(2, *data_shape))
    w = rng.uniform(size=y.shape)
    w[0, 0] = 0.0
    h, s, b = dense(psfs, data_shape), 3.0, 0.4
    sensitivity = h.T @ w.ravel()
    sensitivity = np.maximum(sensitivity, 1e-3 * sensitivity.max())
    data = y.ravel() / s
    x0 = h.T @ (w.ravel() * data) / sensitivity
    assert x0.min() > 1e-6
    x1 = x0 * (h.T @ (w.ravel() * data / (h @ x0 + b / s))) / sensitivity  # t0 = 1: no momentum in the first step
    t1 = (1 + 5**0.5) / 2
    t2 = (1 + (1 + 4 * t1**2) ** 0.5) / 2
    p = x1 + (t1 - 1) / t2 * (x1 - x0)
    assert p.min() > 1e-6  # no floor acts in this problem
    x2 = p * (h.T @ (w.ravel() * data / (h @ p + b / s))) / sensitivity
    expected = x2.reshape(grown(data_shape, psf_shape))[oracle.data_slices(data_shape, psf_shape)] * s
    got = oracle.deconvolve(y, psfs, iterations=2, intensity_scale=s, background=b, weights=w)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_noise_free_data_leave_the_true_volume_where_it_is():
    psfs = oracle.random_psf(5, (3, 3, 3), views=2)
    rng = np.random.default_rng(5)
    x = rng.uniform(0.5, 2.0, size=(7, 8, 9))
    weights = np.ones((2, 5, 6, 7))
    y = oracle.forward(x, psfs) + 0.3
    sensitivity = oracle.adjoint(weights, psfs)
    assert sensitivity.min() > 0
    none = np.zeros(y.shape, dtype=bool)
    after = oracle.multiplicative_step(x, y, 0.3, weights, psfs, sensitivity, 0.0, np.zeros_like, none)
    np.testing.assert_allclose(after, x, rtol=1e-13)


def finite_differences(value, x, step):
    gradient = np.zeros_like(x)
    for i in range(x.size):
        up, down = x.copy(), x.copy()
        up.flat[i] += step
        down.flat[i] -= step
        gradient.flat[i] = (value(up) - value(down)) / (2 * step)
    return gradient


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 3), (2, 1, 1), (1, 1, 1)])
def test_tv_by_loops_and_finite_differences(shape):
    voxel = (0.5, 0.2, 0.25)
    factor = [0.4, 1.0, 0.8]
    x = np.random.default_rng(6).uniform(size=shape)
    total = 0.0
    for m in product(*(range(n - 1) if n > 1 else range(1) for n in shape)):
        square = 1e-6
        for a in range(3):
            if shape[a] > 1:
                neighbour = tuple(m[i] + (i == a) for i in range(3))
                square += (factor[a] * (x[neighbour] - x[m])) ** 2
        total += square**0.5
    assert oracle.tv_value(x, voxel) == pytest.approx(total, rel=1e-13)
    # Central differences of step 1e-5: third derivative / 6 x 1e-10, below 1e-6 where |D x| is of order 0.1 or more.
    slopes = finite_differences(lambda v: oracle.tv_value(v, voxel), x, 1e-5)
    np.testing.assert_allclose(oracle.tv_gradient(x, voxel), slopes, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.6, -0.6, 1.3])
def test_the_potential_is_the_integral_of_its_slope(gamma):
    prior = oracle.random_prior(mu=7.0, beta=2.0, gamma=gamma)
    for t in (-9.0, -1.7, -0.1, 0.0, 0.2, 0.5, 1.9, 4.0):
        breaks = [p for p in (0.0, 2.0 / (7 + min(abs(gamma), 1)), 2.0 / max(min(abs(gamma), 1), 1e-9)) if p < abs(t)]
        area, _ = quad(lambda u: float(oracle.potential_slope(np.float64(u), prior)), 0, abs(t), points=breaks or None)
        assert oracle.potential(np.float64(t), prior) == pytest.approx(area, abs=1e-10)
    assert oracle.potential_slope(np.float64(0.1), prior) == pytest.approx(0.7)
    if gamma:
        assert oracle.potential_slope(np.float64(-1.5), prior) == pytest.approx(-2.0 + 1.5 * min(abs(gamma), 1.0))


def loop_layer(x, w):
    """A layer by loops over output voxels, channels and taps, as torch's conv3d writes it (no flip)."""
    extent = [n - 2 for n in x.shape[1:]]
    out = np.zeros((w.shape[0], *extent))
    for o, i in product(range(w.shape[0]), range(w.shape[1])):
        for m in product(*map(range, extent)):
            for tap in product(range(3), repeat=3):
                out[(o, *m)] += w[(o, i, *tap)] * x[(i, *(m[a] + tap[a] for a in range(3)))]
    return out


def test_learned_value_by_loops():
    prior = oracle.random_prior(7, channels=(1, 2, 3))
    x = np.random.default_rng(7).uniform(size=(5, 7, 6))
    out = x[None]
    for w in prior.layers:
        out = loop_layer(out, w)
    out = out / prior.lambda_max**0.5
    np.testing.assert_allclose(oracle.analysis(x, prior), out, atol=1e-13)
    sigma = 7.5 / 255  # half-way between the knots at 5 and 10
    total = 0.0
    for channel in range(3):
        s = (prior.scaling[channel, 1] + prior.scaling[channel, 2]) / 2
        alpha = np.exp(s) / (7.5 + 1e-5)
        total += sum(float(oracle.potential(alpha * t, prior)) / alpha**2 for t in out[channel].ravel())
    assert oracle.learned_value(x, prior, sigma) == pytest.approx(total, rel=1e-12)


def test_scalings_stay_constant_outside_the_knots():
    prior = oracle.random_prior(8)
    assert oracle.scales(prior, 80 / 255)[2] == pytest.approx(np.exp(prior.scaling[2, -1]) / (80 + 1e-5))
    assert oracle.scales(prior, 0.0)[2] == pytest.approx(np.exp(prior.scaling[2, 0]) / 1e-5)


def test_learned_synthesis_is_the_transpose():
    prior = oracle.random_prior(9, channels=(1, 2, 3))
    rng = np.random.default_rng(9)
    x, r = rng.normal(size=(6, 5, 7)), rng.normal(size=(3, 2, 1, 3))
    assert (oracle.analysis(x, prior) * r).sum() == pytest.approx((x * oracle.synthesis(r, prior)).sum(), rel=1e-12)


@pytest.mark.parametrize("amplitude", [0.01, 0.1, 1.0])
def test_learned_gradient_by_finite_differences(amplitude):
    prior = oracle.random_prior(10, channels=(1, 2, 3))
    x = amplitude * np.random.default_rng(10).uniform(size=(6, 5, 7))
    sigma = 5 / 255
    slopes = finite_differences(lambda v: oracle.learned_value(v, prior, sigma), x, 1e-6)
    gradient = oracle.learned_gradient(x, prior, sigma)
    assert np.abs(gradient).max() > 1e-3
    # R is piecewise quadratic: exact but for rounding (1e-16 R / 1e-6) and for kinks within the step (below mu x 1e-6).
    np.testing.assert_allclose(gradient, slopes, atol=2e-6)


def test_volumes_smaller_than_the_filters_have_no_prior():
    prior = oracle.random_prior(11)
    x = np.ones((1, 9, 9))
    assert oracle.learned_value(x, prior, 0.01) == 0
    assert not oracle.learned_gradient(x, prior, 0.01).any()


def test_fourier_norm_bounds_and_meets_the_norm_of_the_matrix():
    prior = oracle.random_prior(12, channels=(1, 2, 3))
    square = oracle.fourier_norm_squared(prior.layers)
    kernel = np.zeros((1, 13, 13, 13))  # composed filter, circular response on a grid: the same by numpy's FFT
    kernel[0, 6, 6, 6] = 1.0
    for w in prior.layers:
        kernel = oracle.correlate_layer(kernel, w)
    response = (np.abs(np.fft.fftn(kernel, s=(48,) * 3, axes=(1, 2, 3))) ** 2).sum(axis=0).max()
    # The grid of 48 misses the peak by at most (curvature) x (1/96)^2 per axis: under 2 %.
    assert response <= square * (1 + 1e-9)
    assert response >= 0.98 * square
    x = np.random.default_rng(12).normal(size=(16, 16, 16))
    for _ in range(60):
        x = oracle.synthesis(oracle.analysis(x / np.linalg.norm(x), prior), prior)
    assert 0.8 < np.linalg.norm(x) <= 1.0
