"""Simulated samples and cameras: closed forms, statistics, and the same bytes from the same seed."""

import numpy as np
import pytest
from scipy.ndimage import convolve
from scipy.spatial import cKDTree
from scipy.stats import kstest

from bigdeconv import simulation
from bigdeconv.errors import InvalidInputError
from bigdeconv.psf import airyscan, gaussian
from bigdeconv.simulation import Tubes, acquire, calibration_target, confocal, sample, samples, tubes

EXTENT = (3.0, 6.0, 5.0)


def brute_force(specimen, zyx_shape, voxel_um, offset_um):
    """Every Gaussian at every voxel centre, one by one, without a cut."""
    centres = np.stack(np.meshgrid(*map(np.arange, zyx_shape), indexing="ij"), axis=-1) * voxel_um + offset_um
    total = np.zeros(zyx_shape)
    for position in specimen.positions_um:
        total += np.exp(-0.5 * ((centres - position) ** 2).sum(axis=-1) / specimen.sigma_um**2)
    return total / ((2 * np.pi) ** 1.5 * specimen.sigma_um**3)


class TestTubes:
    def test_same_seed_same_bytes(self):
        a, b, other = tubes(5, EXTENT), tubes(5, EXTENT), tubes(6, EXTENT)
        assert a.positions_um.tobytes() == b.positions_um.tobytes()
        assert a.positions_um.tobytes() != other.positions_um.tobytes()

    def test_positions_lie_in_the_sample_or_reach_into_it(self):
        specimen = tubes(2, EXTENT, sigma_um=0.1)
        assert specimen.extent_um == EXTENT
        assert (specimen.positions_um > -0.4).all()
        assert (specimen.positions_um < np.array(EXTENT) + 0.4).all()
        assert len(specimen.positions_um) > 4 * 1000 * min(EXTENT)

    def test_fluorophores_are_uniform_between_the_radii(self):
        """A straight tube (no wobble): distances to its axis, which is the line of least squares."""
        specimen = tubes(
            11, (8, 8, 8), count=(1, 1), outer_radius_um=(0.5, 0.5), inner_share=(0.6, 0.6), wobble=0, sigma_um=0.01
        )
        points = specimen.positions_um
        inside = points[np.all((points > 1) & (points < 7), axis=1)]
        centred = inside - inside.mean(axis=0)
        axis = np.linalg.svd(centred, full_matrices=False)[2][0]
        squares = (centred**2).sum(axis=1) - (centred @ axis) ** 2
        assert squares.min() > 0.25**2
        assert squares.max() < 0.55**2
        # Uniform over the ring: the squared radius is uniform.
        assert squares.mean() == pytest.approx((0.3**2 + 0.5**2) / 2, rel=0.03)
        assert np.median(squares) == pytest.approx((0.3**2 + 0.5**2) / 2, rel=0.05)

    def test_density_along_the_tube(self):
        specimen = tubes(3, (4, 4, 4), count=(1, 1), wobble=0, fluorophores_per_um=2000)
        points = specimen.positions_um
        axis = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2][0]
        along = np.sort((points - points.mean(axis=0)) @ axis)
        low, high = np.quantile(along, [0.2, 0.8])
        assert 0.6 * len(points) / (high - low) == pytest.approx(2000, rel=0.05)

    def test_fluorophores_are_uniform_along_a_bent_curve(self):
        """The curve's parameter is not its length: without the change of variable bends would be dim or bright."""
        rng = np.random.default_rng(1)
        curve = samples._curve(rng, np.array([4.0, 4.0, 4.0]), 0.2)
        points = samples._cloud(rng, curve, 0.0, 0.0, 300)
        path = curve(np.linspace(0, 1, 20001))
        length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
        distance, nearest = cKDTree(path).query(points)
        assert distance.max() < 0.01
        assert kstest(length[nearest] / length[-1], "uniform").pvalue > 0.01

    def test_tubes_are_curved(self):
        points = tubes(4, (4, 4, 4), count=(1, 1), outer_radius_um=(0.01, 0.01)).positions_um
        values = np.linalg.svd(points - points.mean(axis=0), compute_uv=False) / np.sqrt(len(points))
        assert values[1] > 0.05

    @pytest.mark.parametrize("change", [{"sigma_um": 0}, {"count": (0, 3)}, {"count": (3, 2)}])
    def test_refuses_impossible_numbers(self, change):
        with pytest.raises(InvalidInputError, match="sigma_um, count, fluorophores_per_um: got"):
            tubes(0, EXTENT, **change)

    def test_refuses_an_impossible_extent(self):
        with pytest.raises(InvalidInputError, match="extent_zyx_um: got"):
            tubes(0, (1, 0, 1))


