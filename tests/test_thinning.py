"""Thinning: independent halves, the same photons in every window, and losses that add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import xlogy

from bigdeconv.numerics import thinning
from bigdeconv.numerics.convolution import Blur
from bigdeconv.numerics.richardson_lucy import Problem, solve
from bigdeconv.numerics.thinning import Place, thin, uniform
from bigdeconv.psf import gaussian

SHAPE = (6, 16, 16)


class TestUniform:
    @given(
        start=st.tuples(*[st.integers(0, 50)] * 3), shape=st.tuples(*[st.integers(1, 6)] * 3), view=st.integers(0, 40)
    )
    def test_a_voxel_has_its_number_in_every_window(self, start, shape, view):
        whole = uniform((56, 56, 56), Place(3, 1), view)
        part = uniform(shape, Place(3, 1, start), view)
        np.testing.assert_array_equal(part, whole[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))])

    @pytest.mark.parametrize("other", [{"place": Place(1, 0)}, {"place": Place(0, 1)}, {"view": 1}, {"seed": 7}])
    def test_every_part_of_the_key_counts(self, other):
        first = uniform(SHAPE, Place())
        second = uniform(SHAPE, **{"place": Place(), **other})
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1
        assert not np.array_equal(first, second)

    def test_it_is_uniform_and_white(self):
        numbers = uniform((40, 60, 60), Place())
        assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
        for axis in range(3):
            ahead, behind = (np.take(numbers, range(a, numbers.shape[axis] - 1 + a), axis=axis) for a in (1, 0))
            assert abs(np.corrcoef(ahead.ravel(), behind.ravel())[0, 1]) < 0.01


class TestThin:
    @pytest.mark.parametrize("mean", [0.3, 5.0, 400.0, 30_000.0])
    @pytest.mark.parametrize("share", [0.5, 0.8])
    def test_both_parts_of_poisson_counts_are_independent_poisson_counts(self, mean, share):
        photons = np.random.default_rng(1).poisson(mean, (30, 40, 40)).astype(float)
        drawn = thin(photons, share, Place())
        rest = photons - drawn
        for part, expected in ((drawn, share * mean), (rest, (1 - share) * mean)):
            assert part.min() >= 0
            assert part.mean() == pytest.approx(expected, rel=0.02)
            assert part.var() == pytest.approx(expected, rel=0.05)
        assert abs(np.corrcoef(drawn.ravel(), rest.ravel())[0, 1]) < 0.02

    def test_no_photons_stay_none(self):
        assert not thin(np.zeros(SHAPE), 0.5, Place()).any()


def problem(weights=None):
    rng = np.random.default_rng(0)
    photons = rng.poisson(30 * rng.random(SHAPE) ** 4 + 2).astype(np.float64)
    return Problem(
        data=torch.tensor(photons / 30)[None],
        weights=weights,
        background=2 / 30,
        blur=Blur(torch.tensor(gaussian((0.8, 1, 1)), dtype=torch.float64)[None], SHAPE),
    )


class TestLosses:
    def test_the_loss_is_the_poisson_likelihood_of_the_unseen_photons(self):
        trial, _ = thinning.split(problem(), 30.0, Place())
        (tiles,) = thinning.losses(trial, [6])
        estimate = solve(trial.seen, 6)
        # The prediction needs the estimate beyond the data, which `solve` crops: done again from the state.
        state = thinning.init(trial.seen)
        for _ in range(6):
            thinning.step(trial.seen, state)
        np.testing.assert_allclose(state.x[trial.seen.blur.data_slices], estimate)
        expected = 15 * (trial.seen.blur.forward(state.x) + 2 / 30).numpy()
        unseen = 15 * trial.unseen.numpy()
        likelihood = (expected - xlogy(unseen, expected)).sum() + unseen.sum() * np.log(15)
        assert tiles.sum() == pytest.approx(likelihood, rel=1e-9)

    def test_both_parts_are_all_photons(self):
        first, second = thinning.split(problem(), 30.0, Place(), share=0.8)
        whole = 0.8 * first.seen.data + 0.2 * second.seen.data
        torch.testing.assert_close(whole, problem().data)
        torch.testing.assert_close(first.unseen, second.seen.data)

    def test_readouts_are_those_of_one_iteration(self):
        trial, _ = thinning.split(problem(), 30.0, Place())
        several = thinning.losses(trial, [1, 3, 5])
        for n, row in zip([1, 3, 5], several, strict=True):
            np.testing.assert_array_equal(thinning.losses(trial, [n])[0], row)

    def test_voxels_without_weight_add_nothing(self):
        weights = torch.ones(1, *SHAPE, dtype=torch.float64)
        weights[..., :8] = 0
        trial, _ = thinning.split(problem(weights), 30.0, Place())
        (tiles,) = thinning.losses(trial, [2])
        assert (tiles.reshape(1, 2, 2)[..., 0] == 0).all()
        assert (tiles.reshape(1, 2, 2)[..., 1] != 0).all()

    def test_excess_has_an_error_bar(self):
        rng = np.random.default_rng(0)
        spread = [thinning.excess(rng.normal(0.1, 1, 400), np.zeros(400)) for _ in range(300)]
        differences, errors = np.transpose(spread)
        assert np.std(differences) == pytest.approx(np.mean(errors), rel=0.15)
