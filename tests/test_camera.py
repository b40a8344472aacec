"""What is data and what is not, on simulated volumes whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from bigdeconv.numerics.camera import Camera, DataMask, VoxelCounts, hot_ratio, invalid_voxels
from bigdeconv.numerics.estimation import detect_fill, estimate_background, estimate_scale
from tests.strategies import triples


def gaussian_psf(sigma, n=13):
    kernel = np.zeros((n, n, n))
    kernel[n // 2, n // 2, n // 2] = 1
    kernel = gaussian_filter(kernel, sigma)
    return kernel / kernel.sum()


def everywhere(volume):
    return [np.ones(volume.shape, bool)]


def judged(photons, kernel):
    """The hot voxels, with background and scale estimated as for a real volume."""
    mask = everywhere(photons)
    background = estimate_background(zip([photons], mask, strict=True), [n // 2 for n in kernel.shape])
    scale = estimate_scale(zip([photons], mask, strict=True), background) or 1.0
    return invalid_voxels(photons, photons, DataMask(None, hot_ratio(kernel[None]), background, scale))[2]


class TestCamera:
    @given(
        offset=st.floats(0, 500), gain=st.floats(0.01, 10), read_noise=st.floats(0, 5), counts=st.integers(0, 2**16 - 1)
    )
    @settings(max_examples=50)
    def test_counts_become_photons(self, offset, gain, read_noise, counts):
        photons = Camera(offset, gain, read_noise).photons(np.array([counts], np.uint16))
        expected = max((counts - offset) * gain + read_noise**2, 0)
        assert photons.dtype == np.float32
        assert photons[0] == pytest.approx(expected, rel=1e-6, abs=1e-5 * gain * (counts + offset + 1))

    def test_counts_are_taken_as_they_are_by_default(self):
        counts = np.array([0, 1, 65535], np.uint16)
        np.testing.assert_array_equal(Camera().photons(counts), [0, 1, 65535])

    def test_mean_and_variance_agree_afterwards(self):
        """The read noise's variance is added so that the noise stays Poisson-like."""
        rng = np.random.default_rng(0)
        counts = 100 + (rng.poisson(50, 200_000) + rng.normal(0, 3, 200_000)) / 0.5
        photons = Camera(offset=100, gain=0.5, read_noise=3).photons(counts)
        assert photons.mean() == pytest.approx(59, rel=0.01)
        assert photons.var() == pytest.approx(photons.mean(), rel=0.02)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_what_is_not_finite_or_negative_becomes_zero(self, dtype):
        counts = np.array([np.nan, np.inf, -np.inf, -5, 7], dtype)
        kept = counts.copy()
        photons = Camera(offset=1).photons(counts)
        np.testing.assert_array_equal(photons, [0, 0, 0, 0, 6])
        assert photons.dtype == dtype
        np.testing.assert_array_equal(counts, kept)

    def test_a_background_in_counts_is_one_in_photons(self):
        camera = Camera(offset=100, gain=0.5, read_noise=2)
        assert camera.background(20) == 14
        assert camera.photons(np.array([120], np.uint16))[0] == 14


class TestMasks:
    def test_not_finite(self):
        counts = np.ones((2, 2, 2), np.float32)
        counts[0, 0, 0], counts[1, 0, 1], counts[1, 1, 1] = np.nan, np.inf, -np.inf
        not_finite, fill, hot = invalid_voxels(counts, Camera().photons(counts), DataMask())
        np.testing.assert_array_equal(not_finite, ~np.isfinite(counts))
        assert not fill.any()
        assert not hot.any()

    def test_fill(self):
        counts = np.array([[[0, 3, 0, 7]]], np.uint16)
        np.testing.assert_array_equal(
            invalid_voxels(counts, Camera().photons(counts), DataMask(fill=0))[1], [[[True, False, True, False]]]
        )

    def test_counts_add_up(self):
        total = VoxelCounts(8, 1, 2, 3, 4) + VoxelCounts(8, 0, 1, 0, 1)
        assert total == VoxelCounts(voxels=16, not_finite=1, fill=3, hot=3, negative=5)