class TestSample:
    def test_is_the_sum_of_gaussians_at_the_voxel_centres(self):
        rng = np.random.default_rng(0)
        specimen = Tubes(rng.uniform(-0.3, 2.3, (60, 3)), 0.15, (2.0, 2.0, 2.0))
        grid = (9, 21, 40), (0.25, 0.1, 0.05), (0.1, 0.0, -0.02)
        expected = brute_force(specimen, *grid)
        # A Gaussian cut at 4 standard deviations leaves out exp(-8) of its height.
        height = 1 / ((2 * np.pi) ** 1.5 * 0.15**3)
        np.testing.assert_allclose(sample(specimen, *grid), expected, rtol=1e-5, atol=60 * np.exp(-8) * height / 20)

    def test_two_resolutions_are_one_object(self):
        specimen = tubes(1, EXTENT, sigma_um=0.12)
        fine = sample(specimen, (60, 120, 100), (0.05, 0.05, 0.05))
        coarse = sample(specimen, (20, 60, 50), (0.15, 0.1, 0.1))
        assert fine.dtype == np.float32
        a, b = fine.sum(dtype=np.float64) * 0.05**3, coarse.sum(dtype=np.float64) * 0.15 * 0.1**2
        assert b == pytest.approx(a, rel=0.02)  # the grids end half a voxel apart
        inner = Tubes(
            specimen.positions_um[np.all(np.abs(specimen.positions_um - [1.5, 3, 2.5]) < 0.9, axis=1)], 0.12, EXTENT
        )
        for shape, voxel in (((60, 120, 100), (0.05,) * 3), ((20, 60, 50), (0.15, 0.1, 0.1))):
            total = sample(inner, shape, voxel).sum(dtype=np.float64) * np.prod(voxel)
            assert total == pytest.approx(len(inner.positions_um), rel=0.01)

    def test_offset_moves_the_grid(self):
        specimen = tubes(1, EXTENT)
        whole = sample(specimen, (30, 40, 40), (0.1, 0.1, 0.1))
        part = sample(specimen, (10, 20, 20), (0.1, 0.1, 0.1), (1.0, 0.5, 0.7))
        np.testing.assert_allclose(part, whole[10:20, 5:25, 7:27], rtol=1e-4, atol=2e-3 * whole.max())

    def test_peak_one(self):
        assert sample(tubes(1, EXTENT), (12, 20, 20), (0.25, 0.3, 0.25), peak_one=True).max() == 1

    def test_an_empty_place_is_dark(self):
        empty = Tubes(np.zeros((0, 3)), 0.1, (1.0, 1.0, 1.0))
        assert not sample(empty, (4, 4, 4), (0.1, 0.1, 0.1), peak_one=True).any()

    def test_refuses_an_impossible_voxel(self):
        with pytest.raises(InvalidInputError, match="voxel_zyx_um: got"):
            sample(tubes(1, EXTENT), (4, 4, 4), (0.1, 0.1))


