"""Masks: which blocks are left out, against counts of single voxels; and what a run makes of them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigdeconv.config import make_config
from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import Box
from bigdeconv.jobs.job import plan_job
from bigdeconv.planning.planner import PlanRequest, make_plan
from bigdeconv.storage import mask as masks
from bigdeconv.storage.ledger import Ledger, ledger_path
from bigdeconv.storage.mask import open_mask
from bigdeconv.storage.omezarr import describe
from tests import make
from tests.make import RL, bigdeconv

VOXEL = tuple(make.VOXEL_UM.values())
SHAPE = (32, 48, 64)
BLOCKS = ("--block-shape", "8,16,16", "--chunks", "8,16,16", "--halo", "3,6,6", "--blend", "1,2,2")
N_BLOCKS = 4 * 3 * 4


def sphere(shape=SHAPE, centre=(16, 22, 20), radius=6, step=(1, 1, 1)):
    """Foreground of a ball; with ``step``, of every so-many-th voxel's cell."""
    z, y, x = np.meshgrid(*(np.arange(0, n, s) + (s - 1) / 2 for n, s in zip(shape, step, strict=True)), indexing="ij")
    return (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2


def labels(path, data, *, axes="zyx", scale=VOXEL, translation=None, unit="micrometer", zarr_format=3, paths=None):
    """Write a label image: levels, one array each, coarser by two, with metadata as given (none where scale is None)."""
    group = zarr.create_group(path, zarr_format=zarr_format)
    levels = paths or {"0": (data, 1)}
    datasets = []
    for name, (array, factor) in levels.items():
        group.create_array(name, data=np.asarray(array), chunks=tuple(min(8, n) for n in array.shape))
        sizes = dict(zip("zyx", scale or (1, 1, 1), strict=True))
        origin = dict(zip("zyx", translation or (0, 0, 0), strict=True))
        transforms = [
            {"type": "scale", "scale": [sizes.get(a, 1.0) * (factor if a in "zyx" else 1) for a in axes]},
            {
                "type": "translation",
                "translation": [
                    origin.get(a, 0.0) + (sizes[a] * (factor - 1) / 2 if a in "zyx" else 0.0) for a in axes
                ],
            },
        ]
        datasets.append({"path": name, **({} if scale is None else {"coordinateTransformations": transforms})})
    described = [
        {"name": a, "type": {"t": "time", "c": "channel"}.get(a, "space"), **({"unit": unit} if a in "zyx" and unit else {})}
        for a in axes
    ]  # fmt: skip
    multiscale = {"axes": described, "datasets": datasets}
    if zarr_format == 3:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale], "image-label": {}}
    else:
        group.attrs["multiscales"] = [{"version": "0.4", **multiscale}]
    return path


