"""PSFs: closed forms, corrections of `prepare`, and PSFs that it must not change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from bigdeconv.errors import InvalidInputError
from bigdeconv.psf import PSF, airyscan, gaussian, prepare
from bigdeconv.psf import models as psf_models
from bigdeconv.psf.scaling import rebinned

VOXEL = (1.0, 1.0, 1.0)


def blob(zyx_shape, centre, sigma):
    """Voxel integrals of a Gaussian at a position that need not be a voxel, in float64."""
    z, y, x = (
        np.diff(ndtr((np.arange(n + 1) - 0.5 - c) / s)) for n, c, s in zip(zyx_shape, centre, sigma, strict=True)
    )
    return z[:, None, None] * y[:, None] * x


def moments(array):
    """Centroid and standard deviation per axis, in voxels from the centre."""
    array = np.asarray(array, dtype=np.float64)
    centroid, spread = [], []
    for axis in range(3):
        marginal = array.sum(axis=tuple(a for a in range(3) if a != axis))
        marginal = marginal / marginal.sum()
        i = np.arange(marginal.size) - marginal.size // 2
        centroid.append(marginal @ i)
        spread.append(np.sqrt(marginal @ i**2 - centroid[-1] ** 2))
    return np.array(centroid), np.array(spread)


def embedded(array, zyx_shape):
    """The same array in the middle of another odd box, padded or cropped."""
    out = np.zeros(zyx_shape)
    here, there = [], []
    for n, m in zip(array.shape, zyx_shape, strict=True):
        k = min(n, m) // 2
        here.append(slice(n // 2 - k, n // 2 + k + 1))
        there.append(slice(m // 2 - k, m // 2 + k + 1))
    out[tuple(there)] = array[tuple(here)]
    return out


class TestGaussian:
    def test_sums_to_one_and_has_the_width_that_was_asked(self):
        kernel = gaussian((1.0, 2.0, 3.0), truncate=6)
        centroid, spread = moments(kernel)
        assert kernel.dtype == np.float32
        assert kernel.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(centroid, 0, atol=1e-6)
        # A voxel's integral adds the variance of the voxel.
        np.testing.assert_allclose(spread**2, np.array([1, 4, 9]) + 1 / 12, rtol=1e-4)

    def test_a_voxel_holds_its_integral(self):
        kernel = gaussian((0.0, 0.3, 0.0))
        inner = 2 * ndtr(0.5 / 0.3) - 1
        assert kernel.shape == (1, 3, 1)
        assert kernel.max() == pytest.approx(inner, rel=1e-3)

    def test_no_width_is_one_voxel(self):
        assert gaussian((0, 0, 0)).tolist() == [[[1.0]]]

    @pytest.mark.parametrize("sigma", [(1, 1), (1, 1, -1), (1, 1, np.nan)])
    def test_refuses_impossible_widths(self, sigma):
        with pytest.raises(InvalidInputError, match=r"sigma_zyx: got .*; expected three numbers"):
            gaussian(sigma)


class TestAiryscan:
    voxel = (0.15, 0.04, 0.04)

    def test_is_the_product_of_excitation_and_displaced_detection(self):
        """Brute force: sample both Gaussians finely, multiply, compare centroid, width and weight of the views."""
        views = airyscan(voxel_zyx_um=self.voxel, n_views=7, pitch_airy=0.4, truncate=6)
        excitation = psf_models._widefield_variances_um2(1.4, 0.488, 1.518)
        detection = psf_models._widefield_variances_um2(1.4, 0.52, 1.518)
        pitch = 0.4 * 1.22 * 0.52 / 1.4
        detection[1:] += 5 / 72 * pitch**2
        y = np.linspace(-1, 1, 4001)
        products = [np.exp(-0.5 * y**2 / excitation[2] - 0.5 * (y - d) ** 2 / detection[2]) for d in (0.0, pitch)]
        weight = products[1].sum() / products[0].sum()
        shift = (products[1] @ y) / products[1].sum()
        sums = views.sum(axis=(1, 2, 3), dtype=np.float64)
        np.testing.assert_allclose(sums[1:] / sums[0], weight, rtol=1e-3)
        for view in views[1:]:
            centroid, spread = moments(view)
            assert np.hypot(*(centroid[1:] * 0.04)) == pytest.approx(shift, rel=1e-3)
            width = np.sqrt((products[0] @ y**2) / products[0].sum())
            np.testing.assert_allclose(spread[1:] ** 2, (width / 0.04) ** 2 + 1 / 12, rtol=2e-3)

    def test_widths_meet_the_paraxial_limit(self):
        """At small apertures σ = √2/(k NA) laterally and 2√6 n/(k NA²) axially (Zhang et al. 2007)."""
        axial, lateral, _ = np.sqrt(psf_models._widefield_variances_um2(0.05, 0.5, 1.33))
        k = 2 * np.pi / 0.5
        assert lateral == pytest.approx(np.sqrt(2) / (k * 0.05), rel=1e-3)
        assert axial == pytest.approx(2 * np.sqrt(6) * 1.33 / (k * 0.05**2), rel=1e-3)

    def test_has_32_elements_at_hexagonal_distances(self):
        views = airyscan(voxel_zyx_um=self.voxel)
        assert views.shape[0] == 32
        assert all(n % 2 for n in views.shape[1:])
        assert views.sum(dtype=np.float64) == pytest.approx(32, rel=1e-5)
        squares = (psf_models._hexagonal_zyx(32) ** 2).sum(axis=1).round(6)
        assert squares.tolist() == [0] + [1] * 6 + [3] * 6 + [4] * 6 + [7] * 12 + [9]

    @pytest.mark.parametrize("count", [1, 2, 7, 19, 61])
    def test_lattice_is_taken_outwards_without_gaps(self, count):
        """Against every lattice point of a far larger patch."""
        i, j = np.meshgrid(np.arange(-40, 41), np.arange(-40, 41))
        nearest = np.sort((i**2 + i * j + j**2).ravel())[:count]
        np.testing.assert_allclose((psf_models._hexagonal_zyx(count) ** 2).sum(axis=1), nearest, atol=1e-9)

    @pytest.mark.parametrize(("change", "message"), [({"na": 1.6}, "na: got 1.6"), ({"n_views": 0}, "n_views: got 0")])
    def test_refuses_impossible_optics(self, change, message):
        with pytest.raises(InvalidInputError, match=message):
            airyscan(voxel_zyx_um=self.voxel, **change)


class TestLeavesAlone:
    @pytest.mark.parametrize("sigma", [(2, 2, 2), (1, 3, 2), (0.4, 0.7, 0.5), (4, 0, 0)])
    @pytest.mark.parametrize("truncate", [1.0, 2.0, 4.0])
    def test_a_gaussian_is_only_cropped_and_scaled(self, sigma, truncate):
        raw = gaussian(sigma, truncate=truncate)
        prepared = prepare(raw * np.float32(0.5), voxel_zyx_um=VOXEL)
        assert prepared.notes == ()
        kept = embedded(raw, prepared.views.shape[1:])
        np.testing.assert_array_equal(prepared.views[0], (kept / kept.sum()).astype(np.float32))

    def test_the_result_is_a_psf_on_the_grid_of_the_data(self):
        prepared = prepare(gaussian((1, 1, 1)), voxel_zyx_um=(0.2, 0.1, 0.1))
        assert isinstance(prepared, PSF)
        assert prepared.voxel_zyx_um == (0.2, 0.1, 0.1)
        assert prepared.support_zyx == prepared.views.shape[1:]

    def test_a_delta_is_exactly_one(self):
        prepared = prepare(np.full((1, 1, 1), 7), voxel_zyx_um=VOXEL, psf_voxel_zyx_um=(2, 2, 2))
        assert prepared.views.tolist() == [[[[1.0]]]]
        assert prepared.radius_zyx == (0, 0, 0)
        assert prepared.notes == ()

    @pytest.mark.parametrize("half_width", [0.3, 0.6, 0.8, 1.0, 1.5, 2.5])
    @pytest.mark.parametrize("axes", [3, 2])
    def test_tails_at_a_tight_crop_are_no_background(self, half_width, axes):
        """Cut anywhere, a Gaussian has corners far below its faces, or a border near its maximum."""
        n = 31 if axes == 2 else 21
        sigma = 0.5 * n / half_width
        shape = (1, n, n) if axes == 2 else (n, n, n)
        raw = blob(shape, [m // 2 for m in shape], (sigma,) * 3)
        assert prepare(raw, voxel_zyx_um=VOXEL).notes == ()

    def test_a_flat_box_is_a_psf(self):
        assert prepare(np.ones((3, 5, 5)), voxel_zyx_um=VOXEL).notes == ()

    def test_one_plane_and_a_y_x_array_are_the_same(self):
        plane = gaussian((0, 2, 2))[0]
        a, b = (prepare(p, voxel_zyx_um=VOXEL, volume_zyx_shape=(1, 40, 40)) for p in (plane, plane[None]))
        np.testing.assert_array_equal(a.views, b.views)
        assert a.views.shape[:2] == (1, 1)

    def test_even_extents_keep_their_centre_voxel(self):
        raw = blob((8, 10, 12), (4, 5, 6), (1, 1, 1))
        prepared = prepare(raw, voxel_zyx_um=VOXEL)
        assert prepared.notes == ()
        assert all(n % 2 for n in prepared.views.shape)
        assert np.unravel_index(prepared.views[0].argmax(), prepared.views.shape[1:]) == prepared.radius_zyx


class TestBackground:
    @pytest.mark.parametrize("height", [0.3, 5.0, 500.0])
    def test_an_exact_pedestal_comes_off_exactly(self, height):
        """Also where the light is far dimmer than the camera's offset."""
        raw = blob((21, 25, 25), (10, 12, 12), (2, 2, 2)) / 0.008 * height
        clean, lifted = prepare(raw, voxel_zyx_um=VOXEL), prepare(raw + 100, voxel_zyx_um=VOXEL)
        np.testing.assert_allclose(lifted.views, clean.views, atol=1e-6)
        assert lifted.notes == ("PSF: a constant background of 100 was subtracted.",)

    def test_a_noisy_bead_keeps_its_width_and_loses_the_noise(self):
        """Clipped noise of a large stack would outweigh the bead; nearby beads are not part of a PSF."""
        rng = np.random.default_rng(3)
        shape = (41, 60, 60)
        light = blob(shape, (20, 30, 30), (3, 2, 2)) + 0.5 * blob(shape, (8, 12, 45), (3, 2, 2))
        raw = rng.poisson(light * 4e5 + 120)
        prepared = prepare(raw, voxel_zyx_um=VOXEL, name="bead.tif")
        _, spread = moments(prepared.views[0])
        np.testing.assert_allclose(spread, (3, 2, 2), rtol=0.06)
        assert max(prepared.radius_zyx) <= 12
        assert prepared.notes[0].startswith("bead.tif: a constant background of 1")
        assert "within the noise" in prepared.notes[1]

    def test_each_view_loses_its_own_pedestal(self):
        views = np.stack([blob((15, 15, 15), (7, 7, 7), (1.5,) * 3)] * 2) * [[[[100.0]]], [[[300.0]]]]
        lifted = views + np.array([5.0, 9.0])[:, None, None, None]
        prepared = prepare(lifted, voxel_zyx_um=VOXEL).views
        np.testing.assert_allclose(prepared, prepare(views, voxel_zyx_um=VOXEL).views, atol=1e-6)

    def test_negative_voxels_are_clipped_and_noted_only_if_they_matter(self):
        raw = blob((15, 15, 15), (7, 7, 7), (1.5,) * 3)
        raw[7, 7, 12] = -1e-5
        assert prepare(raw, voxel_zyx_um=VOXEL).notes == ()
        raw[7, 7, 12] = -0.02
        prepared = prepare(raw, voxel_zyx_um=VOXEL)
        assert prepared.notes == ("PSF: negative voxels, 2.00% of the energy, were set to 0.",)
        assert prepared.views.min() == 0