class TestAcquire:
    def test_blur_is_linear_convolution_with_a_dark_outside(self):
        rng = np.random.default_rng(1)
        truth, psf = rng.random((6, 7, 9)), rng.random((3, 5, 3))
        expected = convolve(truth, psf, mode="constant")
        # So many photons that their noise is below the tolerance.
        got = acquire(truth, psf, photons=1e12, seed=0, dtype="float64")
        np.testing.assert_allclose(got, expected * 1e12 / expected.max(), rtol=1e-4)

    def test_views_keep_their_weights_and_the_brightest_peaks_at_the_photons(self):
        truth = np.zeros((3, 9, 9))
        truth[1, 4, 4] = 1
        psfs = np.stack([gaussian((0, 1, 1)) * w for w in (0.5, 2.0)])
        views = acquire(truth, psfs, photons=1e10, seed=0, dtype="float64")
        assert views.shape == (2, 3, 9, 9)
        assert views[1].max() == pytest.approx(1e10, rel=1e-4)
        assert views[1].sum() / views[0].sum() == pytest.approx(4, rel=1e-4)

    @pytest.mark.parametrize("photons", [3, 400])
    def test_photons_are_poisson(self, photons):
        counts = acquire(np.ones((40, 40, 40)), np.ones((1, 1, 1)), photons=photons, background=2, seed=1).astype(float)
        n = counts.size
        assert counts.mean() == pytest.approx(photons + 2, abs=5 * np.sqrt((photons + 2) / n))
        assert counts.var() == pytest.approx(photons + 2, rel=5 * np.sqrt(2.5 / n))

    def test_the_solver_inverts_the_camera(self):
        """(counts - offset)·gain has the mean of the photons, and their variance plus read noise²."""
        camera = {"offset": 100.0, "gain": 0.5, "read_noise": 3.0}
        counts = acquire(np.ones((40, 40, 40)), np.ones((1, 1, 1)), photons=50, seed=2, dtype="float64", **camera)
        photons = (counts - camera["offset"]) * camera["gain"]
        assert photons.mean() == pytest.approx(50, abs=5 * np.sqrt(59 / photons.size))
        assert photons.var() == pytest.approx(50 + 9, rel=0.03)
        # With the variance of the read noise added, mean and variance agree again.
        assert (photons + 9).mean() == pytest.approx(photons.var(), rel=0.03)

    def test_integers_are_rounded_and_clipped_to_their_range(self):
        truth = np.zeros((1, 1, 2))
        truth[0, 0, 1] = 1
        delta = np.ones((1, 1, 1))
        assert acquire(truth, delta, photons=1e6, seed=0)[0, 0].tolist() == [0, 65535]
        noisy = acquire(np.zeros((1, 50, 50)), delta, photons=0, read_noise=5, seed=0)
        assert noisy.dtype == np.uint16
        assert noisy.max() < 100  # no negative value wrapped around
        assert acquire(np.zeros((1, 50, 50)), delta, photons=0, read_noise=5, seed=0, dtype="float32").min() < 0

    def test_same_seed_same_bytes(self):
        truth = calibration_target((8, 24, 24), (0.3, 0.1, 0.1))
        psf = airyscan(voxel_zyx_um=(0.3, 0.1, 0.1), n_views=3)
        a, b, other = (acquire(truth, psf, photons=20, seed=s, read_noise=1) for s in (7, 7, 8))
        assert a.tobytes() == b.tobytes()
        assert a.tobytes() != other.tobytes()

    def test_confocal_is_the_sum_of_the_views(self):
        views = np.full((3, 2, 2, 2), 60000, dtype=np.uint16)
        assert confocal(views).tolist() == np.full((2, 2, 2), 180000.0).tolist()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"psf": np.ones((3, 3))}, r"truth, psf: got shapes \(4, 4, 4\), \(3, 3\)"),
            ({"truth": np.ones((4, 4))}, r"truth, psf: got shapes \(4, 4\)"),
            ({"gain": 0}, "gain, read_noise: got 10, 0.0, 0, 0.0"),
            ({"photons": np.nan}, "photons, background"),
            ({"background": -1}, "photons, background"),
        ],
    )
    def test_refusals(self, change, message):
        arguments = {"truth": np.ones((4, 4, 4)), "psf": np.ones((1, 1, 1)), "photons": 10, "seed": 0} | change
        with pytest.raises(InvalidInputError, match=message):
            acquire(**arguments)


