"""Gain and dark level from the noise: what is put in comes out, with honest intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bigdeconv.numerics.photon_transfer import estimate_camera

SHAPE = (20, 48, 48)


def light(seed, photons):
    rng = np.random.default_rng(seed)
    blurred = ndimage.gaussian_filter(rng.random(SHAPE) ** 8, (3, 1.3, 1.3), mode="wrap")
    return photons * (np.linspace(0, 1, SHAPE[2]) ** 2 * blurred / blurred.max() + 0.05)


def found(counts, **settings):
    return estimate_camera([(counts, np.ones(counts.shape, bool))], **settings)


@pytest.mark.parametrize("photons", [10, 100, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_photons_are_taken_as_they_are(photons, seed):
    estimate = found(np.random.default_rng(seed).poisson(light(seed, photons)))
    assert estimate.is_photon_counting
    assert not estimate.is_correlated


@pytest.mark.parametrize("gain", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_gain_is_found(gain, offset):
    estimate = found(np.random.default_rng(1).poisson(light(1, 200)) / gain + offset)
    assert estimate.is_known
    assert not estimate.is_photon_counting
    assert estimate.gain == pytest.approx(gain, rel=0.25)


def test_offset_and_read_noise_make_one_dark_level():
    rng = np.random.default_rng(2)
    photons = rng.poisson(light(2, 60)) + rng.normal(0, 3, SHAPE)
    estimate = found(photons / 0.5 + 100)
    # In photons above it the variance is the mean: 100 counts less 3² photons at 0.5 photons per count.
    assert estimate.gain == pytest.approx(0.5, rel=0.15)
    assert estimate.dark == pytest.approx(100 - 9 / 0.5, abs=15)


@pytest.mark.parametrize(
    "filtered",
    [
        lambda y: ndimage.gaussian_filter(y, (0, 0.5, 0.5)),
        lambda y: (y[1:] + y[:-1]) / 2,
        lambda y: (y[:, :, 1:] + y[:, :, :-1]) / 2,
    ],
    ids=["smoothed", "between planes", "between columns"],
)
def test_resampled_data_are_found_out(filtered):
    assert found(filtered(np.random.default_rng(3).poisson(light(3, 100)).astype(float))).is_correlated


def test_invalid_and_saturated_voxels_do_not_count():
    counts = np.random.default_rng(4).poisson(light(4, 100)).astype(float)
    spoilt, valid = counts.copy(), np.ones(SHAPE, bool)
    spoilt[:, :10], valid[:, :10] = 1e6, False
    spoilt[:, 40:] = 255
    estimate = estimate_camera([(spoilt, valid)], ceiling=255)
    assert estimate.is_photon_counting


@pytest.mark.parametrize(
    "counts",
    [np.full((4, 16, 16), 7.0), np.zeros((1, 1, 1)), np.zeros((3, 4, 4)), np.ones((4, 16, 16)) * np.arange(16)],
    ids=["constant", "one voxel", "tiny", "no noise"],
)
def test_without_noise_nothing_is_known(counts):
    assert not found(counts).is_known


def test_samples_that_are_all_masked():
    assert not estimate_camera([(np.ones(SHAPE), np.zeros(SHAPE, bool))]).is_known
