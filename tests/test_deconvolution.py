"""`bigdeconv.deconvolve` against the oracle, against physics, and with input that it must refuse."""

import inspect
from pathlib import Path

import numpy as np
import pytest

import bigdeconv
from bigdeconv.errors import InvalidInputError
from bigdeconv.models.pyxudeconv import import_pyxudeconv
from bigdeconv.numerics.priors.weights import WcrrWeights
from tests import oracle

PUBLISHED = Path(__file__).parents[1].parent / "shared" / "models" / "pyxudeconv-3Dtubes"
REFERENCE = {"update": "reference"} if "update" in inspect.signature(bigdeconv.deconvolve).parameters else {}
"""The oracle states the reference update."""
SIGMA = 2.5 / 255
VOXEL = (0.3, 0.1, 0.12)
EXACT = 1e-10
"""Relative L2, float64: 5 iterations with these priors leave 2e-15 (FFT against direct sums); a wrong term leaves 1e-5."""
SINGLE = 1e-5
"""Relative L2, float32, weak priors (tau <= 0.01): 7e-7 measured, some ten times the rounding of one number."""


def package_weights(prior):
    return WcrrWeights(**vars(prior), kappa=1.0, sigma_default=SIGMA, card={"name": "random"})


@pytest.fixture(scope="module")
def small_prior():
    return oracle.random_prior(0)


@pytest.fixture(scope="module")
def published():
    """The published model for the package and, its numbers unchanged, for the oracle."""
    if not PUBLISHED.is_dir():
        pytest.skip("the published model is not at hand")
    theirs = import_pyxudeconv(PUBLISHED)
    names = ("layers", "scaling", "sigma_max", "sigma_unit", "log_mu", "beta", "gamma", "lambda_max")
    return theirs, oracle.Learned(**{name: getattr(theirs, name) for name in names})


def both(problem, *, method="rl", tau=0.0, prior=None, model=None, dtype="float64", iterations=5, **options):
    """The package's result and the oracle's."""
    y, psf = problem
    common = {"method": method, "iterations": iterations, "tau": tau, "background": 0.0, **options}
    voxel = common.pop("voxel", (1.0, 1.0, 1.0))
    learned = {}
    if prior is not None:
        common["sigma"] = SIGMA
        learned = {"model": package_weights(prior) if model is None else model}
    ours = bigdeconv.deconvolve(y, psf, voxel_zyx_um=voxel, dtype=dtype, **learned, **common, **REFERENCE)
    return ours, oracle.deconvolve(y, psf, prior=prior, voxel=voxel, **common)


def problem(shape, psf_shape, views=1, background=4.0, seed=0):
    """Data and PSFs as `deconvolve` takes them: without the view axis for one view."""
    psfs = oracle.random_psf(seed, psf_shape, views)
    y = oracle.random_data(seed, shape, psfs, background)
    return (y, psfs) if views > 1 else (y[0], psfs[0])


def scene(background=3.0):
    """Isolated blobs, noise-free, blurred by a centred Gaussian of radius 3: data, PSF, the true volume."""
    psf = gaussian((7, 7, 7))
    rng = np.random.default_rng(0)
    shape = (20, 20, 22)
    x = np.full(tuple(n + 6 for n in shape), 0.05)
    for _ in range(12):
        x[tuple(rng.integers(8, n - 8) for n in x.shape)] += rng.uniform(2, 10)
    y = 100 * oracle.forward(x, psf[None])[0] + background
    return y, psf, 100 * x[oracle.data_slices(shape, psf.shape)]


def gaussian(shape, width=1.3, skew=0.0):
    axes = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij", sparse=True)
    psf = np.exp(-sum(a**2 for a in axes) / (2 * width**2)) * np.clip(1 + skew * (axes[0] + axes[2]), 0.05, None)
    return psf / psf.sum()


def rl(y, psf, iterations=15, **options):
    return bigdeconv.deconvolve(y, psf, method="rl", iterations=iterations, dtype="float64", **options, **REFERENCE)


# ------------------------------------------------------------------------------------------------ against the oracle

