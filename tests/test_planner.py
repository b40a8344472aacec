"""Plans against voxel-by-voxel counts of small volumes."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import accumulate, pairwise, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bigdeconv.errors import BudgetError, InvalidInputError
from bigdeconv.geometry import Box, Grid, ceil_div, fast_length, triple
from bigdeconv.planning import seam_error as seams
from bigdeconv.planning.blocks import BlockSequence, Plan
from bigdeconv.planning.cost import Costs, Rates
from bigdeconv.planning.memory import (
    Contents,
    Extents,
    PriorMemory,
    device_terms,
    driver_terms,
    host_terms,
    worker_terms,
)
from bigdeconv.planning.planner import BLEND, PlanRequest, make_plan
from bigdeconv.planning.seam_error import EdgeErrorProfile
from bigdeconv.planning.tuned import CUDA_PROCESS_BYTES, HEAP_BYTES, PROCESS_BYTES
from tests.strategies import requests, triples

DIRECTIONS = [d for d in product((0, 1), repeat=3) if any(d)]
TOO_LITTLE = (
    r"^memory: a block of \d+,\d+,\d+ with its halo of .* needs .* per worker, but its budget is .*; "
    r"--memory .*GiB would fit"
)


def plan_or_none(request):
    """The plan, or None where the memory is too little for any."""
    try:
        return make_plan(request)
    except BudgetError:
        return None


def plan_for(request):
    """The plan, or another example."""
    plan = plan_or_none(request)
    assume(plan is not None)
    return plan


def simple(**changes):
    """Four blocks of 16 on each axis."""
    values = {
        "zyx_shape": (64, 64, 64),
        "psf_shape": (5, 5, 5),
        "voxel_zyx_um": (1.0, 1.0, 1.0),
        "chunk_shape": (8, 8, 8),
        "block_shape": (16, 16, 16),
    }
    return with_resources(PlanRequest(**values), **changes)


def with_resources(request, **changes):
    """The request with other values; what belongs to the workers goes into its resources."""
    names = {"budget_bytes", "device_budget_bytes", "workers"}
    resources = replace(request.resources, **{n: v for n, v in changes.items() if n in names})
    return replace(request, **{n: v for n, v in changes.items() if n not in names}, resources=resources)


class TestBlocks:
    @given(requests())
    @settings(max_examples=80, deadline=None)
    def test_cores_tile_the_region_exactly_once(self, request):
        plan = plan_for(request)
        count = defaultdict(lambda: np.zeros(request.zyx_shape, int))
        for task in plan.tasks():
            count[task.timepoint, task.channel][task.core.slices] += 1
        assert set(count) == set(product(request.timepoints, request.channels))
        inside = np.zeros(request.zyx_shape, int)
        inside[(request.roi or Box.of_shape(request.zyx_shape)).slices] = 1
        for counted in count.values():
            np.testing.assert_array_equal(counted, inside)

    @given(requests())
    @settings(max_examples=80, deadline=None)
    def test_boxes_nest(self, request):
        plan = plan_for(request)
        whole = Box.of_shape(request.zyx_shape)
        assert plan.halo == (request.halo or tuple(2 * (p // 2) for p in request.psf_shape))
        for task in plan.tasks():
            overlap = triple(2 * b for b in plan.blend)
            assert task.keep == task.core.grow((0, 0, 0), overlap).intersect(plan.roi)
            assert whole.contains(task.read)
            assert task.read.contains(task.keep.grow(plan.halo).intersect(whole))

    @given(requests(volumes=False))
    @settings(max_examples=80, deadline=None)
    def test_no_data_are_left_out_that_the_fft_has_room_for(self, request):
        """Lengths are fast, and one more voxel would not fit: unless the volume ends there."""
        plan = plan_for(request)
        for task in plan.tasks():
            wanted = task.keep.grow(plan.halo).intersect(Box.of_shape(request.zyx_shape))
            sides = zip(wanted.shape, task.read.shape, request.psf_shape, request.zyx_shape, strict=True)
            for least, read, psf, size in sides:
                fft = fast_length(read + psf - 1)
                assert fft == fast_length(least + psf - 1)
                assert read + psf - 1 <= fft
                assert read + psf - 1 == fft or read == size

    @given(requests())
    @settings(max_examples=60, deadline=None)
    def test_a_block_comes_after_its_lower_neighbours(self, request):
        plan = plan_for(request)
        tasks = list(plan.tasks())
        assert [t.index for t in tasks] == list(range(plan.n_blocks))
        where = {(t.timepoint, t.channel, t.position): t.index for t in tasks}
        assert len(where) == plan.n_blocks
        for task in tasks:
            for direction in DIRECTIONS:
                for sign in (1, -1):
                    step = triple(sign * d for d in direction)
                    position = triple(p + s for p, s in zip(task.position, step, strict=True))
                    expected = where.get((task.timepoint, task.channel, position))
                    assert plan.neighbour(task, step) == expected
                    if sign < 0 and expected is not None:
                        assert expected < task.index

    @given(requests(volumes=False))
    @settings(max_examples=60, deadline=None)
    def test_overlaps_reach_into_the_next_core_only(self, request):
        plan = plan_for(request)
        shared = 0
        for task in plan.tasks():
            for axis, direction in enumerate([(1, 0, 0), (0, 1, 0), (0, 0, 1)]):
                overlap = task.keep.stop[axis] - task.core.stop[axis]
                above = plan.neighbour(task, direction)
                room = 0 if above is None else plan.task(above).core.shape[axis]
                assert overlap == min(2 * plan.blend[axis], room)
                shared += overlap
        assert plan.has_overlaps == (shared > 0)

    def test_blocks_cross_the_narrowest_section(self):
        plan = make_plan(simple(zyx_shape=(32, 64, 48)))
        assert plan.axis_order == (1, 2, 0)
        assert [t.position for t in map(plan.task, range(3))] == [(0, 0, 0), (1, 0, 0), (0, 0, 1)]

    def test_volumes_follow_one_another(self):
        plan = make_plan(simple(timepoints=(5, 7), channels=(2, 0, 1)))
        per_volume = len(plan.grid)
        seen = [(plan.task(n * per_volume).timepoint, plan.task(n * per_volume).channel) for n in range(6)]
        assert seen == [(5, 2), (5, 0), (5, 1), (7, 2), (7, 0), (7, 1)]
        assert plan.n_blocks == 6 * 64

    @pytest.mark.parametrize("shape", [(1, 200, 300), (200, 1, 1), (1, 1, 1), (3, 500, 2), (7, 130, 64)])
    def test_flat_and_thin_volumes(self, shape):
        """A PSF may be larger than the volume; an axis of one voxel is never halved."""
        plan = make_plan(PlanRequest(zyx_shape=shape, psf_shape=(9, 9, 9), voxel_zyx_um=(1, 1, 1), n_levels=4))
        assert plan.core_shape == shape
        assert plan.n_blocks == 1
        assert not plan.has_overlaps
        task = plan.task(0)
        assert task.core == task.keep == task.read == Box.of_shape(shape)
        for level in plan.levels:
            assert level.shape == tuple(ceil_div(n, f) for n, f in zip(shape, level.factors, strict=True))
            assert all(f == 1 for f, n in zip(level.factors, shape, strict=True) if n == 1)

    def test_flat_volume_in_blocks(self):
        plan = make_plan(simple(zyx_shape=(1, 64, 64), psf_shape=(1, 5, 5), block_shape=(16, 16, 16)))
        assert plan.core_shape == (1, 16, 16)
        assert plan.blend == (0, BLEND, BLEND)
        assert plan.n_blocks == 16


class TestWriteUnits:
    """zarr has no locks: two writers in one shard, or in one chunk where there are no shards, lose data in silence."""

    @given(requests(volumes=False))
    @settings(max_examples=120, deadline=None)
    def test_no_two_tasks_share_one(self, request):
        plan = plan_for(request)
        for level in (level for level in plan.levels if level.in_task):
            owners = np.full(level.shape, -1)
            units = defaultdict(set)
            for task in plan.tasks():
                part = task.core.relative_to(plan.roi.start).coarsen(level.factors)
                assert (owners[part.slices] == -1).all()
                owners[part.slices] = task.index
            assert (owners >= 0).all()
            grid = Grid(level.shape, level.write_shape)
            for position in grid.positions():
                units[position] = set(owners[grid.core(position).slices].ravel().tolist())
            assert all(len(tasks) == 1 for tasks in units.values())

    @given(requests(volumes=False))
    @settings(max_examples=60, deadline=None)
    def test_a_core_holds_all_fine_voxels_of_its_coarse_ones(self, request):
        """Else the mean of a cell would need voxels of two tasks."""
        plan = plan_for(request)
        for level in (level for level in plan.levels if level.in_task):
            for task in plan.tasks():
                core = task.core.relative_to(plan.roi.start)
                cells = core.coarsen(level.factors)
                fine = Box(
                    triple(a * f for a, f in zip(cells.start, level.factors, strict=True)),
                    triple(b * f for b, f in zip(cells.stop, level.factors, strict=True)),
                )
                assert fine.intersect(Box.of_shape(plan.roi.shape)) == core

    @given(requests(volumes=False))
    @settings(max_examples=100, deadline=None)
    def test_levels_are_a_pyramid(self, request):
        plan = plan_for(request)
        assert plan.levels[0].factors == (1, 1, 1)
        assert plan.levels[0].in_task
        for level in plan.levels:
            exact = tuple(ceil_div(n, f) for n, f in zip(plan.roi.shape, level.factors, strict=True))
            assert level.shape == exact
            assert all(0 < c <= max(n, 1) for c, n in zip(level.chunk_shape, level.shape, strict=True))
            assert (level.shard_shape is not None) == request.sharded
            if level.shard_shape is not None:
                assert all(s % c == 0 for s, c in zip(level.shard_shape, level.chunk_shape, strict=True))
        for fine, coarse in pairwise(plan.levels):
            steps = [c / f for c, f in zip(coarse.factors, fine.factors, strict=True)]
            assert set(steps) <= {1, 2}
            assert 2 in steps
            assert all(step == 1 or n > 1 for step, n in zip(steps, fine.shape, strict=True))
            assert fine.in_task or not coarse.in_task

    @given(requests(volumes=False))
    @settings(max_examples=60, deadline=None)
    def test_how_many_levels(self, request):
        plan = plan_for(request)
        last = plan.levels[-1]
        if request.n_levels is None:
            chunk = plan.levels[0].chunk_shape
            assert all(n <= c for n, c in zip(last.shape, chunk, strict=True))
        else:
            assert len(plan.levels) <= request.n_levels
            assert len(plan.levels) == request.n_levels or max(last.shape) == 1

    def test_levels_become_isotropic_first(self):
        plan = make_plan(simple(voxel_zyx_um=(4.0, 1.0, 1.0), n_levels=4))
        assert [level.factors for level in plan.levels] == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8)]

    def test_most_levels_come_from_the_task(self):
        """Cores of 512 with chunks of 64: 512, 256, 128 and 64 are whole shards of the coarser levels."""
        plan = make_plan(simple(zyx_shape=(2048,) * 3, block_shape=(512,) * 3, chunk_shape=None, budget_bytes=2**40))
        assert [level.in_task for level in plan.levels] == [True, True, True, True, False, False]
        assert [level.shard_shape for level in plan.levels[:4]] == [(n,) * 3 for n in (512, 256, 128, 64)]

    def test_explicit_chunks_and_shards_are_kept(self):
        plan = make_plan(simple(zyx_shape=(128,) * 3, block_shape=(64,) * 3, shard_shape=(16, 32, 64)))
        assert plan.levels[0].chunk_shape == (8, 8, 8)
        assert plan.levels[0].shard_shape == (16, 32, 64)

    def test_explicit_shards_on_a_thin_volume(self):
        """A chunk that is cut to the volume does not make the shards illegal."""
        plan = make_plan(
            simple(zyx_shape=(40, 256, 256), chunk_shape=(64,) * 3, shard_shape=(128,) * 3, block_shape=None)
        )
        level = plan.levels[0]
        assert level.write_shape[1:] == (128, 128)
        assert all(s % c == 0 for s, c in zip(level.write_shape, level.chunk_shape, strict=True))


class TestCosts:
    @given(requests(volumes=False))
    @settings(max_examples=60, deadline=None)
    def test_amplifications_are_sums_over_the_blocks(self, request):
        plan = plan_for(request)
        tasks = list(plan.tasks())
        ffts = [
            triple(fast_length(n + p - 1) for n, p in zip(task.read.shape, request.psf_shape, strict=True))
            for task in tasks
        ]
        assert plan.read_amplification == pytest.approx(sum(t.read.size for t in tasks) / plan.roi.size)
        assert plan.compute_amplification == pytest.approx(sum(math.prod(f) for f in ffts) / plan.roi.size)
        assert plan.read_shape == tuple(max(t.read.shape[a] for t in tasks) for a in range(3))
        assert plan.fft_shape == tuple(max(f[a] for f in ffts) for a in range(3))

    @given(requests(volumes=False, input_chunk_shape=(5, 3, 7)))
    @settings(max_examples=60, deadline=None)
    def test_decoded_are_the_whole_chunks_that_reads_touch(self, request):
        plan = plan_for(request)
        whole = Box.of_shape(request.zyx_shape)
        chunks = [Grid(request.zyx_shape, (5, 3, 7)).core(p) for p in Grid(request.zyx_shape, (5, 3, 7)).positions()]
        decoded = sum(c.size for task in plan.tasks() for c in chunks if c.intersect(task.read).intersect(whole).size)
        assert plan.decode_amplification == pytest.approx(decoded / plan.roi.size)

    @given(requests(volumes=False))
    @settings(max_examples=60, deadline=None)
    def test_windows_of_another_shape_are_counted(self, request):
        plan = plan_for(request)
        shapes = [task.read.shape for task in plan.tasks()]
        assert plan.n_window_shapes == 1 + sum(a != b for a, b in pairwise(shapes))

    def test_costs_by_hand(self):
        """Four units per FFT voxel, two per voxel of the prior, three per decoded one, five per written one, seven per block."""
        plan = make_plan(simple(timepoints=(0, 1)))
        n_fft = math.prod(plan.fft_shape)
        rates = Rates(transform=4 / (3 * 2 * math.log2(n_fft)), otf=11.0, prior=1.0)
        costs = Costs(rates, Rates(), prepare=0.0, decode=3.0, write=5.0, block=7.0)
        grown = math.prod(min(r + 12, f) / r for r, f in zip(plan.read_shape, plan.fft_shape, strict=True))
        amplified = (
            4 * plan.compute_amplification + 2 * grown * plan.read_amplification + 3 * plan.decode_amplification + 5
        )
        otfs = 11 * plan.n_window_shapes * n_fft
        assert costs.total(plan, 1, 2) == pytest.approx(2 * (plan.roi.size * amplified + otfs) + 7 * plan.n_blocks)

    def test_arrays_that_the_system_hands_out_anew_cost_more(self):
        def per_voxel(n):
            cube = simple(zyx_shape=(n,) * 3, block_shape=(n,) * 3, psf_shape=(1, 1, 1))
            return costs.total(make_plan(cube), 1, 3) / n**3

        costs = Costs(Rates(0, prior=1.0), Rates(0, prior=5.0), prepare=0, decode=0, write=0, block=0)
        assert [per_voxel(n) for n in (16, 200, 216)] == pytest.approx([3, 3, 15])

    def test_dear_reading_makes_larger_blocks(self):
        request = simple(zyx_shape=(512,) * 3, block_shape=None, chunk_shape=(32,) * 3, budget_bytes=2**30, workers=2)
        chunked = replace(request, input_chunk_shape=(1, 512, 512))
        cheap, dear = (make_plan(replace(chunked, costs=Costs(decode=d))) for d in (0.0, 1e-6))
        assert dear.decode_amplification < cheap.decode_amplification

    @given(requests(explicit=False))
    @settings(max_examples=60, deadline=None)
    def test_memory_is_kept_or_refused(self, request):
        try:
            plan = make_plan(request)
        except BudgetError:
            with pytest.raises(BudgetError, match=TOO_LITTLE):
                make_plan(request)
            # The smallest block of one chunk is too much indeed.
            extent = (request.roi or Box.of_shape(request.zyx_shape)).shape
            smallest = triple(min(c, n) for c, n in zip(request.chunk_shape, extent, strict=True))
            plan = make_plan(with_resources(request, block_shape=smallest, budget_bytes=2**60))
            assert plan.peak_bytes_per_worker > request.resources.budget_bytes
        else:
            assert plan.peak_bytes_per_worker <= request.resources.budget_bytes
            assert plan.memory == worker_terms(request.contents, plan.extents)
            assert plan.peak_bytes_per_worker == sum(size for _, size in plan.memory) > PROCESS_BYTES

    def test_an_explicit_block_keeps_the_budget_too(self):
        with pytest.raises(BudgetError, match=TOO_LITTLE):
            make_plan(simple(budget_bytes=PROCESS_BYTES + 1000))

    def test_shards_too_large_for_the_memory_are_a_matter_of_memory(self):
        with pytest.raises(BudgetError, match=TOO_LITTLE):
            make_plan(
                simple(
                    zyx_shape=(2048,) * 3,
                    block_shape=None,
                    chunk_shape=(64,) * 3,
                    shard_shape=(512,) * 3,
                    budget_bytes=PROCESS_BYTES + 2**29,
                )
            )

    def test_more_memory_never_costs_more(self):
        budgets = [PROCESS_BYTES + n * 2**20 for n in (12, 32, 128, 512, 4096)]
        plans = [
            make_plan(simple(zyx_shape=(300,) * 3, block_shape=None, chunk_shape=(32,) * 3, budget_bytes=b))
            for b in budgets
        ]
        costs = [Costs().total(p, 1, 1) for p in plans]
        assert all(b <= a * (1 + 1e-9) for a, b in pairwise(costs))
        assert plans[0].n_blocks > 1

    def test_memory_terms_by_hand(self):
        contents = Contents(2, input_itemsize=2, output_itemsize=4, prior=PriorMemory(200, 8, 5000, 300), threads=2)
        block = Extents((10, 10, 10), (12, 12, 16), (8, 8, 8))
        spectrum = 8 * 12 * 12 * 9
        slab = 2 * 2**19
        work = spectrum + 200 * 12 * 12 * 16 + 8 * slab + 5000
        solver = {
            "photons": 2 * 1000 * 4,
            "weights": 2 * 1000 * 4,
            "estimate, momentum, sensitivity": 3 * spectrum,
            "OTFs": 2 * spectrum,
            "FFT work, or that of the prior": work,
        }
        beside = {
            "next block": 2 * 1000 * 2,
            "solved core that waits": 512 * 4,
            "last block: core, overlap slabs, levels, codecs": 512 * 20,
        }
        gaps = {"kept in heaps": work * 3 // 4}
        assert dict(worker_terms(contents, block)) == {"process": PROCESS_BYTES + 300} | solver | gaps | beside
        photons = {"photons and weights, two blocks": 2 * 2 * 1000 * 9}
        assert dict(host_terms(contents, block)) == {"process": CUDA_PROCESS_BYTES} | photons | beside
        on_device = {"FFT work, or that of the prior": work - 8 * slab, "FFT library": spectrum}
        assert dict(device_terms(contents, block)) == solver | on_device

        plain = replace(contents, prior=None)
        planes = spectrum * 10 // 12
        assert dict(worker_terms(plain, block))["FFT work, or that of the prior"] == 2 * spectrum + planes + 5 * slab
        single = replace(plain, n_views=1)
        assert dict(worker_terms(single, block))["FFT work, or that of the prior"] == spectrum + 5 * slab
        assert dict(device_terms(single, block))["FFT work, or that of the prior"] == 4 * spectrum + 4 * 12 * 12 * 16

    def test_driver_terms_by_hand(self):
        sample = Extents((10, 10, 10), (12, 12, 16), (10, 10, 10))
        spectrum = 8 * 12 * 12 * 9
        planes = spectrum * 10 // 12
        restored = 2 * 8000 + 3 * spectrum + 2 * spectrum + (2 * spectrum + planes + 5 * 2**19)
        name = "samples, or a trial"

        def term(contents, n, trial=sample):
            terms = dict(driver_terms(contents, n, sample, trial))
            assert terms["process"] == PROCESS_BYTES
            return terms[name]

        assert term(Contents(2), 1000) == 2000 + restored
        assert term(Contents(2), 10**7) == (2 + 8) * 10**7
        assert term(Contents(input_itemsize=8), 10**7) == (8 + 16) * 10**7
        large = Extents((100, 100, 100), (120, 120, 120), (100, 100, 100))
        spectrum = 8 * 120 * 120 * 61
        assert term(Contents(2), 1000, large) == 2 * 4 * 10**6 + 5 * spectrum + 5 * 2**19

    def test_a_slab_is_a_plane_where_planes_are_large(self):
        block = Extents((20, 800, 900), (20, 800, 900), (8, 8, 8))
        spectrum = 8 * 20 * 800 * 451
        assert dict(worker_terms(Contents(), block))["FFT work, or that of the prior"] == spectrum + 5 * spectrum // 20

    def test_a_gpu_has_a_budget_of_its_own(self):
        """The larger of the two blocks that the host has room for does not fit the device."""
        request = simple(zyx_shape=(300,) * 3, block_shape=None, chunk_shape=(32,) * 3, budget_bytes=2**40)
        roomy = make_plan(with_resources(request, device_budget_bytes=2**40))
        tight = make_plan(with_resources(request, device_budget_bytes=2**26))
        assert roomy.peak_bytes_per_device > 2**26 >= tight.peak_bytes_per_device > 0
        assert make_plan(request).device_memory == ()
        with pytest.raises(BudgetError, match=r"needs .* GiB per GPU, but its budget is 0.00 GiB\.$"):
            make_plan(with_resources(request, device_budget_bytes=1000))

    def test_heaps_keep_so_much_of_large_arrays_and_no_more(self):
        cubes = [(n, 256, 256) for n in (64, 128, 256)]
        kept = [dict(worker_terms(Contents(), Extents(cube, cube, (8, 8, 8))))["kept in heaps"] for cube in cubes]
        assert kept == [32 * 64 * 256**2, 4 * HEAP_BYTES, 4 * HEAP_BYTES]

    @given(shape=triples(20, 48), blend=triples(1, 4), core=st.sampled_from([(8, 8, 8), (8, 12, 16)]))
    @settings(max_examples=12, deadline=None)
    def test_rims_that_wait(self, shape, blend, core):
        """Stated is at least what waits at any time when blocks are done one by one, and not much more."""
        plan = make_plan(simple(zyx_shape=shape, chunk_shape=core, block_shape=core, blend=blend))
        most = most_waiting_rim_bytes(plan)
        assert most <= plan.overlap_bytes
        if min(plan.grid.counts) >= 3:
            assert plan.overlap_bytes <= 3 * most

    def test_rims_of_large_blocks(self):
        plan = make_plan(simple(zyx_shape=(1000, 700, 512), chunk_shape=None, block_shape=(128,) * 3))
        most = most_waiting_rim_bytes(plan)
        assert most <= plan.overlap_bytes <= 1.5 * most

    def test_without_overlap_nothing_waits(self):
        assert make_plan(simple(blend=(0, 0, 0))).overlap_bytes == 0
        assert make_plan(simple(block_shape=(64, 64, 64))).overlap_bytes == 0

    @pytest.mark.parametrize("block_shape", [(64, 64, 64), None], ids=["given", "chosen"])
    def test_a_million_blocks_are_cheap(self, block_shape):
        request = PlanRequest((6400,) * 3, (33, 17, 17), (1.0, 1.0, 1.0), block_shape=block_shape)
        if block_shape is None:
            request = with_resources(request, timepoints=tuple(range(2000)), budget_bytes=6 * 2**30)
        rng = random.Random(0)
        tracemalloc.start()
        try:
            plan = make_plan(request)
            for _ in range(1000):
                plan.task(rng.randrange(plan.n_blocks))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert plan.n_blocks >= 1_000_000
        assert peak < 5_000_000


def most_waiting_rim_bytes(plan: Plan) -> int:
    """Do the blocks one by one: leave overlaps, then take in and drop those of the lower neighbours."""
    waiting: dict[tuple[int, tuple], int] = {}
    most = total = 0
    for task in plan.tasks():
        core, keep = task.core.shape, task.keep.shape
        for direction in DIRECTIONS:
            sides = (k - c if d else c for d, k, c in zip(direction, keep, core, strict=True))
            if size := math.prod(sides):
                waiting[task.index, direction] = 4 * size
                total += 4 * size
        most = max(most, total)
        for direction in DIRECTIONS:
            below = plan.neighbour(task, triple(-d for d in direction))
            total -= waiting.pop((below, direction), 0)
    assert not waiting
    return most


def falling(per_voxel):
    """An error of one half where the data end, that falls by a factor with every voxel."""
    curve = tuple(0.5 * per_voxel**d for d in range(40))
    return EdgeErrorProfile(curve, curve)


class TestSeams:
    """What a calibration hands on decides the halo, axis by axis."""

    def test_the_halo_is_what_the_tolerance_takes(self):
        request = simple(edge_profiles=(falling(0.5), falling(0.7), falling(0.9)), seam_tolerance=1e-2)
        plan = make_plan(request)
        assert plan.halo == tuple(
            seams.min_halo(d, b, 1e-2) for d, b in zip(request.edge_profiles, plan.blend, strict=True)
        )
        assert plan.halo[0] < plan.halo[1] < plan.halo[2]
        assert max(plan.seam_errors[:2]) <= 1e-2 / seams.SAFETY

    def test_a_smaller_tolerance_takes_more(self):
        edge_profiles = (falling(0.6),) * 3
        halos = [
            make_plan(simple(edge_profiles=edge_profiles, seam_tolerance=t)).halo[0] for t in (1e-1, 1e-2, 1e-3, 1e-4)
        ]
        assert halos == sorted(set(halos))

    @given(halo=triples(0, 9), blend=triples(0, 4), core=st.sampled_from([(16, 16, 16), (8, 24, 64)]))
    @settings(max_examples=40, deadline=None)
    def test_a_given_halo_is_kept_and_judged_by_what_the_windows_have(self, halo, blend, core):
        """Rounding to fast lengths gives some windows more than was asked for; at the volume's faces nothing is missing."""
        profile = falling(0.7)
        plan = make_plan(simple(halo=halo, blend=blend, block_shape=core, edge_profiles=(profile,) * 3))
        assert plan.halo == halo
        tasks = {t.position: t for t in plan.tasks()}
        for axis, error in enumerate(plan.seam_errors):
            column = [tasks[p] for p in sorted(tasks) if all(i == 0 for a, i in enumerate(p) if a != axis)]
            energies = []
            for lower, upper in pairwise(column):
                face = upper.core.start[axis]
                below = face - upper.read.start[axis] if upper.read.start[axis] else None
                above = lower.read.stop[axis] - face if lower.read.stop[axis] < 64 else None
                energies.append(seams.seam_error(profile, below, above, plan.blend[axis]) ** 2)
            assert error == pytest.approx(math.sqrt(np.mean(energies)) if energies else 0.0)

    def test_a_region_takes_what_crops_take(self):
        """At its own faces no ramp hides what the end of a window does."""
        edge_profiles = (falling(0.6),) * 3
        full, part = (
            make_plan(simple(edge_profiles=edge_profiles, blend=(4, 4, 4), roi=roi))
            for roi in (None, Box((0, 8, 0), (64, 56, 64)))
        )
        cropped = make_plan(simple(edge_profiles=edge_profiles, blend=(0, 0, 0)))
        assert part.halo == (full.halo[0], cropped.halo[1], full.halo[2])
        assert cropped.halo[1] > full.halo[1]

    def test_without_a_calibration_nothing_is_predicted(self):
        plan = make_plan(simple())
        assert plan.halo == (4, 4, 4)
        assert plan.predicted_seam_error is None
        whole = make_plan(simple(block_shape=(64, 64, 64)))
        assert whole.predicted_seam_error == 0

    def test_the_worst_axis_counts(self):
        plan = make_plan(simple(edge_profiles=(falling(0.5), falling(0.9), falling(0.5)), halo=(3, 3, 3)))
        assert plan.predicted_seam_error == plan.seam_errors[1] == max(plan.seam_errors)


