"""Blocks and what they write: whoever does which of them when changes no byte, and nothing is written twice."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from distributed import LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

from bigdeconv.config import make_config
from bigdeconv.engine import block, schedule
from bigdeconv.engine.clusters.connection import connect
from bigdeconv.engine.plugins import installed
from bigdeconv.errors import BudgetError
from bigdeconv.geometry import Box, triple
from bigdeconv.numerics.blending import DIRECTIONS
from bigdeconv.numerics.camera import prepare_views
from bigdeconv.numerics.downsampling import downsample
from bigdeconv.planning.resources import Resources
from bigdeconv.storage import arrays, locations
from bigdeconv.storage.journal_summary import JournalSummary
from bigdeconv.storage.output import LevelSpec, OutputSpec, create_output
from tests import make
from tests.strategies import requests
from tests.test_planner import plan_for


def levels_for_later(recipe):
    """Yield every part of the levels that no core determines alone, level by level."""
    for n, level in enumerate(recipe.plan.levels):
        if not level.in_task:
            yield [(n, *unit) for unit in schedule._pyramid_units(recipe, n)]


@pytest.mark.slow
class TestWriters:
    """zarr has no locks: two writers in one shard, or in one chunk where there are no shards, lose data in silence."""

    @given(requests(volumes=False, largest=24), st.randoms(use_true_random=False))
    @settings(max_examples=40, deadline=None)
    def test_every_shard_of_every_level_is_written_once(self, tmp_path_factory, request, random):
        plan = plan_for(request)
        recipe = SimpleNamespace(
            plan=plan, output=str(tmp_path_factory.mktemp("output") / "out.zarr"), output_axes=tuple("zyx"), output_dtype="<u2",
            syncs=False,
        )  # fmt: skip
        levels = tuple(
            LevelSpec(level.shape, level.chunk_shape, level.shard_shape, (1.0,) * 3, (0.0,) * 3)
            for level in plan.levels
        )
        version = "0.5" if request.sharded else "0.4"
        create_output(recipe.output, OutputSpec(tuple("zyx"), ("micrometer",) * 3, "<u2", levels, version, "x", (), {}))
        # Nothing is 0, so that nothing is left unwritten.
        data = np.random.default_rng(0).integers(1000, 2000, plan.roi.shape).astype("uint16")
        written = Counter()

        class Recording(LocalStore):
            async def set(self, key, value):
                written[key] += 1
                await super().set(key, value)

        tasks = list(plan.tasks())
        with mock.patch.object(locations, "RegularFiles", Recording):
            for task in random.sample(tasks, len(tasks)):
                block._write_levels(recipe, task, data[task.core.relative_to(plan.roi.start).slices], lambda: None)
            for units in levels_for_later(recipe):
                for unit in random.sample(units, len(units)):
                    block.downsample_region(recipe, *unit)
        assert set(written.values()) == {1}
        for n, level in enumerate(plan.levels):
            if n:
                finer = plan.levels[n - 1].factors
                data = downsample(data, triple(c // f for c, f in zip(level.factors, finer, strict=True)))
            whole = tuple(slice(0, size) for size in level.shape)
            np.testing.assert_array_equal(arrays.read_region(recipe.output, str(n), whole), data)


@pytest.fixture
def one_thread():
    """What each worker has in these tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def in_this_process(recipe, seed):
    """Solve all blocks, merge them, make the other levels: each in a random order."""
    rng, plan = np.random.default_rng(seed), recipe.plan
    tasks = list(plan.tasks())
    solved = {i: block.solve_block(recipe, tasks[i]) for i in rng.permutation(plan.n_blocks)}
    for i in rng.permutation(plan.n_blocks):
        lower = {d: plan.neighbour(tasks[i], triple(-step for step in d)) for d in DIRECTIONS}
        block.merge_block(recipe, tasks[i], solved[i], {d: n for d, n in lower.items() if n is not None})
    for units in levels_for_later(recipe):
        for i in rng.permutation(len(units)):
            block.downsample_region(recipe, *units[i])


def on_workers(recipe, address):
    """Do what a run does."""
    journal = JournalSummary(recipe.plan.n_blocks)
    with connect(address, Resources()) as connection, installed(connection.client, (recipe,)):
        progress = schedule.run_blocks(connection, (recipe,), None, journal, lambda *_: None)
        assert progress.blocks_finished == recipe.plan.n_blocks
        for n, level in enumerate(recipe.plan.levels):
            assert level.in_task or schedule.run_pyramid(connection, recipe, 0, n)[1] == []