class TestHotPixels:
    @pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
    @pytest.mark.parametrize("peak", [2.5, 10, 100, 1000])
    def test_a_bead_is_no_defect(self, sigma, peak):
        """Single voxels of light, blurred, anywhere in the volume, its corners included; with photon noise."""
        kernel = gaussian_psf(sigma)
        for seed in range(12):
            rng = np.random.default_rng(seed)
            beads = np.zeros((20, 22, 24))
            for place in rng.integers(0, beads.shape, (1 + seed % 4, 3)):
                beads[tuple(place)] = 1
            beads[0, 0, 0] = seed % 2
            clean = gaussian_filter(beads, sigma, mode="constant") * (peak / kernel.max())
            photons = rng.poisson(clean + [0.1, 2, 20][seed % 3]).astype(np.float32)
            assert not judged(photons, kernel).any()

    @pytest.mark.parametrize("place", [(11, 12, 13), (0, 5, 7), (23, 23, 23), (0, 0, 0)])
    @pytest.mark.parametrize("level", [30, 1000])
    def test_a_hot_pixel_is_found_alone(self, place, level):
        kernel = gaussian_psf(1.5)
        rng = np.random.default_rng(0)
        clean = gaussian_filter((rng.random((24, 24, 24)) < 0.01) * 1.0, 1.5)
        photons = rng.poisson(clean * (level / clean.max()) + 2).astype(np.float32)
        photons[place] = 10 * level
        assert np.argwhere(judged(photons, kernel)).tolist() == [list(place)]

    def test_in_a_flat_image_too(self):
        kernel = gaussian_psf(1.5)
        photons = np.random.default_rng(0).poisson(5, (1, 40, 40)).astype(np.float32)
        photons[0, 7, 9] = 500
        assert np.argwhere(judged(photons, kernel[6:7])).tolist() == [[0, 7, 9]]

    @pytest.mark.parametrize("shape", [(1, 1, 1), (5, 5, 5)])
    def test_a_psf_of_one_voxel_can_make_anything(self, shape):
        kernel = np.zeros(shape)
        kernel[tuple(n // 2 for n in shape)] = 1
        assert hot_ratio(kernel[None]) is None
        photons = np.random.default_rng(0).poisson(1, (10, 10, 10)).astype(np.float32)
        photons[5, 5, 5] = 1e6
        assert not judged(photons, kernel).any()
        wide = np.pad(gaussian_psf(1.0, 5), 0)
        assert hot_ratio(np.stack([wide, np.pad(np.ones((1, 1, 1)), 2)])) is None

    def test_the_sharpest_view_decides(self):
        sharp, wide = gaussian_psf(0.6), gaussian_psf(2.0)
        neighbour = sharp[6, 6, 6] / max(sharp[5, 6, 6], sharp[6, 5, 6])
        assert hot_ratio(np.stack([wide, sharp, wide])) == pytest.approx(3 * neighbour)

    @given(triples(1, 7), st.integers(0, 2**32 - 1), st.sampled_from(["float32", "float64"]))
    @settings(max_examples=60, deadline=None)
    def test_voxel_by_voxel(self, shape, seed, dtype):
        """A peak that exceeds what its brightest neighbour, or a tenth of the scale, allows, and the noise of that."""
        rng = np.random.default_rng(seed)
        photons = rng.poisson(rng.choice([20, 200]), shape).astype(dtype)  # on the dark, and within what is bright
        photons[rng.random(shape) < 0.05] *= rng.choice([4, 30])
        b, ratio, scale = 5.0, 3.0, 40.0
        expected = np.zeros(shape, bool)
        for place in np.ndindex(*shape):
            around = photons[tuple(slice(max(i - 1, 0), i + 2) for i in place)].ravel().tolist()
            peak = float(photons[place])
            around.remove(peak)
            allowed = max(ratio * (max(around, default=0.0) - b), ratio * scale / 10)
            expected[place] = peak >= max(around, default=0.0) and peak - b > allowed + 8 * (allowed + b) ** 0.5
        np.testing.assert_array_equal(invalid_voxels(photons, photons, DataMask(None, ratio, b, scale))[2], expected)

    def test_windows_that_share_a_voxel_judge_it_alike(self):
        """But for the faces, where a window does not see the neighbours."""
        kernel = gaussian_psf(1.0)
        rng = np.random.default_rng(3)
        photons = rng.poisson(3, (30, 16, 16)).astype(np.float32)
        for place in rng.integers(1, 15, (6, 3)):
            photons[tuple(place + np.array([7, 0, 0]))] = 400
        data_mask = DataMask(None, hot_ratio(kernel[None]), 3.0, 10.0)
        whole = invalid_voxels(photons, photons, data_mask)[2]
        assert whole.sum() >= 4
        for start, stop in ((0, 18), (10, 30)):
            part = invalid_voxels(photons[start:stop], photons[start:stop], data_mask)[2]
            np.testing.assert_array_equal(part[1:-1], whole[start + 1 : stop - 1])


class TestFill:
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
    def test_zeros_around_a_mosaic(self, dtype):
        rng = np.random.default_rng(0)
        volume = (100 + rng.poisson(20, (20, 30, 30))).astype(dtype)
        volume[:, :9] = 0
        assert detect_fill([volume], 0.0) == 0.0
        assert detect_fill([volume[:, 9:]], 0.0) is None  # none occurs

    @pytest.mark.parametrize(
        ("dtype", "factor"), [("uint16", 1), ("uint16", 100), ("float32", 1), ("float32", 0.1), ("float32", 100)]
    )
    @pytest.mark.parametrize("photons", [0.3, 2.5, 10, 90])
    def test_zeros_among_photon_counts(self, photons, dtype, factor):
        """Dim volumes hold zeros next to ones, whatever dtype they are stored in and whatever a photon counts there."""
        rng = np.random.default_rng(0)
        light = gaussian_filter(rng.random((20, 30, 30)), 2)
        light = photons * np.clip((light - light.min()) / np.ptp(light), 0, 1) ** 3
        volume = (rng.poisson(light) * factor).astype(dtype)
        assert (volume == 0).any()
        assert detect_fill([volume], 0.0) is None

    def test_another_fill_value(self):
        volume = np.random.default_rng(0).poisson(20, (10, 20, 20)).astype(np.int16) + 100
        volume[:, :5] = -1
        assert detect_fill([volume], -1.0) == -1.0
        assert detect_fill([volume], 0.0) is None

    def test_empty_and_broken_volumes(self):
        assert detect_fill([np.zeros((4, 4, 4), np.uint16)], 0.0) is None
        assert detect_fill([np.full((4, 4, 4), np.nan, np.float32)], 0.0) is None
        assert detect_fill([np.ones((4, 4, 4), np.float32)], float("nan")) is None

    def test_regions_are_judged_together(self):
        """One region without light does not make the zeros of the others data."""
        filled = np.zeros((8, 8, 8), np.uint16)
        lit = (100 + np.random.default_rng(0).poisson(20, (8, 8, 8))).astype(np.uint16)
        assert detect_fill([filled, lit], 0.0) == 0.0


class TestBackground:
    @pytest.mark.parametrize("background", [0.5, 2, 10, 100])
    @pytest.mark.parametrize("sigma", [1.0, 2.0])
    def test_biased_low_within_a_band(self, sigma, background):
        """Where structure leaves room: never above by more than 2 %, never below by more than six deviations of the mean."""
        radius = round(4 * sigma)
        deviation = 1 / np.sqrt(background * radius**3)
        for seed in range(4):
            rng = np.random.default_rng(seed)
            light = gaussian_filter((rng.random((40, 40, 40)) < 0.0005) * 1.0, sigma)
            clean = light * (20 * background / light.max()) + background
            photons = rng.poisson(clean).astype(np.float32)
            found = estimate_background(zip([photons], everywhere(photons), strict=True), [radius] * 3) / background
            assert 1 - 6 * deviation <= found <= 1.02

    def test_what_is_no_datum_does_not_count(self):
        rng = np.random.default_rng(0)
        photons = rng.poisson(10, (24, 24, 24)).astype(np.float32)
        mask = np.ones(photons.shape, bool)
        mask[:, :10] = False
        photons[~mask] = 0
        found = estimate_background(zip([photons], [mask], strict=True), [6, 6, 6])
        assert 8 <= found <= 10
        assert (
            estimate_background(zip([photons], everywhere(photons), strict=True), [6, 6, 6]) == 0
        )  # what masking is for

    @pytest.mark.parametrize("value", [0, 1e4])
    def test_scattered_defects_do_not_count(self, value):
        rng = np.random.default_rng(0)
        mask = rng.random((24, 24, 24)) > 0.3
        photons = np.where(mask, rng.poisson(10, mask.shape), value).astype(np.float32)
        assert 8 <= estimate_background(zip([photons], [mask], strict=True), [6, 6, 6]) <= 10

    def test_a_constant_is_its_own_background(self):
        photons = np.full((8, 8, 8), 7, np.float32)
        assert estimate_background(zip([photons], everywhere(photons), strict=True), [0, 1, 3]) == pytest.approx(7)

    def test_nothing_to_estimate_from(self):
        photons = np.ones((4, 4, 4), np.float32)
        assert estimate_background(zip([photons], [np.zeros(photons.shape, bool)], strict=True), [2, 2, 2]) == 0
        assert estimate_background(zip([], [], strict=True), [2, 2, 2]) == 0


class TestScale:
    def test_bright_voxels_above_the_background(self):
        photons = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
        assert estimate_scale(zip([photons], everywhere(photons), strict=True), 100) == pytest.approx(
            np.percentile(photons, 99.9) - 100
        )
        assert estimate_scale(zip([photons, photons], everywhere(photons) * 2, strict=True), 0) == pytest.approx(
            998, abs=1
        )

    def test_only_data_count(self):
        photons = np.ones((10, 10, 10), np.float32)
        photons[0] = 1e6
        assert estimate_scale(zip([photons], [photons < 10], strict=True), 0) == 1

    def test_it_follows_the_gain(self):
        photons = np.random.default_rng(0).poisson(20, (20, 20, 20)).astype(np.float32)
        one, ten = (estimate_scale(zip([f * photons], everywhere(photons), strict=True), f * 5.0) for f in (1, 10))
        assert ten == pytest.approx(10 * one)

    def test_constant_or_empty(self):
        photons = np.full((4, 4, 4), 5, np.float32)
        assert estimate_scale(zip([photons], everywhere(photons), strict=True), 5.0) == 0
        assert estimate_scale(zip([photons], everywhere(photons), strict=True), 6.0) == 0
        assert estimate_scale(zip([photons], [np.zeros(photons.shape, bool)], strict=True), 0.0) == 0
