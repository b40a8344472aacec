"""Boxes and grids against sets and tables of voxels."""

from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import Box, Grid, ceil_div, fast_length, round_up, triple
from tests.strategies import boxes, triples


def voxels(box):
    return set(product(*(range(a, b) for a, b in zip(box.start, box.stop, strict=True))))


class TestBox:
    @given(boxes())
    def test_shape_and_size_count_its_voxels(self, box):
        assert box.size == len(voxels(box)) == prod(box.shape)
        assert Box.of_shape(box.shape).size == box.size

    def test_of_an_inside_out_box_nothing_is_left(self):
        assert Box((0, 5, 0), (3, 2, 3)).shape == (3, 0, 3)
        assert Box((0, 5, 0), (3, 2, 3)).size == 0

    @given(boxes(), boxes())
    def test_intersection_is_that_of_the_sets(self, a, b):
        both = a.intersect(b)
        assert voxels(both) == voxels(a) & voxels(b)
        assert min(both.shape) >= 0
        assert all(s <= e for s, e in zip(both.start, both.stop, strict=True))

    @given(boxes(least=1), boxes(least=1))
    def test_contains_is_the_relation_of_the_sets(self, a, b):
        assert a.contains(b) == (voxels(b) <= voxels(a))

    @given(boxes(least=1), triples(0, 3), triples(0, 3))
    def test_growing_reaches_exactly_as_far_as_said(self, box, lower, upper):
        grown = box.grow(lower, upper)
        reach = product(*(range(-a, b + 1) for a, b in zip(lower, upper, strict=True)))
        expected = {
            triple(i + o for i, o in zip(voxel, offset, strict=True))
            for offset in reach
            for voxel in (box.start, triple(n - 1 for n in box.stop))
        }
        assert grown.start == tuple(min(v[a] for v in expected) for a in range(3))
        assert grown.stop == tuple(max(v[a] for v in expected) + 1 for a in range(3))
        assert box.grow(lower) == box.grow(lower, lower)
        assert box.grow(lower, upper).grow(triple(-n for n in lower), triple(-n for n in upper)) == box

    @given(boxes(), triples(-5, 5))
    def test_shifting_moves_every_voxel(self, box, offset):
        moved = {tuple(i + o for i, o in zip(v, offset, strict=True)) for v in voxels(box)}
        assert voxels(box.shift(offset)) == moved
        assert box.shift(offset).relative_to(offset) == box

    @given(boxes(low=-8, high=8, least=1), triples(1, 4))
    def test_coarsening_is_every_coarse_voxel_that_a_fine_one_falls_into(self, box, factors):
        fallen = {tuple(i // f for i, f in zip(v, factors, strict=True)) for v in voxels(box)}
        assert voxels(box.coarsen(factors)) == fallen

    @given(boxes(low=0, high=7))
    def test_slices_index_an_array(self, box):
        array = np.zeros((7, 7, 7), bool)
        array[box.slices] = True
        assert set(map(tuple, np.argwhere(array).tolist())) == voxels(box)


class TestGrid:
    @given(triples(1, 14), triples(1, 16))
    def test_cores_tile_the_volume_exactly_once(self, shape, core):
        grid = Grid(shape, core)
        count = np.zeros(shape, int)
        for position in grid.positions():
            count[grid.core(position).slices] += 1
        np.testing.assert_array_equal(count, 1)

    @given(triples(1, 14), triples(1, 16))
    def test_positions(self, shape, core):
        grid = Grid(shape, core)
        positions = list(grid.positions())
        assert positions == sorted(set(positions))
        assert len(positions) == len(grid) == prod(grid.counts)
        assert all(0 <= p < n for position in positions for p, n in zip(position, grid.counts, strict=True))

    @given(triples(1, 14), triples(1, 16))
    def test_only_the_last_core_on_an_axis_is_smaller(self, shape, core):
        grid = Grid(shape, core)
        for position in grid.positions():
            for p, n, got, full in zip(position, grid.counts, grid.core(position).shape, core, strict=True):
                assert 1 <= got <= full
                assert got == full or p == n - 1


class TestNumbers:
    @given(st.integers(-1000, 1000), st.integers(1, 50))
    def test_rounding_up(self, a, b):
        assert (ceil_div(a, b) - 1) * b < a <= ceil_div(a, b) * b
        assert round_up(a, b) == min(n for n in range(a, a + b) if n % b == 0)

    def test_fast_length_is_the_smallest_with_no_prime_above_five(self):
        def is_fast(n):
            for p in (2, 3, 5):
                while n % p == 0:
                    n //= p
            return n == 1

        expected = 4096
        for n in range(4096, 0, -1):
            expected = n if is_fast(n) else expected
            assert fast_length(n) == expected

    @pytest.mark.parametrize("values", [(), (1, 2), (1, 2, 3, 4)])
    def test_three_are_three(self, values):
        with pytest.raises(InvalidInputError, match=r"expected three integers z,y,x, got \("):
            triple(values)

    def test_three_of_anything_that_counts(self):
        assert triple(np.array([1, 2, 3])) == (1, 2, 3)
        assert all(type(v) is int for v in triple(np.array([1, 2, 3])))
