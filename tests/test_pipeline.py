"""The main job, end to end, on real OME-Zarr and a real Dask cluster."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import cache

import numpy as np
import psutil
import pytest

import bigdeconv
from bigdeconv import psf, simulation
from bigdeconv.config import make_config
from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import Box
from bigdeconv.jobs.open_run import OpenRun
from bigdeconv.numerics import metrics
from bigdeconv.storage import omezarr
from bigdeconv.storage.arrays import read_box, write_region
from bigdeconv.storage.output import LevelSpec, OutputSpec, create_output
from tests import make, patience

pytestmark = pytest.mark.cluster

VOXEL_UM = tuple(make.VOXEL_UM.values())
IN_27_BLOCKS = {"iterations": 10, "block_shape": (20, 20, 20), "dtype": "float32"}


def tubes(shape=(60, 60, 60), photons=100.0, seed=3):
    extent_um = [n * v for n, v in zip(shape, VOXEL_UM, strict=True)]
    truth = simulation.sample(simulation.tubes(seed, extent_um, count=(12, 12), sigma_um=0.12), shape, VOXEL_UM)
    kernel = psf.gaussian((1.5, 1.0, 1.0))
    return simulation.acquire(truth, kernel, photons=photons, background=5.0, seed=seed), kernel


def run(tmp_path, cluster_address, data, kernel, **settings):
    """Run a job on a volume and return its output's path."""
    source, output = tmp_path / "input.zarr", tmp_path / settings.pop("name", "output.zarr")
    axes = settings.pop("axes", None)
    if not source.exists():
        make.volume(source, data, axes=axes, version=settings.pop("input_version", "0.5"))
        make.psf_tiff(tmp_path / "psf.tif", kernel)
    job = {"input": str(source), "output": str(output), "psf": str(tmp_path / "psf.tif"), "scheduler": cluster_address}
    summary = bigdeconv.run(make_config(job | settings))
    assert summary.complete
    assert summary.errors == []
    return output


def result_of(output, level=0):
    info = omezarr.describe(output, level=level)
    return read_box(info, Box.of_shape(info.zyx_shape))


@cache
def whole_volume(settings):
    """Deconvolve `tubes` in one piece with the numbers that a run of several blocks decided."""
    data, kernel = tubes()
    return bigdeconv.deconvolve(
        data.astype(np.float32),
        psf.prepare(kernel, voxel_zyx_um=VOXEL_UM).views[0],
        method=settings.method,
        iterations=settings.iterations,
        background=settings.background,
        intensity_scale=settings.intensity_scale,
        tau=settings.tau,
        sigma=settings.sigma or None,
        voxel_zyx_um=VOXEL_UM,
    )


@pytest.fixture(scope="module")
def tiled(tmp_path_factory, cluster_address):
    """Runs of `tubes` in 27 blocks by method and blend, each made once: output, and the whole volume with its numbers."""
    folder = tmp_path_factory.mktemp("tiled")

    @cache
    def outputs(method, blend):
        name = f"{method}-{blend}.zarr"
        return run(folder, cluster_address, *tubes(), name=name, method=method, blend=(blend,) * 3, **IN_27_BLOCKS)

    def made(method, blend):
        output = outputs(method, blend)
        return output, whole_volume(OpenRun.open(output).record.channels[0].settings)

    return made