class TestVoxelSize:
    @pytest.mark.parametrize(("sigma", "new"), [(4.0, 2.0), (3.0, 1.7), (2.0, 0.5), (1.5, 0.4)])
    def test_resampled_gaussian_is_the_gaussian_sampled_there(self, sigma, new):
        """Finer and coarser: voxels are integrals, so the closed form of the other grid must come out."""
        raw = gaussian((sigma,) * 3, truncate=5)
        prepared = prepare(raw, voxel_zyx_um=(new,) * 3, psf_voxel_zyx_um=VOXEL)
        expected = embedded(gaussian((sigma / new,) * 3, truncate=6), prepared.views.shape[1:])
        np.testing.assert_allclose(prepared.views[0], expected / expected.sum(), atol=0.01 * expected.max())
        assert len(prepared.notes) == 1
        assert "resampled from voxels of 1,1,1 µm" in prepared.notes[0]

    def test_the_width_in_micrometres_stays(self):
        old, new = np.array([0.2, 0.1, 0.1]), np.array([0.31, 0.16, 0.07])
        prepared = prepare(gaussian((3, 4, 4)), voxel_zyx_um=new, psf_voxel_zyx_um=old)
        _, spread = moments(prepared.views[0])
        expected = np.sqrt((np.array([3, 4, 4]) * old) ** 2 + new**2 / 12)
        np.testing.assert_allclose(spread * new, expected, rtol=0.015)

    def test_a_difference_below_one_percent_is_rounding(self):
        raw = gaussian((2, 2, 2))
        same = prepare(raw, voxel_zyx_um=(0.3, 0.1, 0.1), psf_voxel_zyx_um=(0.3, 0.1005, 0.1))
        assert same.notes == ()
        assert prepare(raw, voxel_zyx_um=(0.3, 0.1, 0.1), psf_voxel_zyx_um=(0.3, 0.102, 0.1)).notes

    @given(ratio=st.floats(0.3, 4), n=st.integers(1, 12), seed=st.integers(0, 99))
    @settings(max_examples=40, deadline=None)
    def test_rebinning_keeps_the_sum(self, ratio, n, seed):
        smooth = np.random.default_rng(seed).uniform(0.5, 1, (1, 2 * n + 1))
        out = rebinned(smooth, 1, ratio)
        assert out.shape[1] % 2 == 1
        assert out.sum() == pytest.approx(smooth.sum(), rel=1e-6)