GEOMETRIES = [
    ((13, 15, 14), (5, 5, 5), 1),
    ((12, 14, 13), (4, 6, 5), 1),
    ((12, 13, 12), (5, 4, 3), 3),
    ((9, 16, 8), (3, 7, 6), 2),
]
METHODS = {
    "rl": {"method": "rl"},
    "rltv": {"method": "rltv", "tau": 0.02, "voxel": VOXEL},
    "garl": {"method": "garl", "tau": 0.05},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("shape", "psf_shape", "views"), GEOMETRIES)
def test_float64_is_the_oracle(shape, psf_shape, views, method, small_prior):
    data = problem(shape, psf_shape, views)
    options = {"background": 4.0, "intensity_scale": 150.0, "weights": oracle.random_weights(1, data[0].shape)}
    prior = small_prior if method == "garl" else None
    ours, expected = both(data, prior=prior, **METHODS[method], **options)
    assert ours.shape == shape
    assert ours.dtype == np.float64
    assert oracle.relative(ours, expected) < EXACT
    if method != "rl":  # the prior is no bystander (three views make it three times weaker)
        assert oracle.relative(oracle.deconvolve(*data, iterations=5, **options), expected) > 1e-4


@pytest.mark.parametrize("method", ["rltv", "garl"])
@pytest.mark.parametrize(
    ("shape", "psf_shape", "views", "iterations"),
    # After 25 iterations the momentum has been at its bound for some.
    [*((*geometry, 5) for geometry in GEOMETRIES), ((9, 10, 8), (3, 3, 4), 9, 5), ((6, 7, 8), (3, 3, 4), 1, 25)],
)
def test_the_convergent_update_is_the_oracle(shape, psf_shape, views, iterations, method):
    y, psfs = problem(shape, psf_shape, views)
    options = {**METHODS[method], "background": 4.0, "intensity_scale": 150.0, "update": "convergent"}
    options["iterations"] = iterations
    options["weights"] = oracle.random_weights(1, y.shape)
    prior = oracle.random_prior(0, mu=2.5)  # below the cap of the convergent update
    learned = {"sigma": SIGMA, "model": package_weights(prior)} if method == "garl" else {}
    voxel = options.pop("voxel", (1.0, 1.0, 1.0))
    ours = bigdeconv.deconvolve(y, psfs, voxel_zyx_um=voxel, dtype="float64", **options, **learned)
    expected = oracle.deconvolve(y, psfs, voxel=voxel, prior=prior, sigma=SIGMA, **options)
    assert oracle.relative(ours, expected) < EXACT


@pytest.mark.parametrize("method", METHODS)
def test_float32_is_the_oracle(method, small_prior):
    data = problem((13, 12, 14), (5, 4, 3), 2)
    options = {**METHODS[method], "prior": small_prior if method == "garl" else None}
    if method == "garl":
        options["tau"] = 0.01
    ours, expected = both(data, dtype="float32", background=4.0, intensity_scale=150.0, **options)
    assert ours.dtype == np.float32
    assert oracle.relative(ours, expected) < SINGLE


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", EXACT), ("float32", SINGLE)])
def test_the_published_model_is_the_oracle(published, dtype, tolerance):
    model, prior = published
    data = problem((13, 14, 12), (5, 5, 4))
    options = {"background": 4.0, "intensity_scale": 150.0}
    ours, expected = both(data, method="garl", tau=0.01, model=model, prior=prior, dtype=dtype, **options)
    assert oracle.relative(ours, expected) < tolerance
    assert oracle.relative(oracle.deconvolve(*data, iterations=5, **options), expected) > 1e-3


@pytest.mark.parametrize("iterations", [0, 1, 12])
def test_iterations_are_counted(iterations):
    ours, expected = both(problem((12, 11, 10), (3, 4, 5)), iterations=iterations, background=4.0, intensity_scale=90.0)
    assert oracle.relative(ours, expected) < EXACT


def test_floors_act_as_stated():
    """No background, empty regions, a prior that pulls to nothing: p and x meet their floors."""
    rng = np.random.default_rng(3)
    y = np.where(rng.uniform(size=(12, 13, 11)) < 0.05, rng.uniform(20, 90, (12, 13, 11)), 0.0)
    y[2:6] = 0.0
    y[8, 8, 8] = -5.0
    psf = oracle.random_psf(3, (3, 4, 3))[0]
    ours, expected = both((y, psf), method="rltv", tau=0.3, intensity_scale=70.0, iterations=4)
    assert expected.min() == pytest.approx(70e-6)
    assert oracle.relative(ours, expected) < EXACT


