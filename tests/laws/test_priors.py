"""Laws of the priors: gradients of their values, and the bounds with which the learned one is 1-weakly convex."""

import importlib.util
import sys
from functools import partial
from unittest.mock import Mock

import llvmlite.binding
import numpy as np
import pytest
import torch

from bigdeconv import models
from bigdeconv.numerics.priors import overlap_save, wcrr
from bigdeconv.numerics.priors.filters import Potential, SequentialConvolutions
from bigdeconv.numerics.priors.overlap_save import OverlapSaveFilters
from bigdeconv.numerics.priors.tv import TotalVariation
from bigdeconv.numerics.priors.wcrr import Wcrr, fourier_lambda_max
from bigdeconv.numerics.priors.weights import WcrrWeights
from bigdeconv.numerics.restoration import cpu_threads
from tests import oracle

SIGMA = 3.3 / 255


def package_weights(prior):
    return WcrrWeights(**vars(prior), kappa=1.0, sigma_default=SIGMA, card={"name": "random"})


def learned(prior, **options):
    return Wcrr(package_weights(prior), sigma=SIGMA, dtype=torch.float64, **options)


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


def gradient(prior, x):
    return prior.gradient(tensor(x)).numpy()


def volume(seed, shape, amplitude=1.0):
    """Smooth blobs and noise: small and large filter responses together."""
    rng = np.random.default_rng(seed)
    x = 0.05 * rng.normal(size=shape)
    for _ in range(4):
        corner = [rng.integers(0, max(n - 3, 1)) for n in shape]
        x[tuple(slice(c, c + 4) for c in corner)] += rng.uniform(0.2, 1.0)
    return amplitude * x


