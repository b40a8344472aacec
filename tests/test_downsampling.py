"""Means of cells against exact sums of Python integers and against float64."""

from fractions import Fraction
from itertools import product
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigdeconv.geometry import Box, triple
from bigdeconv.numerics.downsampling import downsample
from bigdeconv.planning.planner import PlanRequest, make_plan

STEPS = list(product((1, 2), repeat=3))
SHAPES = [(4, 6, 2), (5, 3, 7), (1, 1, 1), (1, 5, 4), (3, 1, 2)]
DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32"]


def cells(fine, step):
    """Each coarse index with the voxels of its cell."""
    shape = [-(-n // s) for n, s in zip(fine.shape, step, strict=True)]
    for index in product(*(range(n) for n in shape)):
        yield index, fine[tuple(slice(i * s, i * s + s) for i, s in zip(index, step, strict=True))]


def exact_mean(cell):
    return Fraction(sum(int(v) for v in cell.ravel()), cell.size)


@pytest.mark.parametrize("dtype", DTYPES)
@given(step=st.sampled_from(STEPS), shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**31))
@settings(max_examples=12, deadline=None)
def test_integers_are_rounded_exactly(dtype, step, shape, seed):
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(seed)
    fine = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    extremes = rng.random(shape) < 0.3
    fine[extremes] = rng.choice(np.array([limits.min, limits.max], dtype), extremes.sum())
    coarse = downsample(fine, step)
    assert coarse.dtype == fine.dtype
    expected = np.empty(coarse.shape, object)
    for index, cell in cells(fine, step):
        expected[index] = floor(exact_mean(cell) + Fraction(1, 2))
    np.testing.assert_array_equal(coarse.astype(object), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_extremes_stay(dtype, shape):
    for value in (np.iinfo(dtype).max, np.iinfo(dtype).min):
        assert (downsample(np.full(shape, value, dtype), (2, 2, 2)) == value).all()


@pytest.mark.parametrize(
    ("pair", "mean"),
    [((0, 1), 1), ((1, 2), 2), ((-1, 0), 0), ((-2, -1), -1), ((65534, 65535), 65535), ((-(2**31), 2**31 - 1), 0)],
)
def test_ties_go_up(pair, mean):
    for axis in range(3):
        fine = np.array(pair, np.int32).reshape([2 if a == axis else 1 for a in range(3)])
        step = triple(2 if a == axis else 1 for a in range(3))
        assert downsample(fine, step).item() == mean
        # One long axis that is not halved: nothing is averaged.
        assert (downsample(fine, triple(3 - s for s in step)) == fine).all()


def test_an_odd_upper_face_is_the_mean_of_what_is_there():
    fine = np.array([10, 20, 31], np.uint16).reshape(1, 1, 3)
    np.testing.assert_array_equal(downsample(fine, (1, 1, 2)).ravel(), [15, 31])
    corner = np.zeros((3, 3, 3), np.uint16)
    corner[2, 2, 2] = 1000
    assert downsample(corner, (2, 2, 2))[1, 1, 1] == 1000


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_floats(dtype, step, shape):
    fine = (np.random.default_rng(0).normal(size=shape) * 10.0 ** np.arange(shape[2])).astype(dtype)
    coarse = downsample(fine, step)
    assert coarse.dtype == dtype
    for index, cell in cells(fine, step):
        wide = cell.astype(np.float64)
        # Float32 means are those of float64, rounded once.
        tolerance = 0 if dtype == "float32" else 8 * np.finfo(np.float64).eps * abs(wide).max()
        assert float(coarse[index]) == pytest.approx(float(np.asarray(wide.mean(), dtype)), rel=6.1e-8, abs=tolerance)


def test_large_float32_do_not_overflow():
    fine = np.full((2, 2, 2), np.finfo(np.float32).max, np.float32)
    assert downsample(fine, (2, 2, 2)).item() == np.finfo(np.float32).max


def test_the_input_is_left_alone():
    for dtype in ("int64", "float64", "uint16"):
        fine = np.arange(27, dtype=dtype).reshape(3, 3, 3)
        kept = fine.copy()
        downsample(fine, (2, 2, 2))
        np.testing.assert_array_equal(fine, kept)


@pytest.mark.parametrize("shape", [(32, 32, 32), (37, 21, 50)])
def test_levels_made_core_by_core_are_those_of_the_whole(shape):
    """The part of a coarser level that a task writes is that of the level of the whole volume, with the same rounding."""
    plan = make_plan(PlanRequest(shape, (3, 3, 3), (2, 1, 1), block_shape=(16,) * 3, chunk_shape=(4,) * 3, n_levels=4))
    volume = np.random.default_rng(1).integers(0, 65535, shape, np.uint16)
    wholes = [volume]
    for fine, coarse in zip(plan.levels, plan.levels[1:], strict=False):
        wholes.append(downsample(wholes[-1], triple(c // f for c, f in zip(coarse.factors, fine.factors, strict=True))))
    assert [w.shape for w in wholes] == [level.shape for level in plan.levels]
    assert sum(level.in_task for level in plan.levels) >= 2
    for task in plan.tasks():
        stored = volume[task.core.slices]
        for n, level in enumerate(plan.levels[1:], 1):
            if not level.in_task:
                break
            finer = plan.levels[n - 1].factors
            stored = downsample(stored, triple(c // f for c, f in zip(level.factors, finer, strict=True)))
            box: Box = task.core.coarsen(level.factors)
            np.testing.assert_array_equal(stored, wholes[n][box.slices])