class TestRefusals:
    def test_a_block_that_cuts_chunks(self):
        with pytest.raises(
            InvalidInputError, match=r"^block-shape: got 16,12,16 with chunks of 8,8,8; .* change --block-shape"
        ):
            make_plan(simple(block_shape=(16, 12, 16)))

    def test_a_block_without_voxels(self):
        with pytest.raises(InvalidInputError, match=r"^block-shape: got 0,16,16"):
            make_plan(simple(block_shape=(0, 16, 16)))

    def test_ramps_longer_than_a_core(self):
        with pytest.raises(
            InvalidInputError, match=r"^blend: got 4,9,4 for cores of 16,16,16; twice the blend must fit"
        ):
            make_plan(simple(blend=(4, 9, 4)))

    def test_an_axis_without_seams_has_no_ramps(self):
        plan = make_plan(simple(blend=(4, 99, 4), block_shape=(16, 64, 16)))
        assert plan.blend == (4, 0, 4)

    def test_a_wide_blend_makes_larger_blocks(self):
        """Blocks that the ramps do not fit in are passed over while there are others."""
        plan = make_plan(simple(zyx_shape=(400,) * 3, block_shape=None, chunk_shape=(64,) * 3, blend=(40,) * 3))
        assert all(n == 1 or c >= 2 * 40 for n, c in zip(plan.grid.counts, plan.core_shape, strict=True))

    @pytest.mark.parametrize(
        ("shards", "why"),
        [((12, 16, 16), "no multiple of the chunk"), ((16, 32, 16), "larger than the core"), ((16, 16, 24), "both")],
        ids=lambda v: v if isinstance(v, str) else "",
    )
    def test_shards_that_do_not_fit(self, shards, why):
        with pytest.raises(
            InvalidInputError, match=r"^shards: got .* for cores of 16,16,16 and chunks of 8,8,8; a shard must be"
        ):
            make_plan(simple(shard_shape=shards))

    def test_a_spanning_block_becomes_the_volume(self):
        plan = make_plan(simple(block_shape=(100, 16, 1000)))
        assert plan.core_shape == (64, 16, 64)
        assert Counter(t.position[1] for t in plan.tasks()) == {0: 1, 1: 1, 2: 1, 3: 1}


