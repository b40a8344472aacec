"""Held-out likelihood by binomial thinning: restore one half of the photons, predict the other half.

Binomial thinning turns a Poisson count into two independent Poisson counts.  An estimate from one half repeats its noise where
it is too free, and misses structure where it is too stiff; either predicts the other half worse.  No truth is needed.

References
----------
Neufeld, Dharamshi, Gao, Witten, "Data thinning for convolution-closed distributions", J. Mach. Learn. Res. 25 (2024);
Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11 (2011), for generators that count; Steele, Lea,
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, for the mixing function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy import stats

from bigdeconv.numerics.richardson_lucy import FLOOR, init, step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from bigdeconv.geometry import Triple
    from bigdeconv.numerics.richardson_lucy import Problem

SEED = 20250210
TILE_EDGE = 8
"""Edge in voxels of the tiles over which losses are summed: wider than the noise, and enough of them for an error bar."""


class Place(NamedTuple):
    """Place of a window in its job: the photons of a voxel are split alike in every window that holds it."""

    timepoint: int = 0
    channel: int = 0
    start_zyx: Triple = (0, 0, 0)
    """First voxel of the window in the volume."""


def uniform(zyx_shape: Sequence[int], place: Place, view: int = 0, *, seed: int = SEED) -> np.ndarray:
    """Return one number in [0, 1) per voxel, a function of seed, time point, channel, view and position alone.

    Parameters
    ----------
    zyx_shape : sequence of int
        Shape of the window.
    place : Place
    view : int
    seed : int

    Returns
    -------
    ndarray, ``z y x``
        float64.

    Examples
    --------
    Windows that overlap draw the same numbers:

    >>> whole = uniform((2, 3, 4), Place())
    >>> part = uniform((1, 2, 2), Place(start_zyx=(1, 1, 2)))
    >>> bool((whole[1:, 1:, 2:] == part).all())
    True
    """
    with np.errstate(over="ignore"):
        bits = np.full((1, 1, 1), seed, np.uint64)
        for number in (place.timepoint, place.channel, view):
            bits = _mixed(bits ^ np.uint64(number))
        for axis, (start, n) in enumerate(zip(place.start_zyx, zyx_shape, strict=True)):
            along = [1, 1, 1]
            along[axis] = n
            bits = _mixed(bits ^ np.arange(start, start + n, dtype=np.uint64).reshape(along))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(bits: np.ndarray) -> np.ndarray:
    """Return 64 bits that depend on all 64 bits given; SplitMix64 (Steele et al. 2014)."""
    mixed = bits + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def thin(photons: np.ndarray, share: float, place: Place, view: int = 0, *, seed: int = SEED) -> np.ndarray:
    """Draw each photon with a probability.

    Parameters
    ----------
    photons : ndarray, ``z y x``
        Photons of one view, 0 or more; rounded to whole ones.
    share : float
        Probability, between 0 and 1.
    place : Place
    view : int
    seed : int

    Returns
    -------
    ndarray, ``z y x``
        Photons drawn, float64; the others are the rest of the rounded photons.

    Examples
    --------
    >>> drawn = thin(np.full((4, 8, 8), 10.0), 0.5, Place())
    >>> bool((drawn >= 0).all() and (drawn <= 10).all()), round(drawn.mean())
    (True, 5)
    """
    drawn: np.ndarray = stats.binom.ppf(
        uniform(photons.shape, place, view, seed=seed), np.rint(photons).astype(np.float64), share
    )
    # The quantile at 0 is -1 by scipy's convention.
    return np.asarray(np.maximum(drawn, 0.0))


@dataclass(frozen=True, slots=True)
class Trial:
    """One half of the photons to restore, and the other half to predict."""

    seen: Problem
    unseen: Tensor
    """Data of the other half, in units of the intensity scale of all photons, ``v z y x``."""
    nats: float
    """Photons of the unseen half at a data value of 1: turns a mean loss into nats."""


def split(problem: Problem, photons: float, place: Place, *, share: float = 0.5) -> tuple[Trial, Trial]:
    """Split the photons of a data window; either part is seen once.

    Parameters
    ----------
    problem : Problem
    photons : float
        Photons at a data value of 1.
    place : Place
        Place of the window in the volume.
    share : float
        Share of the photons that is seen first.

    Returns
    -------
    tuple of Trial
        Both show the same estimate as all photons do.
    """
    views = (problem.data.double() * photons).cpu().numpy()
    drawn = np.stack([thin(view, share, place, v) for v, view in enumerate(views)])
    rest = np.rint(views) - drawn
    first = problem.data.new_tensor(drawn / (share * photons))
    second = problem.data.new_tensor(rest / ((1 - share) * photons))
    return (
        Trial(replace(problem, data=first), second, (1 - share) * photons),
        Trial(replace(problem, data=second), first, share * photons),
    )


def losses(trial: Trial, readouts: Sequence[int]) -> np.ndarray:
    """Return the loss of the unseen photons after each number of iterations on the seen ones, tile by tile.

    Parameters
    ----------
    trial : Trial
    readouts : sequence of int
        Numbers of iterations, rising.

    Returns
    -------
    ndarray, ``readout tile``
        Nats, up to constants that depend on the unseen photons alone; the sum over the tiles is the loss of the window.
    """
    found, done = [], 0
    with torch.inference_mode():
        state = init(trial.seen)
        for readout in readouts:
            for _ in range(readout - done):
                step(trial.seen, state)
            done = readout
            found.append(_tile_sums(loss_map(trial, state.x).sum(dim=0, dtype=torch.float64)))
    return np.array(found)


def _tile_sums(values: Tensor) -> np.ndarray:
    """Return the sums over cubes of `TILE_EDGE` voxels, the last ones smaller."""
    sums = values.cpu().numpy()
    for axis, n in enumerate(sums.shape):
        sums = np.add.reduceat(sums, range(0, n, TILE_EDGE), axis=axis)
    return np.asarray(sums.ravel())


def excess(tiles: np.ndarray, best: np.ndarray) -> tuple[float, float]:
    """Return how much larger one loss is than another, and the standard error of that, from their tiles.

    Parameters
    ----------
    tiles, best : ndarray, ``tile``
        Losses of the same tiles.

    Returns
    -------
    difference, standard_error : float
        Nats.

    Examples
    --------
    >>> excess(np.array([2.0, 3.0, 4.0, 3.0]), np.array([1.0, 2.0, 3.0, 2.0]))
    (4.0, 0.0)
    """
    differences = tiles - best
    return float(differences.sum()), float(differences.std() * math.sqrt(differences.size))


def loss_map(trial: Trial, x: Tensor) -> Tensor:
    """Return the I-divergence of the unseen photons from the prediction of an estimate, per voxel and up to a constant.

    Parameters
    ----------
    trial : Trial
    x : Tensor, ``z y x``
        Estimate on the estimate window.

    Returns
    -------
    Tensor, ``v z y x``
        Nats; 0 where there are no data.
    """
    problem = trial.seen
    expected = problem.blur.forward(x).add_(problem.background).clamp_(min=FLOOR)
    terms = expected - torch.xlogy(trial.unseen, expected)
    if problem.weights is not None:
        terms *= problem.weights
    if math.isfinite(problem.saturation):
        terms *= trial.unseen < problem.saturation
    return terms.mul_(trial.nats)