def test_the_predicted_data_are_floored():
    """A faint PSF, no background, data around the floor: there H p + b itself is below 1e-6 of the scale."""
    y = 70.0 * np.random.default_rng(4).uniform(1e-7, 2e-6, size=(10, 12, 11))
    psf = 0.05 * oracle.random_psf(4, (3, 4, 3))[0]
    ours, expected = both((y, psf), intensity_scale=70.0)
    assert oracle.relative(ours, expected) < EXACT


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("psf_shape", [(1, 5, 6), (3, 5, 4)])
def test_a_single_plane_is_the_oracle(psf_shape, method, small_prior):
    """One plane: TV has no difference along z, and no filter of the learned prior fits."""
    data = problem((1, 18, 17), psf_shape)
    options = {**METHODS[method], "prior": small_prior if method == "garl" else None}
    ours, expected = both(data, background=4.0, intensity_scale=80.0, **options)
    assert ours.shape == (1, 18, 17)
    assert oracle.relative(ours, expected) < EXACT


@pytest.mark.parametrize("method", METHODS)
def test_units_scale_through(method, small_prior):
    """Data, background and scale times 7: the result times 7."""
    y, psf = problem((12, 13, 14), (4, 5, 3))
    options = {"method": method, "tau": 0.02, "iterations": 6, "dtype": "float64", "voxel_zyx_um": VOXEL, **REFERENCE}
    if method == "garl":
        options |= {"model": package_weights(small_prior), "sigma": SIGMA}
    one = bigdeconv.deconvolve(y, psf, background=3.0, intensity_scale=110.0, **options)
    seven = bigdeconv.deconvolve(7 * y, psf, background=21.0, intensity_scale=770.0, **options)
    assert oracle.relative(seven, 7 * one) < 1e-11  # rounding alone


def test_the_voxel_size_counts_by_its_ratios_only():
    data = problem((11, 12, 13), (3, 3, 3))
    options = {"method": "rltv", "tau": 0.1, "background": 4.0, "intensity_scale": 90.0}
    small, expected = both(data, voxel=(0.3, 0.1, 0.12), **options)
    large, _ = both(data, voxel=(3.0, 1.0, 1.2), **options)
    cubic, _ = both(data, voxel=(1.0, 1.0, 1.0), **options)
    assert oracle.relative(small, expected) < EXACT
    assert oracle.relative(large, small) < 1e-11
    assert oracle.relative(cubic, small) > 1e-3


def test_one_view_may_have_its_own_axis():
    y, psf = problem((10, 11, 12), (3, 4, 5))
    options = {"background": 4.0, "intensity_scale": 90.0, "iterations": 3}
    np.testing.assert_array_equal(rl(y, psf, **options), rl(y[None], psf[None], **options))