class TestCentre:
    @pytest.mark.parametrize("sigma", [1.0, 1.5, 2.5])
    @given(shift=st.tuples(*[st.floats(-4, 4)] * 3))
    @settings(max_examples=15, deadline=None)
    def test_the_centroid_comes_to_the_centre(self, sigma, shift):
        raw = blob((31, 31, 31), 15 + np.array(shift), (sigma,) * 3)
        prepared = prepare(raw, voxel_zyx_um=VOXEL)
        centroid, _ = moments(prepared.views[0])
        # Left alone within 0.25; the half-maximum set of few voxels is known to about 0.1.
        assert np.abs(centroid).max() < 0.36

    def test_whole_voxels_are_moved_exactly(self):
        raw = blob((17, 17, 17), (8, 8, 8), (1.2, 1.2, 1.2))
        moved = np.roll(raw, (2, -1, 3), axis=(0, 1, 2))
        a, b = prepare(raw, voxel_zyx_um=VOXEL), prepare(moved, voxel_zyx_um=VOXEL)
        np.testing.assert_allclose(b.views, a.views, rtol=1e-6, atol=1e-12)
        assert b.notes == ("PSF: moved by -2.00,1.00,-3.00 voxels (z,y,x) to the centre, all views alike.",)

    def test_views_move_together(self):
        """A detector element's own displacement is information: only the mean is centred."""
        own = [(0.0, 1.5, 0.0), (0.0, -1.5, 0.0), (0.0, 0.0, 0.0)]
        common = np.array([1.0, -2.4, 0.6])
        views = np.stack([blob((25, 25, 25), 12 + common + np.array(d), (2.0,) * 3) for d in own])
        prepared = prepare(views, voxel_zyx_um=VOXEL).views
        centroids = np.array([moments(view)[0] for view in prepared])
        np.testing.assert_allclose(centroids - centroids[2], own, atol=0.02)
        np.testing.assert_allclose(centroids.mean(axis=0), 0, atol=0.15)

    def test_relative_weights_of_views_are_kept(self):
        views = airyscan(voxel_zyx_um=(0.15, 0.04, 0.04))
        prepared = prepare(views * np.float32(1000), voxel_zyx_um=(0.15, 0.04, 0.04))
        weights = views.sum(axis=(1, 2, 3), dtype=np.float64)
        kept = prepared.views.sum(axis=(1, 2, 3), dtype=np.float64)
        assert prepared.notes == ()
        np.testing.assert_allclose(kept / kept[0], weights / weights[0], rtol=1e-3)