def counted(mask, plan):
    """Blocks whose core, grown by the halo (or the ramps) holds no foreground voxel, looked for one by one."""
    found = set()
    for task in plan.tasks():
        wide = tuple(max(h, 2 * b) for h, b in zip(plan.halo, plan.blend, strict=True))
        near = task.core.grow(wide).intersect(Box.of_shape(plan.zyx_shape))
        if not mask[near.slices].any():
            found.add(task.index)
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A volume of forty-eight blocks, its PSF, and a ball as a mask."""
    folder = tmp_path_factory.mktemp("source")
    image = make.volume(folder / "in.zarr", make.scene(*SHAPE), chunk=(8, 16, 16))
    return image, make.psf_tiff(folder / "psf.tif"), labels(folder / "ball.zarr", sphere())


@pytest.fixture(scope="module")
def job(source, cluster_address):
    return (source[0], *("--psf", source[1]), *RL, *BLOCKS, "--output-scale", "8", "--scheduler", cluster_address)


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    """The output without a mask."""
    output = tmp_path_factory.mktemp("whole") / "out.zarr"
    result = bigdeconv("run", job[0], output, *job[1:])
    assert result.exit_code == 0, result.stderr
    return output


def job_plan_of(source, mask, **changes):
    config = {"input": str(source[0]), "output": "none", "psf": str(source[1]), "method": "rl", "mask": str(mask)}
    blocks = {"block_shape": (8, 16, 16), "chunks": (8, 16, 16), "halo": (3, 6, 6), "blend": (1, 2, 2)}
    return plan_job(make_config(config | blocks | changes))


def outside(job):
    return set(np.flatnonzero(job.outside))


class TestWhichBlocks:
    @pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "uint64", ">u2"])
    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_a_ball_counted_voxel_by_voxel(self, source, tmp_path, dtype, zarr_format):
        mask = sphere()
        value = {"int32": -3, "uint64": 2**63}.get(dtype, 1)
        data = np.where(mask, np.array(value, dtype), np.array(0, dtype)).astype(dtype)
        job = job_plan_of(source, labels(tmp_path / "m.zarr", data, zarr_format=zarr_format))
        expected = counted(mask, job.facts.largest_plan)
        assert 0 < len(expected) < N_BLOCKS
        assert outside(job) == expected

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_any_region_grid_and_step(self, source, tmp_path_factory, data):
        """A mask of any step, placed by its metadata or by its shape: what one of its voxels covers counts whole."""
        draw = data.draw
        step = tuple(draw(st.integers(1, 3), label="step") for _ in range(3))
        cells = tuple(draw(st.integers(1, 8), label="cells") for _ in range(3))
        shape = tuple(n * s for n, s in zip(cells, step, strict=True))
        share = draw(st.sampled_from([0.02, 0.2]))
        coarse = np.random.default_rng(draw(st.integers(0, 99))).random(cells) < share
        folder = tmp_path_factory.mktemp("m")
        volume = replace(describe(source[0]), shape=shape, translation_zyx_um=(3.0, -1.0, 0.2))
        scale = tuple(v * s for v, s in zip(VOXEL, step, strict=True))
        half = (v * (s - 1) / 2 for v, s in zip(VOXEL, step, strict=True))
        shift = tuple(t + h for t, h in zip(volume.translation_zyx_um, half, strict=True))
        placed = draw(st.booleans(), label="placed")
        path = labels(folder / "m.zarr", coarse, scale=scale if placed else None, translation=shift)
        start = tuple(draw(st.integers(0, n - 1)) for n in shape)
        stop = tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
        chunk = tuple(draw(st.integers(1, 6)) for _ in shape)
        plan = make_plan(
            PlanRequest(
                zyx_shape=shape, psf_shape=(3, 3, 3), voxel_zyx_um=VOXEL, roi=Box(start, stop),
                chunk_shape=chunk, block_shape=chunk, halo=tuple(draw(st.integers(0, 3)) for _ in shape),
                blend=tuple(draw(st.integers(0, c // 2)) for c in chunk),
            )
        )  # fmt: skip
        fine = coarse.repeat(step[0], 0).repeat(step[1], 1).repeat(step[2], 2)
        spans = [plan.reach(axis) for axis in range(3)]
        occupied = open_mask(str(path), volume, None).occupied(spans, timepoint=0, channel=0)
        assert set(np.flatnonzero(~occupied.transpose(plan.axis_order).ravel())) == counted(fine, plan)
        shutil.rmtree(folder)

    def test_bricks_are_read_once_each(self, source, tmp_path, monkeypatch):
        """Read a brick at a time, what is found does not depend on the bricks."""
        path = labels(tmp_path / "m.zarr", sphere())
        expected = outside(job_plan_of(source, path))
        read = []

        def counting(info, box, **chosen):
            read.append(box.size)
            return read_box(info, box, **chosen)

        read_box = masks.read_box
        monkeypatch.setattr(masks, "read_box", counting)
        monkeypatch.setattr(masks, "BRICK", 5)
        assert outside(job_plan_of(source, path)) == expected
        assert len(read) == 4 * 6  # bricks of a chunk of eight
        assert sum(read) == np.prod(SHAPE)

    def test_of_a_pyramid_a_coarse_level_is_enough(self, source, tmp_path, monkeypatch):
        fine = sphere()
        coarse = fine.reshape(16, 2, 24, 2, 32, 2).any(axis=(1, 3, 5))
        monkeypatch.setattr(masks, "MAX_LEVEL_VOXELS", coarse.size)
        path = labels(tmp_path / "m.zarr", fine, paths={"0": (fine, 1), "1": (coarse, 2)})
        assert open_mask(str(path), describe(source[0]), None).info.level == 1
        job = job_plan_of(source, path)
        assert outside(job) == counted(coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2), job.facts.largest_plan)

    def test_a_mask_of_a_part_lies_where_its_translation_says(self, source, tmp_path):
        mask = sphere()
        part = mask[8:24, 16:, :40]
        path = labels(tmp_path / "m.zarr", part, translation=(8 * VOXEL[0], 16 * VOXEL[1], 0.0))
        job = job_plan_of(source, path)
        assert outside(job) == counted(mask & (np.arange(SHAPE[1]) >= 16)[:, None], job.facts.largest_plan)
        assert any("a part of the volume only" in w for w in job.warnings)

    def test_units_and_levels_of_the_input_are_minded(self, source, tmp_path):
        path = labels(tmp_path / "m.zarr", sphere(), scale=tuple(1000 * v for v in VOXEL), unit="nanometer")
        assert outside(job_plan_of(source, path)) == outside(job_plan_of(source, source[2]))

    def test_time_points_and_channels_have_their_own_or_share_one(self, tmp_path):
        data = np.stack([[make.scene(8, 16, 64, seed=2 * t + c) for c in range(3)] for t in range(2)])
        image, psf = make.volume(tmp_path / "in.zarr", data), make.psf_tiff(tmp_path / "psf.tif")
        blocks = {"block_shape": (8, 16, 16), "chunks": (8, 16, 16)}
        mask = np.zeros((2, 1, 8, 16, 64), "uint8")
        mask[0, 0, :, :, 12] = mask[1, 0, :, :, 51] = 1
        job = job_plan_of((image, psf), labels(tmp_path / "m.zarr", mask, axes="tczyx"), **blocks, channels=(2, 0))
        per_volume = job.outside.reshape(2, 2, 4)
        assert per_volume[0].tolist() == [[False, False, True, True]] * 2
        assert per_volume[1].tolist() == [[True, True, False, False]] * 2

    def test_a_plane_serves_all_planes(self, source, tmp_path):
        plane = sphere()[16]
        job = job_plan_of(source, labels(tmp_path / "m.zarr", plane, axes="yx"))
        assert outside(job) == counted(np.broadcast_to(plane, SHAPE), job.facts.largest_plan)


class TestRefused:
    @pytest.mark.parametrize(
        ("make_mask", "words"),
        {
            "nothing there": (lambda p: p, ("does not exist", "give auto, none, or an OME-Zarr")),
            "floating point": (lambda p: labels(p, sphere().astype("float32")), ("float32", "integers or booleans")),
            "beside the volume": (
                lambda p: labels(p, sphere(), translation=(0.0, 500.0, 0.0)),
                ("beside the volume", "0,500,0", "correct the translation"),
            ),
            "another shape": (
                lambda p: labels(p, sphere((32, 48, 50)), scale=None),
                (r"\(32, 48, 50\)", r"\(32, 48, 64\)", "give it a scale"),
            ),
            "too many time points": (
                lambda p: labels(p, np.zeros((3, *SHAPE), "uint8"), axes="tzyx"),
                ("3 entries on axis 't'", "must have 1"),
            ),
            "no image": (lambda p: make.volume(p, make.scene(4, 8, 8)) / "0", ("is an array", "give auto, none")),
        }.values(),
        ids=["nothing", "float", "beside", "shape", "time", "array"],
    )
    def test_with_a_sentence_that_says_why(self, source, tmp_path, make_mask, words):
        with pytest.raises(InvalidInputError, match=r"^mask: ") as caught:
            job_plan_of(source, make_mask(tmp_path / "m.zarr"))
        for word in words:
            assert re.search(word, str(caught.value)), str(caught.value)

    def test_on_the_command_line_with_exit_3(self, source, tmp_path):
        result = bigdeconv("run", source[0], tmp_path / "o.zarr", "--psf", source[1], "--mask", tmp_path / "none.zarr")
        assert result.exit_code == 3
        assert result.stderr.startswith("bigdeconv: mask: ")
        assert make.snapshot(tmp_path) == {}


class TestRun:
    def test_foreground_equals_the_run_without_a_mask(self, source, job, whole, tmp_path):
        """To the bit: a block that is left out lies a halo or more away, and no ramp reaches that far."""
        output = tmp_path / "out.zarr"
        result = bigdeconv("run", job[0], output, *job[1:], "--mask", source[2], "--json")
        assert result.exit_code == 0, result.stdout
        printed = json.loads(result.stdout)
        job = job_plan_of(source, source[2])
        skipped = counted(sphere(), job.facts.largest_plan)
        assert (printed["blocks_total"], printed["blocks_done"]) == (N_BLOCKS, N_BLOCKS)
        assert printed["blocks_skipped"] == len(skipped)
        masked, full = make.pixels(output), make.pixels(whole)
        assert full[sphere()].all()
        assert np.array_equal(masked[sphere()], full[sphere()])
        for index in range(N_BLOCKS):
            core = job.facts.largest_plan.task(index).core.slices
            assert masked[core].any() == (index not in skipped)
        # The journal has what was computed, and nothing of it is read or kept that was not.
        assert {r["block"] for r in make.journal_of(output) if "block" in r} == set(range(N_BLOCKS)) - skipped
        status = json.loads(bigdeconv("status", output, "--json").stdout)
        assert (status["blocks_done"], status["blocks_skipped"]) == (N_BLOCKS, len(skipped))
        attributes = json.loads((output / "zarr.json").read_text())["attributes"]["bigdeconv"]
        assert str(source[2]) not in json.dumps(attributes)

    def test_ramps_are_wider_than_no_halo(self, source, job, tmp_path):
        """Without a halo the ramps decide how near a block is: foreground never fades towards one that is left out."""
        options = (*job[1:], "--halo", "0,0,0", "--blend", "2,4,4")
        corner = np.zeros(SHAPE, bool)
        corner[8:10, 16:19, 16:20] = True
        mask = labels(tmp_path / "m.zarr", corner)
        for name, more in (("full", ()), ("masked", ("--mask", mask))):
            assert bigdeconv("run", job[0], tmp_path / name, *options, *more).exit_code == 0
        assert np.array_equal(make.pixels(tmp_path / "masked")[corner], make.pixels(tmp_path / "full")[corner])
        assert sum("block" in r for r in make.journal_of(tmp_path / "masked")) == 8

    def test_blocks_outside_are_not_even_read(self, source, job, tmp_path, cluster_address):
        """What lies outside is torn after the samples have been taken: a run from its stored plan does not notice."""
        image, output = shutil.copytree(source[0], tmp_path / "in.zarr"), tmp_path / "out.zarr"
        options = (*job[1:], "--mask", source[2])
        assert bigdeconv("run", image, output, *options).exit_code == 0
        before = make.snapshot(output)
        begin_anew(output)
        job = job_plan_of(source, source[2])
        used = np.zeros(SHAPE, bool)
        for task in job.facts.largest_plan.tasks():
            if not job.outside[task.index]:
                used[task.read.slices] = True
        chunks = list(np.ndindex(4, 3, 4))
        spare = [
            c
            for c in chunks
            if not used[tuple(slice(i * s, i * s + s) for i, s in zip(c, (8, 16, 16), strict=True))].any()
        ]
        assert spare
        for chunk in spare:
            (image / "0" / "c" / "/".join(map(str, chunk))).write_bytes(b"torn")
        result = bigdeconv("resume", output, "--scheduler", cluster_address)
        assert result.exit_code == 0, result.stderr
        assert make.snapshot(output) == before

    def test_resume_computes_what_is_left_and_no_more(self, source, job, tmp_path, cluster_address):
        """Stopped when some blocks were done: the rest is computed, the same bytes come out, no overlap slab stays."""
        output, undisturbed = tmp_path / "out.zarr", tmp_path / "whole.zarr"
        options = (*job[1:], "--mask", source[2])
        assert bigdeconv("run", job[0], undisturbed, *options).exit_code == 0
        n_computed = N_BLOCKS - len(counted(sphere(), job_plan_of(source, source[2]).facts.largest_plan))
        stop_after(5, job[0], output, options)
        status = json.loads(bigdeconv("status", output, "--json").stdout)
        assert status["state"] == "interrupted"
        assert status["blocks_skipped"] == N_BLOCKS - n_computed
        assert N_BLOCKS - n_computed + 5 <= status["blocks_done"] < N_BLOCKS
        result = bigdeconv("resume", output, "--scheduler", cluster_address, "--json")
        assert result.exit_code == 0, result.stdout
        computed = [r["block"] for r in make.journal_of(output) if "block" in r]
        assert len(computed) == len(set(computed)) == n_computed
        assert make.snapshot(output) == make.snapshot(undisturbed)

    def test_overlap_slabs_that_no_block_waits_for_do_not_stay(self, source, job, tmp_path, monkeypatch):
        """At the end of the blocks the scratch folder is empty, before it is removed."""
        left = []
        monkeypatch.setattr(
            Ledger, "drop_scratch", lambda ledger: left.extend((ledger.path / "scratch").rglob("*.npy"))
        )
        assert bigdeconv("run", job[0], tmp_path / "out.zarr", *job[1:], "--mask", source[2]).exit_code == 0
        assert left == []

    def test_another_mask_is_another_job(self, source, job, tmp_path, monkeypatch):
        output = tmp_path / "out.zarr"
        assert bigdeconv("run", job[0], output, *job[1:], "--mask", source[2]).exit_code == 0
        moved = shutil.copytree(source[2], tmp_path / "moved.zarr")
        same = bigdeconv("run", job[0], output, *job[1:], "--mask", moved, "--resume")
        assert same.exit_code == 0, same.stderr
        other = labels(tmp_path / "other.zarr", sphere(centre=(16, 30, 50)))
        for mask in (other, "auto"):
            refused = bigdeconv("run", job[0], output, *job[1:], "--mask", mask, "--resume")
            assert refused.exit_code == 3
            assert "differs in mask" in refused.stderr

    def test_an_empty_mask_warns_and_leaves_an_empty_output(self, source, job, tmp_path):
        output = tmp_path / "out.zarr"
        empty = labels(tmp_path / "m.zarr", np.zeros(SHAPE, bool))
        result = bigdeconv("run", job[0], output, *job[1:], "--mask", empty)
        assert result.exit_code == 0
        assert "nothing is computed and the output is empty" in result.stderr
        assert not make.pixels(output).any()
        assert bigdeconv("validate", output, "--deep").exit_code == 0

    def test_plan_counts_what_is_left_out(self, source):
        command = ("plan", source[0], "--psf", source[1], *RL, *BLOCKS, "--mask", source[2])
        n = len(counted(sphere(), job_plan_of(source, source[2]).facts.largest_plan))
        assert json.loads(bigdeconv(*command, "--json").stdout)["blocks_skipped"] == n
        assert re.search(rf"blocks +{N_BLOCKS} \({n} outside the mask\) of 8,16,16", bigdeconv(*command).stdout)


def begin_anew(output):
    """Forget every block, as if the driver had died before the first."""
    shutil.rmtree(output)
    (ledger_path(output) / "journal" / "000000.jsonl").write_text("")


def stop_after(n, image, output, options):
    """Run, and stop as Ctrl-C would when some blocks are finished."""

    def progressed(self, progress):
        if progress.blocks_finished - progress.blocks_skipped >= n:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bigdeconv_cli.progress.Reporter.progressed", progressed)
        assert bigdeconv("run", image, output, *options).exit_code == 4
