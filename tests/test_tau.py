"""Selection of τ by data thinning: against the best by the truth, against brute force, and independent of units."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import xlogy

from bigdeconv import PSF, deconvolve, models, psf, simulation
from bigdeconv.calibration.choices import TAU_STEP, Window
from bigdeconv.calibration.numbers import SignalLevels, chosen_tau
from bigdeconv.calibration.windows import window_of
from bigdeconv.geometry import Box
from bigdeconv.numerics import estimation, metrics
from bigdeconv.numerics.restoration import ResolvedSettings
from bigdeconv.numerics.strength import initial_tau
from bigdeconv.numerics.thinning import Place

pytestmark = pytest.mark.slow

VOXEL_ZYX_UM = (0.12, 0.04, 0.04)
ITERATIONS = 30
FACTORS = (1 / 9, 1 / 3, 1, 3, 9)


def tubes(shape=(16, 40, 40), seed=3):
    extent = [n * v for n, v in zip(shape, VOXEL_ZYX_UM, strict=True)]
    specimen = simulation.tubes(
        seed, extent, count=(3, 4), outer_radius_um=(0.04, 0.2), sigma_um=0.06, fluorophores_per_um=2000.0
    )
    return simulation.sample(specimen, shape, VOXEL_ZYX_UM, peak_one=True)


def seen_through(kernel, photons, seed=3):
    """Data ``v z y x``, the truth, settings and signal levels."""
    truth = tubes()
    counts = simulation.acquire(truth, kernel, photons=photons, background=1.0, seed=seed)[None].astype(np.float32)
    scale = estimation.estimate_scale(zip(list(counts), [np.ones(truth.shape, bool)], strict=True), 1.0)
    settings = ResolvedSettings(method="garl", iterations=ITERATIONS, voxel_zyx_um=VOXEL_ZYX_UM, sigma=5 / 255)
    return counts, truth, settings, SignalLevels(1.0, scale, is_flat=False)


def choose_tau(counts, weights, kernel, model, settings, levels):
    prepared = PSF(kernel[None], VOXEL_ZYX_UM)
    return chosen_tau(settings, levels, [Window(counts, weights, Place())], prepared, model)


AIRYSCAN = psf.airyscan(voxel_zyx_um=VOXEL_ZYX_UM, na=1.4, n_views=1)[0]
BROAD = psf.gaussian((2.0, 2.5, 2.5))


class TestAgainstTheTruth:
    @pytest.mark.parametrize(
        ("kernel", "photons", "within_db"), [(AIRYSCAN, 100.0, 0.3), (AIRYSCAN, 8.0, 0.3), (BROAD, 60.0, 0.4)]
    )
    def test_the_learned_prior_is_near_its_best(self, kernel, photons, within_db):
        self.check("garl", kernel, photons, within_db)

    @pytest.mark.parametrize("kernel", [AIRYSCAN, BROAD], ids=["airyscan", "broad"])
    def test_tv_is_near_its_best(self, kernel):
        self.check("rltv", kernel, 60.0, 0.6)

    def check(self, method, kernel, photons, within_db):
        counts, truth, settings, levels = seen_through(kernel, photons)
        settings = replace(settings, method=method)
        model = models.resolve("compact")
        chosen = choose_tau(counts, None, kernel, model, settings, levels)

        def rsnr(tau):
            given = {"background": 1.0, "intensity_scale": levels.intensity_scale, "sigma": settings.sigma}
            estimate = deconvolve(
                counts[0], kernel, method=method, iterations=ITERATIONS, tau=tau, voxel_zyx_um=VOXEL_ZYX_UM, **given
            )
            return metrics.rsnr(estimate, truth)

        found = {f: rsnr(chosen * f) for f in FACTORS}
        assert found[1] > max(found.values()) - within_db


def test_chosen_is_what_predicts_the_other_half_best():
    """Brute force over strengths, with a split and a prediction of the test's own."""
    counts, _, settings, levels = seen_through(AIRYSCAN, 60.0)
    settings, levels = replace(settings, method="rltv"), levels._replace(intensity_scale=50.0)
    half = np.random.default_rng(0).binomial(counts.astype(np.int64), 0.5)
    blur = PSF(AIRYSCAN[None], VOXEL_ZYX_UM).operator(Box.of_shape(counts.shape[1:]), settings)

    def prediction_loss(tau):
        estimate = deconvolve(
            half[0], AIRYSCAN, method="rltv", iterations=ITERATIONS, tau=2**0.5 * tau, background=0.5, intensity_scale=25.0,
            voxel_zyx_um=VOXEL_ZYX_UM,
        )  # fmt: skip
        # The estimate covers the data only: away from the faces that is all that counts.
        inner = (0, slice(5, -5), slice(12, -12), slice(12, -12))
        whole = np.zeros(blur.estimate_shape, np.float32)
        whole[blur.data_slices] = estimate
        expected = blur.forward(torch.from_numpy(whole)).numpy() + 0.5
        return float((expected - xlogy(counts - half, expected))[inner].sum())

    first = initial_tau("rltv", 50.0, 0.0, 0.0)
    tried = [first * TAU_STEP**k for k in range(-4, 5)]
    best = min(tried, key=prediction_loss)
    chosen = choose_tau(counts, None, AIRYSCAN, None, settings, levels)
    assert best / TAU_STEP <= chosen <= best * TAU_STEP