class TestCalibrationTarget:
    def test_another_sampling_shows_the_same_sample(self):
        fine = calibration_target((32, 128, 128), (0.15, 0.08, 0.08))
        coarse = calibration_target((16, 64, 64), (0.3, 0.16, 0.16))
        mean = fine.reshape(16, 2, 64, 2, 64, 2).mean(axis=(1, 3, 5))
        assert coarse.sum() == pytest.approx(mean.sum(), rel=0.05)
        # Lines and cubes are exact; only the edges of the rings are one voxel soft.
        np.testing.assert_allclose(coarse[:, :30], mean[:, :30], atol=1e-5)

    def test_has_light_at_several_depths_and_values_from_0_to_1(self):
        target = calibration_target((40, 100, 120), (0.2, 0.1, 0.1))
        assert target.min() == 0
        assert target.max() == pytest.approx(1)
        assert target[:, 50:].any(axis=(1, 2)).sum() > 8
        assert target[20, :45].any(axis=0).sum() >= 14  # seven pairs of lines

    def test_a_plane_shows_it_all(self):
        assert calibration_target((1, 64, 64), (1, 1, 1)).max() == pytest.approx(1)


class TestObjects:
    @pytest.mark.parametrize("kind", simulation.KINDS)
    def test_the_same_seed_gives_the_same_object_and_another_another(self, kind):
        first, again, other = (simulation.objects(kind, seed, (6, 24, 24), (0.3, 0.1, 0.1)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)
        assert first.dtype == np.float32
        assert (first.min() >= 0, first.max()) == (True, 1.0)

    @pytest.mark.parametrize("kind", ["nuclei", "membranes", "texture"])
    def test_an_object_is_in_micrometres(self, kind):
        """The mean of two fine planes is about the coarse one."""
        coarse, fine = (
            simulation.objects(kind, 3, (n, 40, 40), (z, 0.1, 0.1), size_um=1.2).astype(float)
            for n, z in ((8, 0.2), (16, 0.1))
        )
        binned = fine.reshape(8, 2, 40, 40).mean(axis=1)
        assert np.corrcoef(coarse.ravel(), binned.ravel())[0, 1] > 0.9

    def test_points_are_few_and_bright_and_walls_are_thin(self):
        points = simulation.objects("puncta", 1, (16, 64, 64), (0.2, 0.1, 0.1))
        assert 0 < (points > 0.1).mean() < 0.02
        walls = simulation.objects("membranes", 1, (8, 64, 64), (0.2, 0.1, 0.1), size_um=2.0)
        assert (walls > 0.5).mean() < 0.5

    @pytest.mark.parametrize("kind", simulation.KINDS)
    def test_one_plane_works(self, kind):
        assert simulation.objects(kind, 1, (1, 32, 32), (0.3, 0.1, 0.1)).max() == 1

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"kind": "cats"}, "kind: got 'cats'; expected nuclei"),
            ({"zyx_shape": (0, 8, 8)}, "three positive numbers"),
            ({"voxel_zyx_um": (0.1, 0.1)}, "three positive numbers"),
            ({"size_um": -1.0}, "positive length"),
        ],
    )
    def test_what_is_no_object(self, wrong, words):
        given = {"kind": "nuclei", "seed": 1, "zyx_shape": (8, 8, 8), "voxel_zyx_um": (0.1, 0.1, 0.1), **wrong}
        with pytest.raises(InvalidInputError, match=words):
            simulation.objects(**given)