class TestSeams:
    """Twenty-seven blocks equal one: at the seams, and all over."""

    @pytest.mark.parametrize("method", ["rl", "rltv", "garl"])
    @pytest.mark.parametrize("blend", [4, 0])
    def test_blocks_equal_the_whole(self, tiled, method, blend):
        output, whole = tiled(method, blend)
        plan = OpenRun.open(output).record.facts.plans[0]
        assert (plan.n_blocks, plan.blend) == (27, (blend,) * 3)
        blocks = result_of(output)
        seams = metrics.seam_error(blocks, whole, ((20, 40),) * 3, max(2, blend))
        # The halo of two radii promises 5e-4 at ten iterations; a block that read its data one voxel off gives 1e-1.
        assert max(seams) < 2e-3
        assert np.linalg.norm(blocks - whole) < 1e-3 * np.linalg.norm(whole)

    def test_a_halo_too_small_shows_at_the_seams(self, tmp_path, cluster_address):
        output = run(tmp_path, cluster_address, *tubes(), method="rl", halo=(0,) * 3, blend=(0,) * 3, **IN_27_BLOCKS)
        whole = whole_volume(OpenRun.open(output).record.channels[0].settings)
        assert max(metrics.seam_error(result_of(output), whole, ((20, 40),) * 3, 2)) > 0.02

    def test_a_region_equals_that_part_of_the_full_run(self, tiled, tmp_path, cluster_address):
        full, _ = tiled("garl", 4)
        part = run(tmp_path, cluster_address, *tubes(), method="garl", roi="20:40,10:40,:", **IN_27_BLOCKS)
        whole, region = result_of(full), result_of(part)
        inside = whole[20:40, 10:40]
        assert region.shape == inside.shape
        assert np.linalg.norm(region - inside) < 1e-3 * np.linalg.norm(inside)
        assert omezarr.describe(part).translation_zyx_um == pytest.approx((20 * 0.3, 10 * 0.1, 0.0))


class TestIdentity:
    """A PSF of one voxel, no background, no prior: what comes out is what went in."""

    @pytest.mark.parametrize(("method", "version"), [("garl", "0.5"), ("rl", "0.4")])
    def test_bit_for_bit(self, tmp_path, cluster_address, method, version):
        rng = np.random.default_rng(1)
        data = rng.integers(0, 2**16, (40, 50, 60)).astype("uint16")
        data[:8, :8, :8] = 0
        data[20:24] = 65535
        output = run(
            tmp_path, cluster_address, data, np.ones((1, 1, 1), np.float32),
            method=method, tau=0, background=0, output_scale=1, block_shape=(20, 32, 32), ome_version=version,
        )  # fmt: skip
        assert np.array_equal(result_of(output), data)


class TestCamera:
    """The camera's unit does not reach the result."""

    def test_a_gain_of_four_changes_nothing(self, tmp_path, cluster_address):
        data, kernel = tubes((20, 24, 24))
        results = []
        for factor in (1, 4):
            folder = tmp_path / str(factor)
            folder.mkdir()
            counts = (100 + factor * data.astype(np.uint32)).astype(np.uint16)
            output = run(
                folder, cluster_address, counts, kernel,
                iterations=10, dtype="float32", camera_offset=100.0, gain=1 / factor,
            )  # fmt: skip
            results.append((result_of(output), OpenRun.open(output).record.channels[0].settings.tau))
        (plain, tau), (amplified, tau_amplified) = results
        assert tau_amplified == pytest.approx(tau, rel=1e-6)
        # The same photons; what is written is in photons too.
        assert np.linalg.norm(amplified - plain) < 1e-5 * np.linalg.norm(plain)


class TestKilled:
    """kill -9 of everything in mid-run, then resume."""

    def test_resume_gives_the_same_bytes_and_solves_nothing_twice(self, tmp_path):
        data, kernel = tubes()
        make.volume(tmp_path / "input.zarr", data)
        make.psf_tiff(tmp_path / "psf.tif", kernel)
        options = ("--psf", "psf.tif", "--iterations", "6", "--block-shape", "20,20,20", "--workers", "2")
        uninterrupted = make.start("run", "input.zarr", "whole.zarr", *options, cwd=tmp_path)
        _, stderr = patience.outcome(uninterrupted, 60)
        assert uninterrupted.returncode == 0, stderr

        killed = make.start("run", "input.zarr", "killed.zarr", *options, cwd=tmp_path)
        patience.wait_until(lambda: len(blocks_of(tmp_path / "killed.zarr")) >= 6, 60, killed)
        kill_tree(killed.pid)
        patience.outcome(killed, 10)
        before = blocks_of(tmp_path / "killed.zarr")
        assert 6 <= len(before) < 27
        assert bigdeconv.status(tmp_path / "killed.zarr")["state"] == "interrupted"

        resumed = make.start("resume", "killed.zarr", "--json", cwd=tmp_path)
        stdout, stderr = patience.outcome(resumed, 60)
        assert resumed.returncode == 0, stderr
        assert json.loads(stdout)["blocks_done"] == 27
        after = blocks_of(tmp_path / "killed.zarr")
        assert after[: len(before)] == before
        assert sorted(after) == list(range(27))
        assert make.snapshot(tmp_path / "killed.zarr") == make.snapshot(tmp_path / "whole.zarr")