PRIORS = {
    "tv": lambda: TotalVariation((0.3, 0.1, 0.12), epsilon=1e-6),
    "learned": lambda: learned(oracle.random_prior(1)),
    "learned, weakly concave": lambda: learned(oracle.random_prior(2, channels=(1, 2, 3, 5), mu=25.0, gamma=-0.4)),
}
SHAPES = [(12, 13, 14), (9, 16, 7), (1, 12, 13), (13, 1, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PRIORS)
def test_gradient_is_the_slope_of_the_value(name, shape):
    prior = PRIORS[name]()
    x, direction = volume(1, shape), np.random.default_rng(2).normal(size=shape)
    step = 1e-6
    slope = (prior.value(tensor(x + step * direction)) - prior.value(tensor(x - step * direction))) / (2 * step)
    # Central differences: rounding 1e-16 R / step = 1e-7 for R < 1e3; curvature at kinks adds below mu x step x |d|.
    assert (gradient(prior, x) * direction).sum() == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("amplitude", [0.01, 1.0])
def test_tv_is_the_oracle(shape, amplitude):
    voxel = (0.3, 0.1, 0.12)
    x = volume(3, shape, amplitude)
    prior = TotalVariation(voxel, epsilon=1e-6)
    assert prior.value(tensor(x)) == pytest.approx(oracle.tv_value(x, voxel), rel=1e-12)
    # A few roundings per voxel, enlarged by |D x| / sqrt(epsilon) at most.
    np.testing.assert_allclose(gradient(prior, x), oracle.tv_gradient(x, voxel), atol=1e-11)


@pytest.mark.parametrize("shape", [(12, 13, 14), (7, 9, 8), (5, 5, 5), (4, 9, 9), (1, 12, 13)])
@pytest.mark.parametrize("amplitude", [0.01, 1.0, 20.0])
def test_learned_prior_is_the_oracle(shape, amplitude):
    equations = oracle.random_prior(3)
    x = volume(4, shape, amplitude)
    prior = learned(equations)
    assert prior.value(tensor(x)) == pytest.approx(oracle.learned_value(x, equations, SIGMA), rel=1e-10, abs=1e-14)
    expected = oracle.learned_gradient(x, equations, SIGMA)
    # Sums of some 10^3 products in another order, and alpha (up to 200) folded into a layer.
    assert np.linalg.norm(gradient(prior, x) - expected) <= 1e-11 * max(np.linalg.norm(expected), 1e-3)


@pytest.mark.parametrize("sigma", [0.5 / 255, 10 / 255, 12.5 / 255, 60 / 255])
def test_learned_prior_follows_the_splines(sigma):
    equations = oracle.random_prior(5)
    x = volume(5, (9, 10, 11))
    prior = Wcrr(package_weights(equations), sigma=sigma, dtype=torch.float64)
    assert oracle.relative(gradient(prior, x), oracle.learned_gradient(x, equations, sigma)) < 1e-11


@pytest.mark.parametrize("shape", [(17, 14, 12), (6, 20, 31), (12, 5, 5)])
@pytest.mark.parametrize(
    "filters",
    [
        SequentialConvolutions,
        partial(SequentialConvolutions, limit_bytes=1),
        partial(SequentialConvolutions, limit_bytes=1_200),
        partial(SequentialConvolutions, limit_bytes=20_000),
        partial(OverlapSaveFilters, segments=1),
        partial(OverlapSaveFilters, segments=4, depth=3),
    ],
)
def test_learned_prior_does_not_depend_on_how_its_filters_are_computed(filters, shape):
    equations = oracle.random_prior(6)
    x = volume(6, shape)
    default, other = learned(equations), learned(equations, filters=filters)
    # Rounding: the same sums in another order.
    assert oracle.relative(gradient(other, x), gradient(default, x)) < 1e-12
    assert other.value(tensor(x)) == pytest.approx(default.value(tensor(x)), rel=1e-12)


EXTENTS = [
    ((7, 7, 7), (9, 40, 61)),  # more segments in a plane than are taken at a time
    ((3, 9, 4), (5, 23, 40)),
    ((1, 15, 1), (2, 33, 37)),
    ((2, 1, 23), (4, 3, 90)),  # more taps beyond the first than positions in a segment
]


def random_filters(taps, shape, gamma=1.2):
    """Layers, scalings and a volume whose responses lie on both sides of the corners of ψ'."""
    rng = np.random.default_rng(8)
    layers = [
        tensor(rng.normal(size=(3, 1, *taps)) / np.sqrt(np.prod(taps))),
        tensor(rng.normal(size=(10, 3, 1, 1, 1))),
    ]
    return layers, tensor(rng.uniform(0.2, 1, 10)), Potential(10.0, 2.0, gamma), tensor(rng.normal(size=shape))


def filtered(kind, layers, alpha, potential, x):
    return kind(layers, alpha, dtype=x.dtype, device="cpu").apply(x, potential).numpy()


@pytest.mark.parametrize(("taps", "shape"), EXTENTS)
@pytest.mark.parametrize("gamma", [0.0, 1.2])
@pytest.mark.parametrize(
    "kind", [OverlapSaveFilters, partial(OverlapSaveFilters, segments=5, depth=2)], ids=["one tile", "tiles"]
)
def test_overlap_save_is_the_convolutions_for_filters_of_any_extent(taps, shape, gamma, kind):
    problem = random_filters(taps, shape, gamma)
    assert oracle.relative(filtered(kind, *problem), filtered(SequentialConvolutions, *problem)) < 1e-12


@pytest.mark.parametrize("features", [dict, Mock(side_effect=RuntimeError)], ids=["none", "unknown"])
def test_overlap_save_is_the_same_on_processors_with_narrow_vectors(monkeypatch, features):
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", features)
    found = importlib.util.find_spec("bigdeconv.numerics.priors.numba_kernels")
    narrow = importlib.util.module_from_spec(found)
    found.loader.exec_module(narrow)
    assert narrow.NEIGHBOURS == 8
    monkeypatch.setattr(overlap_save, "numba_kernels", narrow)
    problem = random_filters(*EXTENTS[0])
    assert oracle.relative(filtered(OverlapSaveFilters, *problem), filtered(SequentialConvolutions, *problem)) < 1e-12


def test_overlap_save_in_float32_is_exact_to_rounding():
    *problem, x = random_filters(*EXTENTS[0])
    # Sums of some 10^3 products: 30 roundings of 6e-8.
    assert (
        oracle.relative(filtered(OverlapSaveFilters, *problem, x.float()), filtered(OverlapSaveFilters, *problem, x))
        < 2e-6
    )


def test_overlap_save_takes_a_part_of_a_volume_and_hides_no_nan():
    *problem, x = random_filters(*EXTENTS[0])
    wide = torch.zeros(9, 40, 122, dtype=x.dtype)
    wide[:, :, ::2] = x
    with torch.inference_mode():
        np.testing.assert_array_equal(
            filtered(OverlapSaveFilters, *problem, wide[:, :, ::2]), filtered(OverlapSaveFilters, *problem, x)
        )
    x[4, 20, 30] = torch.nan
    assert np.isnan(filtered(OverlapSaveFilters, *problem, x)[4, 20, 30])


def test_overlap_save_does_not_depend_on_the_number_of_threads():
    kind, problem = partial(OverlapSaveFilters, segments=4, depth=3), random_filters(*EXTENTS[0])
    with cpu_threads(1):
        one = filtered(kind, *problem)
    with cpu_threads(3):
        # Except for the rounding of the transforms.
        np.testing.assert_allclose(filtered(kind, *problem), one, rtol=0, atol=1e-14 * np.abs(one).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_without_numba_the_filters_are_sequential_convolutions(monkeypatch, dtype, tolerance):
    """The fallback of a CPU without Numba is the same prior to rounding."""
    equations = oracle.random_prior(13)
    x = torch.tensor(volume(13, (12, 20, 41)), dtype=dtype)
    fast = Wcrr(package_weights(equations), sigma=SIGMA, dtype=dtype)
    assert isinstance(fast._filters, OverlapSaveFilters)
    monkeypatch.setattr(wcrr, "compiled_filters_available", lambda: False)
    plain = Wcrr(package_weights(equations), sigma=SIGMA, dtype=dtype)
    assert isinstance(plain._filters, SequentialConvolutions)
    assert oracle.relative(plain.gradient(x), fast.gradient(x).double().numpy()) < tolerance
    assert plain.value(x) == pytest.approx(fast.value(x), rel=tolerance)


@pytest.mark.parametrize("missing", ["numba", "llvmlite"])
def test_compiled_filters_need_numba_and_llvmlite(monkeypatch, missing):
    assert wcrr.compiled_filters_available()
    monkeypatch.setitem(sys.modules, missing, None)
    assert not wcrr.compiled_filters_available()


@pytest.mark.parametrize("limit_bytes", [1_500, 20_000])
def test_sequential_convolutions_keep_to_their_limit(limit_bytes):
    """Rows of 8 valid positions, 6 channels, 8 bytes: 384; a plane has 10 rows."""
    layers = [torch.tensor(layer) for layer in oracle.random_prior(6, channels=(1, 2, 6)).layers]
    filters = SequentialConvolutions(layers, torch.ones(6), dtype=torch.float64, device="cpu", limit_bytes=limit_bytes)
    sizes = [response.nbytes for response in filters.responses(tensor(volume(6, (17, 14, 12))))]
    assert max(sizes) <= limit_bytes < 2 * max(sizes)
    assert sum(sizes) == 13 * 10 * 384


def test_reach_is_what_the_gradient_looks_at():
    # A difference reaches one voxel; two layers of 3 see 5 voxels, and their adjoint looks as far again.
    for prior, reach in ((PRIORS["tv"](), 1), (PRIORS["learned"](), 4)):
        x = volume(7, (15, 15, 15))
        changed = x.copy()
        changed[7, 7, 7] += 0.5
        where = np.argwhere(np.abs(gradient(prior, changed) - gradient(prior, x)) > 1e-13)
        assert len(where)
        assert (np.abs(where - 7).max(axis=0) <= reach).all()


# ------------------------------------------------------------------------------------------------ norm and convexity


def strongest_direction(prior, mu, shape, rounds=40):
    """Power iteration on ``W^T W = grad R / mu``, exact where all responses are small; returns norm and direction."""
    tiny = 1e-6
    x = np.random.default_rng(8).normal(size=shape)
    x /= np.linalg.norm(x)
    for _ in range(rounds):
        after = gradient(prior, tiny * x) / (tiny * mu)
        norm = np.linalg.norm(after)
        x = after / norm
    return norm, x


@pytest.mark.parametrize("shape", [(16, 16, 16), (9, 14, 7)])
def test_norm_at_the_valid_positions_is_at_most_the_fourier_norm(shape):
    equations = oracle.random_prior(9)
    norm, _ = strongest_direction(learned(equations), equations.mu, shape)
    assert norm <= 1 + 1e-6  # rounding; the oracle's lambda_max is the supremum over all frequencies
    assert norm > 0.3  # and the bound is no triviality


@pytest.mark.parametrize("channels", [(1, 4), (1, 4, 8), (1, 3, 5, 6)])
def test_fourier_lambda_max_is_the_supremum_over_frequencies(channels):
    equations = oracle.random_prior(10, channels=channels)
    exact = oracle.fourier_norm_squared(equations.layers)
    # A trigonometric polynomial of degree d = 2 per layer and axis, sampled every 1/64, loses at most a fraction of
    # 3 (2 pi d / 128)^2 / 2 = 0.13 (d = 6); real filters, with the peak's curvature far below the bound, under 1e-2.
    assert exact * 0.99 <= fourier_lambda_max(equations.layers) <= exact * (1 + 1e-6)


@pytest.mark.parametrize(("mu", "gamma"), [(12.0, 1.4), (12.0, -0.5), (0.4, 1.0), (300.0, 1.0)])
def test_lipschitz_constant_and_weak_convexity(mu, gamma):
    equations = oracle.random_prior(11, mu=mu, gamma=gamma)
    prior = learned(equations)
    shape = (11, 12, 10)
    _, strongest = strongest_direction(prior, mu, shape, rounds=20)
    rng = np.random.default_rng(11)
    ratios, curvatures = [], []
    for amplitude in (1e-4, 1e-2, 0.1, 1.0):
        for distance in (1e-4, 1e-2, 1.0):
            x = volume(rng.integers(1000), shape, amplitude)
            for direction in (rng.normal(size=shape) / np.sqrt(x.size), strongest):
                d = distance * direction
                change = gradient(prior, x + d) - gradient(prior, x)
                ratios.append(np.linalg.norm(change) / np.linalg.norm(d))
                curvatures.append((d * change).sum() / (d**2).sum())
    ratios.append(np.linalg.norm(gradient(prior, 1e-6 * strongest)) / 1e-6)  # R is a parabola around 0
    # 1e-6 (relative for large mu): rounding of differences of gradients at distances down to 1e-4.
    assert max(ratios) <= max(mu, 1.0) * (1 + 1e-6)
    assert max(ratios) > 0.3 * mu  # the bound is met, so a norm too large would be seen
    assert min(curvatures) >= -1 - 1e-6


def test_the_concave_branch_is_met():
    """Two volumes between which every strong response lies on the falling branch: the inner product is negative."""
    equations = oracle.random_prior(12, channels=(1, 1), mu=50.0, beta=5.0, gamma=3.0)
    prior = learned(equations)
    shape = (16, 16, 16)
    norm, strongest = strongest_direction(prior, equations.mu, shape)
    response = np.abs(oracle.analysis(strongest, equations)) * oracle.scales(equations, SIGMA)
    middle = 2.5 / response.max()  # the largest response at psi' argument 2.5, between the knee 0.1 and the end 5
    d = 0.1 * middle * strongest
    change = gradient(prior, middle * strongest + d) - gradient(prior, middle * strongest)
    curvature = (d * change).sum() / (d**2).sum()
    assert -1 - 1e-6 <= curvature < -0.3 * norm


@pytest.mark.parametrize("shape", [(7, 5, 6), (7, 1, 6), (7, 1, 1)])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_tv_goes_slab_by_slab(shape, depth, monkeypatch):
    """In slabs of 1 to 4 planes, the last of them with 1 to 3 planes, the majorisers are those of the volume in one piece."""
    x = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ((_, gradient, curvature),) = TotalVariation((0.3, 0.1, 0.12)).quadratic_majorisers(x)
    monkeypatch.setattr("bigdeconv.numerics.slabs.SLAB_BYTES", depth * x[0].nbytes)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    parts = list(TotalVariation((0.3, 0.1, 0.12)).quadratic_majorisers(x))
    assert [planes.start for planes, _, _ in parts] == list(range(0, 7, depth))
    torch.testing.assert_close(torch.cat([part for _, part, _ in parts]), gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.cat([part for _, _, part in parts]), curvature, rtol=1e-12, atol=0)


def test_torchs_convolutions_are_exact_and_always_the_same_on_a_gpu(monkeypatch):
    """Wherever they run, not only on a worker: TF32 is cuDNN's default."""
    from bigdeconv.numerics.priors import filters

    seen, cudnn = [], torch.backends.cudnn
    for name in ("conv3d", "conv_transpose3d"):
        real = getattr(filters, name)

        def noted(*arguments, real=real):
            seen.append((cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark))
            return real(*arguments)

        monkeypatch.setattr(filters, name, noted)
    before = cudnn.allow_tf32, cudnn.deterministic
    prior = Wcrr(models.resolve("compact"), sigma=SIGMA, filters=SequentialConvolutions)
    prior.gradient(torch.rand(9, 9, 9))
    prior.value(torch.rand(9, 9, 9))
    assert len(seen) == 9
    assert set(seen) == {(False, True, False)}
    assert (cudnn.allow_tf32, cudnn.deterministic) == before
