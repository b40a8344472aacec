"""Metrics against closed forms and brute force."""

from itertools import product
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from bigdeconv.errors import InvalidInputError
from bigdeconv.numerics.metrics import fourier_shell_correlation, i_divergence, psnr, rsnr, seam_error

RNG = np.random.default_rng(0)
TRUTH = RNG.random((6, 7, 8))
ESTIMATE = TRUTH + 0.3 * RNG.normal(size=TRUTH.shape)


class TestRsnr:
    def test_is_the_least_squares_fit(self):
        design = np.stack([ESTIMATE.ravel(), np.ones(ESTIMATE.size)], axis=1)
        _, residual, *_ = np.linalg.lstsq(design, TRUTH.ravel())
        assert rsnr(ESTIMATE, TRUTH) == pytest.approx(10 * np.log10((TRUTH**2).sum() / residual[0]), rel=1e-9)

    @given(scale=st.floats(0.01, 100), offset=st.floats(-100, 100), sign=st.sampled_from([-1, 1]))
    @settings(max_examples=30, deadline=None)
    def test_scale_and_offset_of_the_estimate_do_not_matter(self, scale, offset, sign):
        assert rsnr(sign * scale * ESTIMATE + offset, TRUTH) == pytest.approx(rsnr(ESTIMATE, TRUTH), abs=1e-5)

    def test_extremes(self):
        assert rsnr(TRUTH, TRUTH) == inf
        assert rsnr(3 * TRUTH + 1, TRUTH) > 250
        # A constant estimate leaves the spread of the truth.
        expected = 10 * np.log10((TRUTH**2).mean() / TRUTH.var())
        assert rsnr(np.ones_like(TRUTH), TRUTH) == pytest.approx(expected)

    def test_refusals(self):
        with pytest.raises(InvalidInputError, match=r"estimate, truth: got shapes \(2,\) and \(3,\)"):
            rsnr(np.ones(2), np.ones(3))
        with pytest.raises(InvalidInputError, match="truth: got only zeros"):
            rsnr(np.ones(2), np.zeros(2))


class TestPsnr:
    def test_known_value(self):
        assert psnr(TRUTH + 0.1, TRUTH) == pytest.approx(20)
        assert psnr(TRUTH + 0.1, TRUTH, peak=10) == pytest.approx(40)
        assert psnr(TRUTH, TRUTH) == inf

    def test_refuses_a_peak_of_zero(self):
        with pytest.raises(InvalidInputError, match="peak: got 0; expected a positive number"):
            psnr(TRUTH, TRUTH, peak=0)


class TestIDivergence:
    def test_known_value(self):
        assert i_divergence([2.0, 0.0], [1.0, 3.0]) == pytest.approx(2 * np.log(2) - 1 + 3)

    def test_zero_only_for_the_data_itself(self):
        assert i_divergence(TRUTH, TRUTH) == 0
        assert i_divergence(TRUTH, TRUTH * 1.1) > 0
        assert i_divergence([0, 0], [0, 0]) == 0

    def test_light_that_the_model_excludes(self):
        assert i_divergence([1.0, 1.0], [0.0, 1.0]) == inf

    def test_integers_do_not_wrap(self):
        assert i_divergence(np.array([5], dtype=np.uint8), np.array([3], dtype=np.uint8)) == pytest.approx(
            5 * np.log(5 / 3) - 2
        )

    def test_refuses_negative_values(self):
        with pytest.raises(InvalidInputError, match=r"data, model: got minima -1, 0"):
            i_divergence([-1.0], [0.0])