def test_input_is_left_as_it_was():
    y, psf = problem((10, 11, 12), (3, 4, 5))
    weights = oracle.random_weights(2, y.shape)
    y[0, 0, 0] = -3.0
    copies = y.copy(), psf.copy(), weights.copy()
    rl(y, psf, weights=weights, background=1.0, intensity_scale=90.0, saturation=50.0, iterations=2)
    for before, after in zip(copies, (y, psf, weights), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("kind", ["uint16", "float32"])
def test_kinds_of_data(kind):
    y, psf = problem((10, 11, 12), (3, 4, 5))
    options = {"background": 4.0, "intensity_scale": 90.0, "iterations": 3}
    np.testing.assert_allclose(rl(y.astype(kind), psf, **options), rl(y, psf, **options), rtol=1e-12)  # whole counts


# --------------------------------------------------------------------------------------------------------- physics


@pytest.mark.parametrize("skew", [0.0, 0.25], ids=["symmetric", "lopsided"])
@pytest.mark.parametrize("shape", [(17, 18, 16), (15, 17, 13)])
def test_a_point_comes_back_where_it_was(shape, skew):
    psf, point = gaussian((7, 7, 7), skew=skew), (8, 7, 9)
    y = np.full(shape, 5.0)
    y[tuple(slice(p - 3, p + 4) for p in point)] += 1000 * psf
    x = rl(y, psf, iterations=20, background=5.0, intensity_scale=y.max())
    assert np.unravel_index(x.argmax(), shape) == point
    assert x.max() > 3 * (y.max() - 5)
    centroid = [(x * a).sum() / x.sum() for a in np.meshgrid(*map(np.arange, shape), indexing="ij")]
    np.testing.assert_allclose(centroid, point, atol=0.05)


def test_flux_is_kept():
    y, psf, true = scene()
    x = rl(y, psf, background=3.0, intensity_scale=y.max())
    # RL keeps the flux of what the data see; 1 % covers the exchange across the border.
    assert x.sum() == pytest.approx((y - 3.0).sum(), rel=0.01)
    inner = (slice(2, -2),) * 3  # the blobs lie 5 voxels and more inside
    assert x[inner].sum() == pytest.approx(true[inner].sum(), rel=0.01)


@pytest.mark.parametrize("pixel", [(3, 3, 3), (10, 10, 11), (19, 10, 0)])
def test_a_hot_pixel_of_weight_zero_leaves_no_trace(pixel):
    y, psf, _ = scene()
    options = {"background": 3.0, "intensity_scale": y.max()}
    clean = rl(y, psf, **options)
    hot, weights = y.copy(), np.ones_like(y)
    hot[pixel], weights[pixel] = 4000.0, 0.0
    # 1 %: one datum less in noise-free data.  Believed, the pixel costs 8 % on an edge and hundreds of per cent inside.
    assert oracle.relative(rl(hot, psf, weights=weights, **options), clean) < 0.01
    assert oracle.relative(rl(hot, psf, **options), clean) > 0.05


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_no_datum(junk):
    y, psf, _ = scene()
    options = {"background": 3.0, "intensity_scale": y.max(), "iterations": 5}
    broken, weights = y.copy(), np.ones_like(y)
    broken[9, 10, 4:7], weights[9, 10, 4:7] = junk, 0.0
    np.testing.assert_allclose(rl(broken, psf, **options), rl(y, psf, weights=weights, **options), rtol=1e-12)


def test_a_zero_filled_half_leaves_the_other_as_if_cropped():
    y, psf, _ = scene()
    options = {"background": 3.0, "intensity_scale": y.max()}
    filled, weights = y.copy(), np.ones_like(y)
    filled[..., :11], weights[..., :11] = 0.0, 0.0
    kept = rl(filled, psf, weights=weights, **options)[..., 11:]
    # The kept data see the estimate within the PSF's radius only: the same problem, to rounding.
    assert oracle.relative(kept, rl(y[..., 11:], psf, **options)) < EXACT
    believed = rl(filled, psf, **options)[..., 11:]
    assert oracle.relative(believed, kept) > 0.1


def test_a_zero_filled_half_is_not_felt_away_from_it():
    y, psf, _ = scene()
    y = np.concatenate([np.full((20, 20, 10), y[0, 0, 0]), y], axis=2)
    options = {"background": 3.0, "intensity_scale": y.max()}
    clean = rl(y, psf, **options)
    filled, weights = y.copy(), np.ones_like(y)
    filled[..., :9], weights[..., :9] = 0.0, 0.0
    far = (..., slice(9 + 6, None))  # two PSF radii away
    assert oracle.relative(rl(filled, psf, weights=weights, **options)[far], clean[far]) < 0.01


def test_a_saturated_voxel_means_at_least():
    psf, point = gaussian((7, 7, 7)), (8, 7, 9)
    y = np.full((17, 16, 18), 2.0)
    y[tuple(slice(p - 3, p + 4) for p in point)] += 1000 * psf
    level = 0.4 * y.max()
    cut = np.minimum(y, level)
    options = {"background": 2.0, "intensity_scale": y.max(), "iterations": 40}
    clean, told, untold = rl(y, psf, **options), rl(cut, psf, saturation=level, **options), rl(cut, psf, **options)
    assert oracle.relative(told, clean) < 0.6 * oracle.relative(untold, clean)
    assert told.max() > 3 * untold.max()  # the flank, not the flat top, tells the height
    few, expected = both((cut, psf), saturation=level, **{**options, "iterations": 6})
    assert oracle.relative(few, expected) < EXACT
    np.testing.assert_array_equal(rl(y, psf, saturation=2 * y.max(), **options), clean)


@pytest.mark.parametrize("scale", [41000.0, 52345.6, 60001.3, 65534.9, 71234.5])
def test_the_top_of_the_data_type_is_saturated_in_float32_too(scale):
    """Voxels exactly at the level count, whichever way the division by the scale rounds."""
    psf, point = gaussian((5, 5, 5)), (6, 5, 7)
    y = np.full((12, 11, 13), 300.0)
    y[tuple(slice(p - 2, p + 3) for p in point)] += 4e6 * psf
    y = np.minimum(np.round(y), 65535).astype(np.uint16)
    assert (y == 65535).sum() > 10
    options = {"background": 300.0, "intensity_scale": scale, "iterations": 10, "saturation": 65535}
    ours = bigdeconv.deconvolve(y, psf, method="rl", dtype="float32", **options, **REFERENCE)
    # Empty surroundings fall to the floors, so float32 keeps fewer digits than SINGLE; a level missed costs over 10 %.
    assert oracle.relative(ours, oracle.deconvolve(y, psf, **options)) < 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fill", ["data of zero", "no datum"])
def test_nothing_to_restore_gives_no_light(method, fill, small_prior):
    y = np.zeros((10, 11, 12))
    options = {"weights": np.zeros(y.shape)} if fill == "no datum" else {}
    if method == "garl":
        options |= {"model": package_weights(small_prior), "sigma": SIGMA}
    options |= {"method": method, "tau": 0.02, "iterations": 3, "background": 1.0, "intensity_scale": 50.0}
    x = bigdeconv.deconvolve(y, gaussian((3, 3, 3)), **options, **REFERENCE)
    assert np.isfinite(x).all()
    assert np.abs(x).max() <= 50.0 * 1e-3


# --------------------------------------------------------------------------------------------------------- bad input

DATA = np.ones((8, 9, 10))
PSF = np.full((3, 3, 3), 1 / 27)


def altered(array, value):
    array = array.copy()
    array[1, 1, 1] = value
    return array


BAD = {
    "flat data": ("y", {"y": np.ones((8, 9))}),
    "flat PSF": ("psf", {"psf": np.ones((3, 3)) / 9}),
    "PSF with views, data without": ("psf", {"psf": np.stack([PSF, PSF])}),
    "three views, two PSFs": ("psf", {"y": np.stack([DATA] * 3), "psf": np.stack([PSF, PSF])}),
    "weights of another shape": ("weights", {"weights": np.ones((8, 9, 9))}),
    "weights above 1": ("weights", {"weights": 2 * np.ones(DATA.shape)}),
    "weights below 0": ("weights", {"weights": -np.ones(DATA.shape)}),
    "weights not a number": ("weights", {"weights": altered(np.ones(DATA.shape), np.nan)}),
    "PSF with NaN": ("psf", {"psf": altered(PSF, np.nan)}),
    "PSF with infinity": ("psf", {"psf": altered(PSF, np.inf)}),
    "PSF all zero": ("psf", {"psf": 0 * PSF}),
    "PSF of negative sum": ("psf", {"psf": -PSF}),
    "negative iterations": ("iterations", {"iterations": -1}),
    "half an iteration": ("iterations", {"iterations": 2.5}),
    "unknown method": ("method", {"method": "wiener"}),
    "negative tau": ("tau", {"method": "rltv", "tau": -0.1}),
    "tau not a number": ("tau", {"method": "rltv", "tau": np.nan}),
    "negative sigma": ("sigma", {"method": "garl", "tau": 0.1, "sigma": -0.1}),
    "background not a number": ("background", {"background": np.nan}),
    "negative background": ("background", {"background": -1.0}),
    "scale of zero": ("intensity_scale|intensity scale", {"intensity_scale": 0.0}),
    "voxel of zero": ("voxel", {"method": "rltv", "tau": 0.1, "voxel_zyx_um": (1.0, 0.0, 1.0)}),
    "unknown dtype": ("dtype", {"dtype": "float16"}),
    "unknown model": ("model", {"method": "garl", "tau": 0.1, "model": "no-such-model"}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case):
    argument, change = BAD[case]
    arguments = {"method": "rl", "iterations": 1, "background": 0.1, "intensity_scale": 1.0, **REFERENCE, **change}
    with pytest.raises(InvalidInputError, match=rf"(?i)\b({argument})"):
        bigdeconv.deconvolve(arguments.pop("y", DATA), arguments.pop("psf", PSF), **arguments)
