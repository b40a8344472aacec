"""Blocks of one volume merge to that volume, for any division into blocks and in any order."""

from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bigdeconv.errors import BudgetError
from bigdeconv.geometry import Box, triple
from bigdeconv.numerics.blending import DIRECTIONS, merge_, overlap_boxes, ramp, weigh_
from bigdeconv.planning.planner import PlanRequest, make_plan
from tests.strategies import requests


def plan_of(shape, core, blend, **changes):
    return make_plan(
        PlanRequest(shape, (3, 3, 3), (1, 1, 1), block_shape=core, chunk_shape=core, blend=blend, **changes)
    )


def blockwise(plan, solve, seed=None):
    """Solve all blocks, then merge all; with a seed, both in a random order."""
    shuffle = Random(seed).shuffle if seed is not None else lambda items: None
    tasks = list(plan.tasks())
    shuffle(tasks)
    cores, overlaps = {}, {}
    for task in tasks:
        kept = solve(task).astype(np.float32)
        weigh_(kept, task.core.shape, plan.blend, triple(int(p > 0) for p in task.position))
        for direction, box in overlap_boxes(kept.shape, task.core.shape):
            overlaps[task.index, direction] = kept[box.slices].copy()
        cores[task.index] = kept[Box.of_shape(task.core.shape).slices].copy()
    whole = np.full(plan.roi.shape, np.nan, np.float32)
    shuffle(tasks)
    for task in tasks:
        sources = [(d, plan.neighbour(task, triple(-i for i in d))) for d in DIRECTIONS]
        shuffle(sources)
        incoming = {d: overlaps.pop((n, d)) for d, n in sources if (n, d) in overlaps}
        whole[task.core.relative_to(plan.roi.start).slices] = merge_(cores[task.index], incoming)
    assert not overlaps
    return whole


class TestPartitionOfUnity:
    @given(requests(volumes=False), st.integers(0, 2**31))
    @settings(max_examples=60, deadline=None)
    def test_the_volume_comes_back(self, request, seed):
        try:
            plan = make_plan(request)
        except BudgetError:
            assume(False)
        volume = np.random.default_rng(seed).random(request.zyx_shape, np.float32)
        whole = blockwise(plan, lambda task: volume[task.keep.slices].copy(), seed)
        # At most 8 products of 3 rounded weights: some 10 roundings of 6e-8.
        np.testing.assert_allclose(whole, volume[plan.roi.slices], rtol=1e-6)

    @pytest.mark.parametrize("sliver", range(1, 9))
    def test_last_cores_shorter_than_the_ramp(self, sliver):
        volume = np.random.default_rng(sliver).random((16 + sliver,) * 3, np.float32)
        plan = plan_of(volume.shape, (8, 8, 8), (4, 4, 4))
        assert plan.task(plan.n_blocks - 1).core.shape == (sliver,) * 3
        np.testing.assert_allclose(blockwise(plan, lambda task: volume[task.keep.slices].copy()), volume, rtol=1e-6)

    @pytest.mark.parametrize("blend", [(1, 1, 1), (3, 2, 4), (4, 0, 1)])
    def test_a_constant_is_stored_as_that_constant(self, blend):
        plan = plan_of((21, 19, 26), (8, 8, 8), blend)
        for value in (1, 7, 1000, 65535):
            whole = blockwise(plan, lambda task, value=value: np.full(task.keep.shape, value))
            np.testing.assert_allclose(whole, value, rtol=5e-7)
            np.testing.assert_array_equal(np.rint(whole), value)

    def test_along_one_axis_ones_stay_exactly_one(self):
        for blend in range(1, 33):
            plan = plan_of((1, 1, 200), (1, 1, 64), (0, 0, blend))
            np.testing.assert_array_equal(blockwise(plan, lambda task: np.ones(task.keep.shape)), 1)

    @pytest.mark.parametrize("blend", [(0, 0, 0), (2, 3, 0)])
    def test_blocks_that_differ_meet_in_the_middle(self, blend):
        """Each block holds its own index, so that the result is the sum of the ramps, here by brute force."""
        plan = plan_of((12, 14, 10), (6, 7, 5), blend)
        expected = np.zeros(plan.roi.shape)
        for task in plan.tasks():
            for voxel in product(*(range(n) for n in plan.roi.shape)):
                weights = [
                    weight_by_hand(v, p, c, 2 * b)
                    for v, p, c, b in zip(voxel, task.position, plan.core_shape, blend, strict=True)
                ]
                expected[voxel] += (task.index + 1) * np.prod(weights)
        whole = blockwise(plan, lambda task: np.full(task.keep.shape, task.index + 1.0))
        np.testing.assert_allclose(whole, expected, rtol=2e-6)


