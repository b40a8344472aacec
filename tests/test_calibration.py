"""Numbers chosen before the first block, from samples of volumes whose numbers are known."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from bigdeconv import psf
from bigdeconv.calibration.channel import Limits, calibrate
from bigdeconv.calibration.numbers import UserOverrides
from bigdeconv.calibration.samples import Samples, Sampling
from bigdeconv.numerics.camera import Camera
from bigdeconv.numerics.restoration import ResolvedSettings
from bigdeconv.planning.memory import SAMPLED_VOXELS
from bigdeconv.storage.omezarr import describe
from tests import make

PSF = psf.PSF(psf.gaussian(make.SIGMA_ZYX, truncate=3.0)[None], (0.3, 0.1, 0.1))


def calibrated(*paths, camera=None, **overrides):
    infos = [describe(path) for path in paths]
    info = infos[0]
    volumes = tuple((info, tuple(range(info.n_timepoints))) for info in infos)
    samples = Samples.read(Sampling(volumes, 0, None, 1))
    settings = ResolvedSettings(method="rl", iterations=3, voxel_zyx_um=info.voxel_zyx_um)
    camera = camera or Camera()
    numbers = UserOverrides(**{"output_scale": 1.0, "iterations": 3, "gain": camera.gain, **overrides})
    return calibrate(samples, PSF, camera, settings, None, numbers, (3, 6, 6), Limits())


def movie(*signals, background=20.0):
    """One scene at several brightnesses, without noise: the background stays."""
    one = make.scene(8, 32, 32, background=0.0, signal=400.0).astype(np.float64)
    return np.stack([background + s * one for s in signals]).round().astype("uint16")


class TestTime:
    @pytest.mark.parametrize(
        ("signals", "factor"),
        [
            ((1, 1, 1), None),
            ((1, 1.8, 1.2), None),
            ((1, 1.5, 3), 3.0),
            ((5, 1, 2), 5.0),
            ((1, 1, 9, 1, 1), 9.0),
            ((1, 9, 1, 9, 1), None),
        ],
        ids=["constant", "less than twofold", "rising", "falling", "in the middle", "between the samples"],
    )
    @pytest.mark.parametrize("gain", [1.0, 0.25])
    def test_a_foreground_that_varies_more_than_twofold_is_warned_of(self, tmp_path, signals, factor, gain):
        data = movie(*signals)
        path = make.volume(tmp_path / "in.zarr", data, axes="tzyx", chunk=(1, 8, 32, 32))
        result = calibrated(path, camera=Camera(gain=gain), background=20.0)
        if factor is None:
            assert result.warnings == ()
            return
        (warning,) = result.warnings
        above = np.percentile(data.reshape(len(data), -1), 99.9, axis=1) - 20
        sampled = sorted({0, (len(data) - 1) // 2, len(data) - 1})
        dim, bright = (pick(sampled, key=lambda t: above[t]) for pick in (min, max))
        found = re.search(r"varies ([\d.]+)-fold .*: ([\d.]+) counts at time point (\d), ([\d.]+) at (\d)\)", warning)
        assert float(found[1]) == pytest.approx(factor, rel=0.06)
        assert (int(found[3]), int(found[5])) == (dim, bright)
        assert (float(found[2]), float(found[4])) == pytest.approx((above[dim], above[bright]), rel=1e-3)
        assert "--timepoints" in warning

    def test_an_empty_time_point_is_warned_of(self, tmp_path):
        path = make.volume(tmp_path / "in.zarr", movie(0, 1), axes="tzyx", chunk=(1, 8, 32, 32))
        (warning,) = calibrated(path, background=20.0).warnings
        assert "varies from nothing over time" in warning

    def test_regions_that_cannot_be_read_at_one_time_point_are_not_compared(self, tmp_path):
        """The bright corner is unreadable at one time point: it is no reason to call that time point dim."""
        data = np.full((2, 8, 32, 192), 60, "uint16")
        data[..., :64] = 320
        path = make.volume(tmp_path / "in.zarr", data, axes="tzyx", chunk=(1, 8, 32, 64))
        (path / "0" / "c" / "1" / "0" / "0" / "0").write_bytes(b"torn")
        assert calibrated(path, background=20.0).warnings == ()

    def test_of_several_volumes_the_one_that_varies_most_is_named(self, tmp_path):
        """Brightness that differs between volumes is no change over time."""
        signals = {"steady.zarr": (9, 9), "some.zarr": (1, 3), "most.zarr": (1, 5)}
        paths = [
            make.volume(tmp_path / name, movie(*s), axes="tzyx", chunk=(1, 8, 32, 32)) for name, s in signals.items()
        ]
        (warning,) = calibrated(*paths, background=20.0).warnings
        assert re.search(r"varies 5\.\d-fold over time in \S*most\.zarr ", warning)
        assert calibrated(paths[0], background=20.0).warnings == ()


class TestSampling:
    @pytest.mark.parametrize("n", [1, 2, 8, 9, 50])
    def test_volumes_and_time_points_are_spread_and_few(self, tmp_path, n):
        info = describe(make.volume(tmp_path / "in.zarr", np.zeros((1, 4, 8, 8), "uint8"), axes="tzyx"))
        volumes = tuple((replace(info, location=str(i)), tuple(range(10))) for i in range(n))
        regions = list(Sampling(volumes, 0, None, 1).regions())
        sampled = sorted({int(r.volume.location) for r in regions})
        assert len(sampled) == min(n, 8)
        assert (sampled[0], sampled[-1]) == (0, n - 1)
        assert max(np.diff(sampled), default=0) <= -(-n // 7)
        assert {r.timepoint for r in regions} == {0, 4, 9}
        assert {r.box.shape for r in regions} == {(4, 8, 8)}


class TestSamples:
    def sampling(self, tmp_path, *, dtype="uint16"):
        data = make.scene(2, 16, 80, 80, dtype=dtype)
        path = make.volume(tmp_path / "in.zarr", data, axes="tzyx", chunk=(1, 8, 32, 32))
        return data, Sampling(((describe(path), (0, 1)),), 0, None, 1)

    def test_counts_are_read_once_and_kept_as_stored(self, tmp_path, monkeypatch):
        data, sampling = self.sampling(tmp_path)
        samples = Samples.read(sampling)
        monkeypatch.setattr("bigdeconv.calibration.samples.read_and_look", None)
        assert samples.digest == samples.digest
        for (region, counts), whole in zip(samples.views(), [data[r.timepoint] for r in samples.regions], strict=True):
            assert counts.dtype == np.uint16
            np.testing.assert_array_equal(counts, whole[region.box.slices])

    def test_the_digest_tells_one_voxel_apart(self, tmp_path):
        _, sampling = self.sampling(tmp_path)
        samples = Samples.read(sampling)
        samples.counts[0][0, 0, 0, 0] += 1
        assert samples.digest != Samples.read(sampling).digest

    def test_a_job_of_many_volumes_is_sampled_within_its_bound(self, tmp_path):
        info = describe(make.volume(tmp_path / "in.zarr", np.zeros((1, 4, 8, 8), "uint8"), axes="tzyx"))
        huge = replace(info, shape=(50, 2000, 2000, 2000))
        sampling = Sampling(tuple((huge, tuple(range(50))) for _ in range(20)), 0, None, 8)
        assert 0.5 * SAMPLED_VOXELS < 8 * sum(r.box.size for r in sampling.regions()) <= SAMPLED_VOXELS