class TestBlockSequence:
    @given(st.lists(requests(), min_size=1, max_size=4))
    @settings(max_examples=30, deadline=None)
    def test_blocks_of_several_volumes_count_through(self, several):
        """Volume after volume, each block as in its own plan but for its index; no neighbour lies in another volume."""
        plans = tuple(plan for plan in map(plan_or_none, several) if plan is not None)
        assume(plans)
        series = BlockSequence(plans)
        expected = [(v, task) for v, plan in enumerate(plans) for task in plan.tasks()]
        assert series.n_blocks == len(expected)
        first = dict(zip(range(len(plans)), accumulate([p.n_blocks for p in plans], initial=0), strict=False))
        for index, (v, own) in enumerate(expected):
            task = series.task(index)
            assert task == replace(own, index=index, volume=v)
            for direction in DIRECTIONS:
                for sign in (1, -1):
                    step = triple(sign * d for d in direction)
                    neighbour = plans[v].neighbour(own, step)
                    shifted = None if neighbour is None else first[v] + neighbour
                    assert plans[v].neighbour(task, step) == shifted

    def test_ten_thousand_volumes_of_a_million_blocks_take_no_memory(self):
        plan = make_plan(simple(zyx_shape=(1600, 1600, 1600)))
        tracemalloc.start()
        series = BlockSequence((plan,) * 10_000)
        assert series.n_blocks == 10_000 * 10**6
        assert series.task(series.n_blocks - 1).volume == 9999
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2_000_000