def weight_by_hand(voxel, position, core, width):
    """Weight of the block at a position on an axis of two."""
    inside = voxel - core
    rising = 1.0 if inside >= width else (inside + 0.5) / max(width, 1) if inside >= 0 else 0.0
    return rising if position else 1.0 - rising


class TestOrder:
    @pytest.mark.parametrize("seed", range(5))
    def test_any_order_gives_the_same_bytes(self, seed):
        plan = plan_of((21, 19, 26), (8, 8, 8), (4, 3, 2))
        estimates = np.random.default_rng(0).random((plan.n_blocks, 30, 30, 30), np.float32)

        def solve(task):
            # Blocks that disagree, as real ones do.
            return estimates[task.index][Box.of_shape(task.keep.shape).slices].copy()

        assert blockwise(plan, solve, seed).tobytes() == blockwise(plan, solve).tobytes()


class TestPieces:
    @given(st.integers(1, 64))
    def test_a_ramp_rises_evenly_and_mirrors_itself(self, width):
        up = ramp(width)
        assert up.dtype == np.float32
        assert up.shape == (width,)
        assert 0 < up[0] <= up[-1] < 1
        assert (np.diff(up) > 0).all()
        np.testing.assert_allclose(up + up[::-1], 1, atol=1e-7)
        np.testing.assert_array_equal(up + (1 - up), 1)

    def test_no_ramp(self):
        assert ramp(0).shape == (0,)

    @given(st.tuples(*[st.integers(1, 4)] * 3), st.tuples(*[st.integers(0, 2)] * 3))
    def test_core_and_overlap_slabs_partition_the_kept_voxels(self, core, overlap):
        kept = triple(c + o for c, o in zip(core, overlap, strict=True))
        count = np.zeros(kept, int)
        count[Box.of_shape(core).slices] += 1
        directions = []
        for direction, box in overlap_boxes(kept, core):
            count[box.slices] += 1
            directions.append(direction)
            assert all(d <= o for d, o in zip(direction, overlap, strict=True))
        np.testing.assert_array_equal(count, 1)
        assert len(set(directions)) == len(directions)

    def test_a_first_block_without_overlap_is_left_alone(self):
        volume = np.random.default_rng(0).random((4, 5, 6), np.float32)
        assert (weigh_(volume.copy(), (4, 5, 6), (2, 2, 2), (0, 0, 0)) == volume).all()

    def test_weighing_and_merging_work_in_place(self):
        kept = np.ones((4, 4, 4), np.float32)
        assert weigh_(kept, (4, 4, 4), (1, 1, 1), (1, 0, 0)) is kept
        np.testing.assert_allclose(kept[:, 0, 0], [0.25, 0.75, 1, 1])
        assert merge_(kept, {(1, 0, 0): np.ones((2, 4, 4), np.float32)}) is kept
        np.testing.assert_allclose(kept[:, 0, 0], [1.25, 1.75, 1, 1])

    def test_an_empty_overlap_adds_nothing(self):
        core = np.ones((3, 3, 3), np.float32)
        merge_(core, {(0, 1, 0): np.empty((0, 0, 0), np.float32)})
        np.testing.assert_array_equal(core, 1)
