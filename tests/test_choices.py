"""What the data decide: background, width of the PSF, strength and iterations, and what is told when they do not fit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import signal

from bigdeconv import PSF, Result, deconvolve, models, psf, simulation
from bigdeconv.calibration import choices
from bigdeconv.calibration.choices import Bench, Window
from bigdeconv.calibration.numbers import Findings as NoFindings
from bigdeconv.calibration.numbers import SignalLevels, UserOverrides, check_settings, decide, first_guess
from bigdeconv.numerics.restoration import ResolvedSettings
from bigdeconv.numerics.thinning import Place

pytestmark = pytest.mark.slow

VOXEL_ZYX_UM = (0.23, 0.1, 0.1)
SHAPE = (16, 40, 40)
SIGMA = (2.0, 1.3, 1.3)
BACKGROUND = 8.0


def kernel(width=1.0):
    return psf.gaussian([s * width for s in SIGMA], truncate=3.0)


def imaged(kind="tubes", seed=1, photons=80.0, background=BACKGROUND):
    """Counts of an object that goes on beyond the window, and the object in photons."""
    blur = kernel()
    grown = tuple(n + p - 1 for n, p in zip(SHAPE, blur.shape, strict=True))
    truth = simulation.objects(kind, seed, grown, VOXEL_ZYX_UM, size_um=1.2)
    light = np.maximum(signal.fftconvolve(truth, blur, mode="valid"), 0)
    factor = photons / np.percentile(light, 99.9)
    counts = np.random.default_rng(seed).poisson(light * factor + background)
    inside = tuple(slice(p // 2, p // 2 + n) for p, n in zip(blur.shape, SHAPE, strict=True))
    return counts, truth[inside] * factor


def bench_of(counts, width=1.0, method="rltv"):
    settings = ResolvedSettings(method=method, iterations=50, voxel_zyx_um=VOXEL_ZYX_UM, sigma=5 / 255)
    scale = float(np.percentile(counts, 99.9) - BACKGROUND)
    model = models.resolve("compact")
    first = settings.calibrated(tau=first_guess(settings, scale, model), background=BACKGROUND, intensity_scale=scale)
    bench = Bench((Window(counts[None].astype(np.float32), None, Place()),), model)
    return bench, PSF(kernel(width)[None], VOXEL_ZYX_UM), first


class TestBackground:
    @pytest.mark.parametrize("kind", ["tubes", "nuclei", "mesh"])
    @pytest.mark.parametrize("first", [0.6, 1.0, 1.6])
    def test_it_is_found_from_any_first_estimate(self, kind, first):
        counts, _ = imaged(kind)
        bench, prepared, settings = bench_of(counts)
        found = choices.choose_background(bench, prepared, settings.__class__(**{
            **{name: getattr(settings, name) for name in settings.__dataclass_fields__}, "background": first * BACKGROUND,
        }))  # fmt: skip
        assert found.background == pytest.approx(BACKGROUND, rel=0.2)
        assert found.interval[0] <= BACKGROUND <= found.interval[1] * 1.01

    def test_the_flux_is_right(self):
        counts, truth = imaged("tubes")
        estimate = deconvolve(counts, PSF(kernel()[None], VOXEL_ZYX_UM), method="rl")
        assert estimate.mean() == pytest.approx(truth.mean(), rel=0.15)


class TestWidth:
    @pytest.mark.parametrize("kind", ["tubes", "nuclei", "membranes", "puncta", "texture"])
    def test_the_right_psf_raises_no_alarm(self, kind):
        counts, _ = imaged(kind)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            deconvolve(counts, PSF(kernel()[None], VOXEL_ZYX_UM), method="rl", tau=0.0)

    @pytest.mark.parametrize("method", ["rl", "garl"])
    def test_a_psf_that_is_too_wide_is_told_and_the_run_stops_early(self, method):
        counts, _ = imaged("tubes")
        with pytest.warns(UserWarning, match=r"sharper than the PSF allows.*--psf-scale auto"):
            found = deconvolve(counts, PSF(kernel(1.4)[None], VOXEL_ZYX_UM), method=method, return_choices=True)
        assert found.findings.fell_back
        assert found.settings.iterations <= 20

    @pytest.mark.parametrize("width", [0.7, 1.4])
    def test_the_width_is_found(self, width):
        counts, _ = imaged("nuclei", photons=200.0)
        bench, prepared, settings = bench_of(counts, width)
        found = choices.choose_width(bench, prepared, check_settings(settings))
        assert found.factor == pytest.approx(1 / width, rel=0.15)
        assert found.is_told

    def test_data_without_structure_do_not_tell_it(self):
        counts = np.random.default_rng(0).poisson(50.0, SHAPE)
        bench, prepared, settings = bench_of(counts)
        assert not choices.choose_width(bench, prepared, check_settings(settings)).is_told


class TestIterations:
    def test_they_are_chosen_within_their_bound(self):
        counts, _ = imaged("nuclei")
        found = deconvolve(counts, PSF(kernel()[None], VOXEL_ZYX_UM), method="rl", return_choices=True)
        assert isinstance(found, Result)
        assert 5 <= found.settings.iterations <= 50

    def test_brighter_data_take_more(self):
        prepared = PSF(kernel()[None], VOXEL_ZYX_UM)
        few, many = (
            deconvolve(imaged("mesh", photons=n)[0], prepared, method="rl", return_choices=True).settings.iterations
            for n in (5.0, 5000.0)
        )
        assert few < many

    def test_a_given_number_is_kept(self):
        counts, _ = imaged("nuclei")
        found = deconvolve(counts, PSF(kernel()[None], VOXEL_ZYX_UM), method="rltv", iterations=7, return_choices=True)
        assert found.settings.iterations == 7


class TestCamera:
    def test_a_gain_and_an_offset_that_nobody_tells_change_little(self):
        counts, truth = imaged("mesh", photons=150.0)
        prepared = PSF(kernel()[None], VOXEL_ZYX_UM)
        plain = deconvolve(counts, prepared, method="rl", return_choices=True)
        told = deconvolve(counts * 10.0 + 100, prepared, method="rl", return_choices=True)
        assert told.camera.gain == pytest.approx(0.1, rel=0.25)
        # In the units of the data.
        assert told.estimate.mean() / 10 == pytest.approx(truth.mean(), rel=0.25)
        assert told.settings.iterations == pytest.approx(plain.settings.iterations, abs=15)


class TestBudget:
    def decided(self, seconds):
        counts, _ = imaged("tubes")
        scale = float(np.percentile(counts, 99.9) - BACKGROUND)
        settings = ResolvedSettings(method="rltv", iterations=50, voxel_zyx_um=VOXEL_ZYX_UM)
        return decide(
            settings, SignalLevels(BACKGROUND, scale, is_flat=False),
            lambda: [Window(counts[None].astype(np.float32), None, Place())],
            PSF(kernel()[None], VOXEL_ZYX_UM), None, UserOverrides(), NoFindings(),
            budget_seconds=seconds, default_iterations=30,
        )  # fmt: skip

    def test_without_time_everything_keeps_its_default_and_is_named(self):
        found = self.decided(0.0)
        assert found.settings.iterations == 30
        assert found.settings.background == BACKGROUND
        assert set(found.findings.not_chosen) == {"tau", "background", "PSF width", "iterations"}

    def test_with_time_nothing_does(self):
        assert self.decided(600.0).findings.not_chosen == ()