class TestShapes:
    """Time points, channels, views, and what is carried over."""

    def test_time_points_and_channels_keep_to_themselves(self, tmp_path, cluster_address):
        data = np.stack([[make.scene(24, 40, 40, seed=10 * t + c) for c in range(2)] for t in range(2)])
        settings = {"method": "rl", "iterations": 3, "background": 20, "intensity_scale": 100, "output_scale": 8}
        output = run(tmp_path, cluster_address, data, psf.gaussian(make.SIGMA_ZYX, truncate=3.0), **settings)
        info = omezarr.describe(output)
        assert (info.axes, info.shape) == (("t", "c", "z", "y", "x"), data.shape)
        kernel = psf.prepare(psf.gaussian(make.SIGMA_ZYX, truncate=3.0), voxel_zyx_um=VOXEL_UM).views[0]
        for t, c in ((0, 1), (1, 0)):
            alone = bigdeconv.deconvolve(
                data[t, c].astype(np.float32), kernel, method="rl", iterations=3, background=20, intensity_scale=100
            )
            stored = read_box(info, Box.of_shape(info.zyx_shape), timepoint=t, channel=c)
            assert np.abs(stored / 8 - alone).max() < 1 / 8

    def test_selected_channels_and_time_points(self, tmp_path, cluster_address):
        data = np.stack([[make.scene(24, 40, 40, seed=10 * t + c) for c in range(3)] for t in range(3)])
        kernel = psf.gaussian(make.SIGMA_ZYX, truncate=3.0)
        settings = {"method": "rl", "iterations": 2, "background": 20, "intensity_scale": 100, "output_scale": 8}
        full = run(tmp_path, cluster_address, data, kernel, **settings)
        part = run(
            tmp_path, cluster_address, data, kernel, name="part.zarr", channels="2,0", timepoints="1:3", **settings
        )
        assert np.array_equal(make.pixels(part), make.pixels(full)[1:3][:, [2, 0]])

    def test_views_are_deconvolved_jointly(self, tmp_path, cluster_address):
        kernels = two_kernels()
        truth = np.zeros((16, 32, 32), np.float32)
        truth[8, 10:20, 16] = truth[8, 12, 5:25] = 1
        data = simulation.acquire(truth, kernels, photons=200, background=3.0, seed=4)
        settings = {"method": "rl", "iterations": 15, "background": 3, "dtype": "float32", "views_axis": "v"}
        output = run(tmp_path, cluster_address, data, kernels, axes=("v", "z", "y", "x"), **settings)
        info = omezarr.describe(output)
        assert info.axes == ("z", "y", "x")
        stored = OpenRun.open(output).record.channels[0].settings
        prepared = psf.prepare(kernels, voxel_zyx_um=VOXEL_UM).views
        alone = bigdeconv.deconvolve(
            data.astype(np.float32), prepared, method="rl", iterations=15, background=3,
            intensity_scale=stored.intensity_scale,
        )  # fmt: skip
        assert np.linalg.norm(result_of(output) - alone) < 1e-4 * np.linalg.norm(alone)
        one = bigdeconv.deconvolve(data[0].astype(np.float32), prepared[0], method="rl", iterations=15, background=3)
        assert metrics.rsnr(alone, truth) > metrics.rsnr(one, truth) + 1

    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    def test_levels_are_means_of_what_is_stored(self, tmp_path, cluster_address, version):
        data, kernel = tubes(shape=(50, 70, 90))
        settings = {"method": "rl", "iterations": 3, "block_shape": (32, 32, 32), "chunks": (16, 16, 16), "levels": 4}
        output = run(tmp_path, cluster_address, data, kernel, ome_version=version, input_version=version, **settings)
        plan = OpenRun.open(output).record.facts.plans[0]
        assert {level.in_task for level in plan.levels} == {True, False}
        for n in range(1, 4):
            fine, coarse = result_of(output, n - 1).astype(np.float64), result_of(output, n)
            step = [c // f for c, f in zip(plan.levels[n].factors, plan.levels[n - 1].factors, strict=True)]
            for index in np.ndindex(*coarse.shape):
                cell = fine[tuple(slice(i * s, i * s + s) for i, s in zip(index, step, strict=True))]
                assert coarse[index] == np.floor(cell.mean() + 0.5)


class TestDtypes:
    """Any type and order of bytes of the input gives the same photons."""

    @pytest.mark.parametrize(
        ("dtype", "version"),
        [
            ("uint8", "0.5"), ("int16", "0.5"), ("uint16", "0.5"), ("uint32", "0.5"), ("float32", "0.5"), ("float64", "0.5"),
            ("|u1", "0.4"), (">u2", "0.4"), (">i2", "0.4"), (">f4", "0.4"), (">f8", "0.4"),
        ],
    )  # fmt: skip
    def test_a_run_equals_the_array(self, tmp_path, cluster_address, dtype, version):
        kind = np.dtype(dtype)
        signal = {1: 200.0, 2: 20_000.0}.get(kind.itemsize, 300_000.0)
        data = make.scene(12, 24, 40, signal=signal, background=20.0, dtype="int64")
        if kind.kind == "f":
            data = data / 7
        if kind.kind == "i":
            data[::3, ::5, ::7] *= -1
        if kind.kind in "iu" and kind.itemsize <= 2:
            data[6, 12:15, 20:24] = np.iinfo(kind).max  # saturated
        data = data.astype(dtype)
        kernel = psf.gaussian(make.SIGMA_ZYX, truncate=3.0)
        given = {"method": "rl", "iterations": 2, "background": 10, "intensity_scale": 100.0}
        # One block: what another one would differ by is another test's.
        output = run(
            tmp_path, cluster_address, data, kernel, dtype="float32", input_version=version, mask="none", **given
        )
        assert omezarr.describe(tmp_path / "input.zarr").dtype == kind.str
        saturation = float(np.iinfo(kind).max) if kind.kind in "iu" and kind.itemsize <= 2 else None
        prepared = psf.prepare(kernel, voxel_zyx_um=VOXEL_UM).views[0]
        alone = bigdeconv.deconvolve(data, prepared, **given, saturation=saturation, voxel_zyx_um=VOXEL_UM)
        assert np.abs(result_of(output) - alone).max() < 1e-5 * alone.max()


class TestLevel:
    def test_a_coarse_level_is_a_volume_of_its_own(self, tmp_path, cluster_address):
        """Level 1 is read, at its own voxel size and place, and a region of interest counts its voxels."""
        fine, coarse = make.scene(24, 64, 64, seed=1), make.scene(24, 32, 32, seed=2)
        source = tmp_path / "input.zarr"
        levels = (
            LevelSpec(fine.shape, (24, 32, 32), None, (0.3, 0.1, 0.1), (1.0, 0.0, 0.0)),
            LevelSpec(coarse.shape, (24, 32, 32), None, (0.3, 0.2, 0.2), (1.0, 0.05, 0.05)),
        )
        units = ("micrometer",) * 3
        create_output(source, OutputSpec(("z", "y", "x"), units, "uint16", levels, "0.5", "image", (), {}))
        for n, data in enumerate((fine, coarse)):
            write_region(source, str(n), (slice(None),) * 3, data)
        kernel = psf.gaussian(make.SIGMA_ZYX, truncate=3.0)
        make.psf_tiff(tmp_path / "psf.tif", kernel)
        settings = {"method": "rl", "iterations": 2, "background": 20, "intensity_scale": 100, "dtype": "float32"}
        job = settings | {
            "psf_voxel_um": (0.3, 0.2, 0.2),
            "block_shape": (24, 32, 16),
            "level": 1,
            "seam_tolerance": 1e-5,
        }
        output = run(tmp_path, cluster_address, fine, kernel, **job)
        info = omezarr.describe(output)
        assert info.zyx_shape == coarse.shape
        assert info.voxel_zyx_um == pytest.approx((0.3, 0.2, 0.2))
        assert info.translation_zyx_um == pytest.approx((1.0, 0.05, 0.05))
        prepared = psf.prepare(kernel, voxel_zyx_um=(0.3, 0.2, 0.2)).views[0]
        del settings["dtype"]
        alone = bigdeconv.deconvolve(coarse, prepared, **settings, voxel_zyx_um=(0.3, 0.2, 0.2))
        assert np.linalg.norm(result_of(output) - alone) < 1e-4 * np.linalg.norm(alone)
        part = run(tmp_path, cluster_address, fine, kernel, name="part.zarr", roi="4:20,:,16:", **job)
        assert np.linalg.norm(result_of(part) - alone[4:20, :, 16:]) < 1e-3 * np.linalg.norm(alone[4:20, :, 16:])
        assert omezarr.describe(part).translation_zyx_um == pytest.approx((1.0 + 4 * 0.3, 0.05, 0.05 + 16 * 0.2))


def two_kernels():
    """Two PSFs of one shape, each sharp where the other is not."""
    wide = psf.gaussian((1.0, 1.8, 1.8))
    offsets = np.arange(wide.shape[1]) - wide.shape[1] // 2
    narrow = np.exp(-(offsets**2) / (2 * 0.8**2))
    kernels = np.stack([wide * narrow[None, :, None], wide * narrow[None, None, :]])
    return (kernels / kernels.sum(axis=(1, 2, 3), keepdims=True)).astype(np.float32)


def test_a_run_is_refused_in_a_worker_that_imports_its_script(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import multiprocessing\nimport bigdeconv\n"
        "if __name__ == '__main__':\n"
        "    worker = multiprocessing.get_context('spawn').Process(target=int)\n"
        "    worker.start()\n    worker.join()\n"
        "else:\n"
        "    bigdeconv.run(input='in.zarr', output='out.zarr', psf='psf.tif')\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 'put the call below `if __name__ == "__main__":`' in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [script.name]


class TestResume:
    def test_other_settings_are_refused_by_name(self, tmp_path, cluster_address):
        data, kernel = tubes(shape=(24, 40, 40))
        output = run(tmp_path, cluster_address, data, kernel, method="rl", iterations=2)
        job = {"input": str(tmp_path / "input.zarr"), "output": str(output), "psf": str(tmp_path / "psf.tif")}
        with pytest.raises(InvalidInputError, match=r"iterations \(was 2, is 3\)"):
            bigdeconv.run(make_config(job | {"method": "rl", "iterations": 3}), resume=True)

    def test_another_input_is_refused(self, tmp_path, cluster_address):
        data, kernel = tubes(shape=(24, 40, 40))
        output = run(tmp_path, cluster_address, data, kernel, method="rl", iterations=2)
        make.volume(tmp_path / "other.zarr", data + 1)
        job = {"input": str(tmp_path / "other.zarr"), "output": str(output), "psf": str(tmp_path / "psf.tif")}
        with pytest.raises(InvalidInputError, match="differs in input"):
            bigdeconv.run(make_config(job | {"method": "rl", "iterations": 2}), resume=True)


def blocks_of(output):
    """Return the blocks that a journal names, in its order."""
    return [record["block"] for record in make.journal_of(output) if "block" in record]


def kill_tree(pid):
    """End a process and all that it started, at once."""
    parent = psutil.Process(pid)
    for process in [*parent.children(recursive=True), parent]:
        process.send_signal(signal.SIGKILL)