class TestCrop:
    def test_the_widest_view_decides(self):
        views = np.stack([blob((41, 41, 41), (20, 20, 20), (s,) * 3) for s in (1.0, 4.0)])
        prepared = prepare(views, voxel_zyx_um=VOXEL)
        assert prepared.radius_zyx == prepare(views[1], voxel_zyx_um=VOXEL).radius_zyx
        assert prepare(views[0], voxel_zyx_um=VOXEL).radius_zyx < prepared.radius_zyx

    @given(
        shape=st.tuples(*[st.integers(1, 9)] * 3),
        views=st.integers(1, 3),
        seed=st.integers(0, 2**16),
        dtype=st.sampled_from(["uint8", "uint16", "float32", "float64"]),
    )
    @settings(max_examples=60, deadline=None)
    def test_properties_of_prepared_psfs_hold_for_any_input(self, shape, views, seed, dtype):
        rng = np.random.default_rng(seed)
        raw = (rng.gamma(0.3, 30, (views, *shape)) + 1).astype(dtype)
        prepared = prepare(raw, voxel_zyx_um=VOXEL)
        assert prepared.views.dtype == np.float32
        assert prepared.views.flags.c_contiguous
        assert len(prepared.views) == views
        assert all(n % 2 for n in prepared.views.shape[1:])
        assert prepared.views.min() >= 0
        assert prepared.views.sum(dtype=np.float64) == pytest.approx(views, rel=1e-5)
        again = prepare(raw.astype(np.float64) * 2.0, voxel_zyx_um=VOXEL)
        np.testing.assert_allclose(again.views, prepared.views, rtol=1e-5, atol=1e-9)

    @pytest.mark.parametrize("shift", [(0, 0, 0), (1, -1, 2)])
    def test_the_box_keeps_999_of_1000_of_each_view_and_is_small(self, shift):
        views = np.stack([blob((41, 41, 41), 20 + np.array(shift) + [0, d, 0], (2, 3, 2)) for d in (-2, 0, 2)])
        prepared = prepare(views, voxel_zyx_um=VOXEL)
        # The centre of the mean view is the blob at `shift`.
        for view in views:
            inner = tuple(slice(20 + s - r, 20 + s + r + 1) for s, r in zip(shift, prepared.radius_zyx, strict=True))
            assert view[inner].sum() >= 0.999 * view.sum()
        assert max(prepared.radius_zyx) < 3.7 * 3 + 2