class TestFourierShellCorrelation:
    voxel = (0.3, 0.1, 0.1)

    def images(self, seed=1, shape=(16, 48, 40)):
        return np.random.default_rng(seed).normal(size=shape)

    def test_identical_images_agree_at_every_frequency(self):
        image = self.images()
        frequencies, correlation = fourier_shell_correlation(image, 3 * image + 5, self.voxel)
        np.testing.assert_allclose(correlation, 1)
        np.testing.assert_allclose(np.diff(frequencies), 1 / 4.8)
        assert frequencies[-1] == pytest.approx(5, abs=1 / 4.8)
        np.testing.assert_allclose(fourier_shell_correlation(image, -image, self.voxel)[1], -1)

    def test_independent_noise_does_not(self):
        _, correlation = fourier_shell_correlation(self.images(1), self.images(2), self.voxel)
        assert np.abs(correlation[3:]).max() < 0.25
        assert np.abs(correlation[3:].mean()) < 0.05

    def test_signal_and_noise_give_the_known_ratio(self):
        """Two images of one white signal with white noise of equal power correlate at one half."""
        signal = self.images(3)
        _, correlation = fourier_shell_correlation(signal + self.images(4), signal + self.images(5), self.voxel)
        assert correlation[5:].mean() == pytest.approx(0.5, abs=0.05)

    def test_frequencies_are_physical_on_anisotropic_voxels(self):
        """A filter of one width in µm removes the same frequencies for any sampling of z."""
        cut_at = []
        for voxel, shape in (((0.1, 0.1, 0.1), (48, 48, 48)), ((0.2, 0.1, 0.1), (24, 48, 48))):
            common, sigma = self.images(6, shape), 0.1 / np.array(voxel)
            blurred = gaussian_filter(common, sigma, mode="wrap")
            noisy = [blurred + 0.02 * self.images(s, shape) for s in (7, 8)]
            frequencies, correlation = fourier_shell_correlation(*noisy, voxel)
            cut_at.append(frequencies[np.argmax(correlation < 0.5)])
        # exp(-(2πσf)²/2) falls to 0.02 at f = sqrt(2 ln 50)/(2πσ) = 4.45 per µm.
        np.testing.assert_allclose(cut_at, 4.45, atol=0.45)

    def test_against_the_full_transform(self):
        a, b = self.images(9, (5, 6, 7)), self.images(10, (5, 6, 7))
        voxel = np.array([0.2, 0.1, 0.15])
        frequencies, correlation = fourier_shell_correlation(a, b, voxel)
        window = 1.0
        for axis, n in enumerate(a.shape):
            window = window * np.hanning(n + 2)[1:-1].reshape([n if i == axis else 1 for i in range(3)])
        fa, fb = (np.fft.fftn((i - i.mean()) * window) for i in (a, b))
        grids = np.meshgrid(*[np.fft.fftfreq(n, v) for n, v in zip(a.shape, voxel, strict=True)], indexing="ij")
        radius = np.sqrt(sum(g**2 for g in grids))
        step = frequencies[0]
        for f, c in zip(frequencies, correlation, strict=True):
            s = np.rint(radius / step) == round(f / step)
            expected = (fa[s] * fb[s].conj()).sum().real / np.sqrt((abs(fa[s]) ** 2).sum() * (abs(fb[s]) ** 2).sum())
            assert c == pytest.approx(expected, abs=1e-9)

    def test_one_plane_gives_rings(self):
        plane = self.images(shape=(1, 32, 32))
        np.testing.assert_allclose(fourier_shell_correlation(plane, plane, self.voxel)[1], 1)

    def test_darkness_has_no_correlation(self):
        assert not fourier_shell_correlation(np.zeros((4, 4, 4)), np.zeros((4, 4, 4)), self.voxel)[1].any()

    @pytest.mark.parametrize(("shape", "voxel"), [((4, 4), (1, 1, 1)), ((4, 4, 4), (1, 1)), ((1, 1, 1), (1, 1, 1))])
    def test_refusals(self, shape, voxel):
        with pytest.raises(InvalidInputError, match="a, voxel_zyx_um: got shape"):
            fourier_shell_correlation(np.ones(shape), np.ones(shape), voxel)


class TestSeamError:
    @given(
        seams=st.tuples(*[st.lists(st.integers(1, n - 1), unique=True, max_size=3).map(sorted) for n in (6, 7, 8)]),
        width=st.integers(1, 4),
    )
    @settings(max_examples=30, deadline=None)
    def test_against_every_voxel(self, seams, width):
        expected = []
        for axis in range(3):
            difference = reference = 0.0
            for index in product(*map(range, TRUTH.shape)):
                # Voxel i has its centre at i + 1/2, a face before voxel s is at s.
                if any(abs(index[axis] + 0.5 - s) < width for s in seams[axis]):
                    difference += (ESTIMATE[index] - TRUTH[index]) ** 2
                    reference += TRUTH[index] ** 2
            expected.append(np.sqrt(difference / reference) if seams[axis] else 0.0)
        assert seam_error(ESTIMATE, TRUTH, seams, width) == pytest.approx(tuple(expected), rel=1e-9)

    def test_only_the_axis_with_the_fault_shows_it(self):
        untiled = np.ones((20, 20, 20), dtype=np.float32)
        tiled = untiled.copy()
        tiled[8:12] = 1.5
        z, y, x = seam_error(tiled, untiled, ((10,), (), ()), 2)
        assert (z, y, x) == (pytest.approx(0.5), 0.0, 0.0)
        assert seam_error(tiled, untiled, ((3, 16), (), ()), 2)[0] == 0

    def test_unsigned_integers_do_not_wrap(self):
        untiled = np.full((4, 1, 1), 10, dtype=np.uint16)
        assert seam_error(untiled - 5, untiled, ((2,), (), ()), 2)[0] == pytest.approx(0.5)

    def test_light_in_the_dark(self):
        dark = np.zeros((4, 4, 4))
        assert seam_error(dark, dark, ((2,), (2,), (2,)), 1) == (0, 0, 0)
        assert seam_error(dark + 1, dark, ((2,), (), ()), 1) == (inf, 0, 0)

    @pytest.mark.parametrize(
        ("seams", "width", "message"),
        [
            (((0,), (), ()), 1, "seams: got 0 on axis z; expected 1 to 5"),
            (((), (7,), ()), 1, "seams: got 7 on axis y; expected 1 to 6"),
            (((), ()), 1, "2 axes of seams"),
            (((), (), ()), 0, "width 0"),
        ],
    )
    def test_refusals(self, seams, width, message):
        with pytest.raises(InvalidInputError, match=message):
            seam_error(TRUTH, TRUTH, seams, width)