class TestUnits:
    def test_the_same_photons_in_other_units_have_the_same_strength(self):
        """TV grows with its image: what counts as 1 changes neither side of the balance, but for the ε of TV."""
        counts, _, settings, levels = seen_through(AIRYSCAN, 60.0)
        settings = replace(settings, method="rltv", iterations=5)
        # The same strengths are tried: the first one goes with the photons at 1.
        other = levels._replace(intensity_scale=TAU_STEP * levels.intensity_scale)
        one, three = (choose_tau(counts, None, AIRYSCAN, None, settings, x) for x in (levels, other))
        # The photons tell a strength within a fraction of the step between candidates, which is a factor of three.
        assert one == pytest.approx(three, rel=0.2)

    def test_it_is_the_same_every_time(self):
        counts, _, settings, levels = seen_through(AIRYSCAN, 60.0)
        settings = replace(settings, iterations=3)
        model = models.resolve("compact")
        assert len({choose_tau(counts, None, AIRYSCAN, model, settings, levels) for _ in range(2)}) == 1

    def test_weightless_voxels_say_nothing(self):
        counts, _, settings, levels = seen_through(AIRYSCAN, 60.0)
        settings = replace(settings, method="rltv", iterations=5)
        weights = np.ones_like(counts)
        weights[..., :10] = 0
        spoilt = counts.copy()
        spoilt[..., :10] = 0
        masked = choose_tau(counts, weights, AIRYSCAN, None, settings, levels)
        assert choose_tau(spoilt, weights, AIRYSCAN, None, settings, levels) == pytest.approx(masked, rel=0.5)

    def test_rl_has_none(self):
        counts, _, settings, levels = seen_through(AIRYSCAN, 60.0)
        assert choose_tau(counts, None, AIRYSCAN, None, replace(settings, method="rl"), levels) == 0
        assert initial_tau("rl", 50.0, 0.0, 0.0) == 0


class TestWindow:
    @pytest.mark.parametrize("views", [1, 3])
    def test_it_is_the_brightest_of_all(self, views):
        rng = np.random.default_rng(1)
        photons = rng.random((views, 40, 70, 36))
        photons[:, 3:38, 30:65] += 0.2
        window = window_of(photons)
        shape = [s.stop - s.start for s in window]
        assert all(n <= m for n, m in zip(shape, photons.shape[1:], strict=True))
        sums = {
            (z, y, x): photons[:, z : z + shape[0], y : y + shape[1], x : x + shape[2]].sum()
            for z in range(41 - shape[0])
            for y in range(71 - shape[1])
            for x in range(37 - shape[2])
        }
        assert tuple(s.start for s in window) == max(sums, key=sums.__getitem__)

    def test_it_is_small(self):
        shape = [s.stop - s.start for s in window_of(np.ones((32, 64, 64, 64)))]
        assert shape == [32, 32, 32]
        assert [s.stop - s.start for s in window_of(np.ones((1, 9, 64, 64)))] == [9, 40, 40]