class TestRefusals:
    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (np.array([[[1.0, np.nan, 1.0]]]), r"^PSF: got NaN or infinity in 1 voxels"),
            (np.array([[[1.0, np.inf, np.nan]]]), r"^PSF: got NaN or infinity in 2 voxels"),
            (np.zeros((3, 3, 3)), r"^PSF: got only zeros"),
            (-np.ones((3, 3, 3)), r"^PSF: got a sum of -27; expected a positive one"),
            (np.ones(5), r"^PSF: got an array of shape \(5,\); expected y x, z y x or v z y x"),
            (np.ones((2, 1, 3, 3, 3)), r"^PSF: got an array of shape \(2, 1, 3, 3, 3\)"),
            (np.ones((3, 0, 3)), r"without an empty axis"),
            (np.ones((3, 3, 3), dtype=complex), r"^PSF: got values of type complex128"),
            (np.array([["a", "b"]]), r"expected real numbers"),
            (np.stack([np.ones((1, 1, 3)), np.zeros((1, 1, 3))]), r"^PSF of view 1: got only zeros"),
        ],
    )
    def test_what_is_no_psf(self, raw, message):
        with pytest.raises(InvalidInputError, match=message):
            prepare(raw, voxel_zyx_um=VOXEL)

    def test_wider_than_the_volume(self):
        raw = gaussian((3, 3, 3))
        with pytest.raises(InvalidInputError, match=r"C1: got a PSF of 23,23 voxels .* at most the volume's 20,64"):
            prepare(raw, voxel_zyx_um=VOXEL, volume_zyx_shape=(64, 20, 64), name="C1")
        assert prepare(raw, voxel_zyx_um=VOXEL, volume_zyx_shape=(1, 23, 23)).radius_zyx == (11, 11, 11)

    @pytest.mark.parametrize("voxel", [(1, 1), (1, 0, 1), (1, -1, 1), (1, np.inf, 1)])
    def test_voxel_sizes(self, voxel):
        with pytest.raises(InvalidInputError, match=r"^psf_voxel_zyx_um: got .* three positive lengths"):
            prepare(np.ones((1, 1, 1)), voxel_zyx_um=VOXEL, psf_voxel_zyx_um=voxel)
        with pytest.raises(InvalidInputError, match=r"^voxel_zyx_um: got .* three positive lengths"):
            prepare(np.ones((1, 1, 1)), voxel_zyx_um=voxel)