@pytest.mark.cluster
@pytest.mark.usefixtures("one_thread")
def test_any_order_of_blocks_and_any_number_of_workers_give_the_same_bytes(tmp_path, cluster_address):
    source, kernel = make.volume(tmp_path / "in.zarr", make.scene(28, 40, 44)), make.psf_tiff(tmp_path / "psf.tif")
    job = {
        "input": str(source), "psf": [str(kernel)], "method": "rl", "iterations": 2, "device": "cpu",
        "background": 20, "intensity_scale": 100, "output_scale": 8,
        "block_shape": (16, 16, 16), "chunks": (8, 8, 8), "halo": (4, 4, 4), "blend": (3, 3, 3), "levels": 3,
    }  # fmt: skip

    def bytes_of(name, work, *how):
        output = tmp_path / name
        (recipe,) = make.start_job(make_config(job | {"output": str(output)}))
        assert recipe.plan.n_blocks == 18
        assert {level.in_task for level in recipe.plan.levels} == {True, False}
        work(recipe, *how)
        return make.snapshot(output)

    once = bytes_of("once.zarr", in_this_process, 0)
    assert bytes_of("again.zarr", in_this_process, 1) == once
    assert bytes_of("two.zarr", on_workers, cluster_address) == once
    with LocalCluster(
        n_workers=3, threads_per_worker=2, host="127.0.0.1", dashboard_address="127.0.0.1:0", memory_limit=0
    ) as three:
        assert bytes_of("three.zarr", on_workers, three.scheduler_address) == once


def test_a_window_of_fill_costs_no_more_than_its_reading(tmp_path, monkeypatch):
    data = make.scene(64, 16, 16, background=100.0)
    data[:32] = 0
    source, kernel = make.volume(tmp_path / "in.zarr", data, chunk=(16, 16, 16)), make.psf_tiff(tmp_path / "psf.tif")
    job = {
        "input": str(source),
        "output": str(tmp_path / "out.zarr"),
        "psf": [str(kernel)],
        "method": "rl",
        "device": "cpu",
    }
    (recipe,) = make.start_job(make_config(job | {"block_shape": (16, 16, 16), "halo": (4, 4, 4), "blend": (0, 0, 0)}))
    first, data_mask = recipe.plan.task(0), recipe.channels[0].data_mask
    assert data_mask.fill == 0
    counts, _ = block._counts(recipe, 0, 0, first.read)
    _, weights, expected = prepare_views(counts, recipe.channels[0].camera, data_mask, first.core.slices)
    assert not weights.any()
    monkeypatch.delattr(block, "prepare_views")
    solved = block.solve_block(recipe, first)
    assert solved.core is None
    assert solved.stats.pop("read_seconds") >= 0
    assert solved.stats == {"voxels": expected.voxels, "fill": expected.fill, "skipped": True, "absent": [(0, 2)]}


class TestGpuMemory:
    """A GPU whose memory is full, played by a solver that refuses."""

    @pytest.fixture
    def solver(self, monkeypatch):
        """The outcomes of the next restorations, and the tools that are kept at each."""
        outcomes, kept = [], []

        def solved(*_):
            kept.append(dict(block._TOOLS))
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(block, "_solved", solved)
        monkeypatch.setattr(block, "_TOOLS", {"operator": ("of another window", object())})
        return SimpleNamespace(outcomes=outcomes, kept=kept)

    def test_a_window_is_tried_again_without_what_is_kept_for_others(self, solver):
        solver.outcomes += [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"), np.ones((2, 3, 4))]
        estimate, statistic = block._restored(None, 0, Box.of_shape((2, 3, 4)), None, None)
        assert estimate.sum() == 24
        assert statistic == {"out_of_memory": 1}
        assert [bool(tools) for tools in solver.kept] == [True, False]

    def test_a_window_that_fits_says_nothing(self, solver):
        solver.outcomes += [np.ones((2, 3, 4))]
        assert block._restored(None, 0, Box.of_shape((2, 3, 4)), None, None)[1] == {}

    def test_a_window_that_never_fits_is_refused_in_words(self, solver):
        solver.outcomes += [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")] * 2
        with pytest.raises(
            BudgetError, match=r"window of 2,3,4 voxels does not fit \(CUDA out of memory\).*--block-shape"
        ):
            block._restored(None, 0, Box.of_shape((2, 3, 4)), None, None)
