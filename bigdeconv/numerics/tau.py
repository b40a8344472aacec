"""Selection of τ by data thinning: split the photons into halves at random, restore one half, predict the other.

Binomial thinning turns a Poisson count into two independent Poisson counts.  An estimate from one half repeats its noise where
the prior is too weak, and misses structure where it is too strong; either predicts the other half worse.  No truth is needed.

References
----------
Neufeld, Dharamshi, Gao, Witten, "Data thinning for convolution-closed distributions", J. Mach. Learn. Res. 25 (2024).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.ndimage import uniform_filter

from bigdeconv.numerics.richardson_lucy import FLOOR, init, step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bigdeconv.geometry import Triple
    from bigdeconv.numerics.richardson_lucy import Problem

KAPPA_TV = 0.3
"""κ of TV, see `initial_tau`."""
FACTOR = 3.0
"""Ratio of consecutive candidates for τ."""
MAX_STEPS = 4
"""Largest number of such ratios between the initial τ and a candidate."""
SEED = 20250210
WINDOW_VOXELS = 2**16
"""Voxels of a window on which candidates are tried, all views together."""
MIN_EDGE = 32
"""Smallest edge of that window, in voxels."""


def choose(problems: Sequence[Problem], photons: float, iterations: int) -> float:
    """Return the τ with which each half of the photons best predicts the other half.

    Parameters
    ----------
    problems : sequence of Problem
        Data windows with the same prior and the same initial ``tau`` above 0.
    photons : float
        Photons at a data value of 1.
    iterations : int
        Iterations of the restoration that τ is for.

    Returns
    -------
    float
        τ for all photons: the vertex of a parabola in log τ through the best candidate and its neighbours.
    """
    halves = [half for problem in problems for half in _split(problem, photons)]
    losses: dict[int, float] = {}

    def loss(k: int) -> float:
        if k not in losses:
            losses[k] = sum(_loss(*half, FACTOR**k, iterations) for half in halves)
        return losses[k]

    k = 0
    upwards = loss(1) < loss(0)
    while abs(k) < MAX_STEPS and loss(k + 1 if upwards else k - 1) < loss(k):
        k += 1 if upwards else -1
    # Three digits: more than the data tell, and no rounding of sums shows in them.
    return float(f"{problems[0].tau * FACTOR ** (k + _vertex(losses, k)):.3g}")


def window_of(photons: np.ndarray) -> tuple[slice, ...]:
    """Return the slices ``z y x`` of the window of `WINDOW_VOXELS` with the brightest mean over the views ``v z y x``."""
    mean = np.nan_to_num(photons).mean(axis=0)
    shape = _window_shape(mean.shape, len(photons))
    # The mean over a window, at the window's first voxel; those that would reach out of the volume do not count.
    sums = uniform_filter(mean, shape, mode="constant", origin=[-(n // 2) for n in shape])
    inside = sums[tuple(slice(0, n - w + 1) for n, w in zip(mean.shape, shape, strict=True))]
    start = np.unravel_index(int(inside.argmax()), inside.shape)
    return tuple(slice(int(a), int(a) + n) for a, n in zip(start, shape, strict=True))


def _window_shape(zyx_shape: Sequence[int], n_views: int) -> Triple:
    edge = max(round((WINDOW_VOXELS / n_views) ** (1 / 3)), MIN_EDGE)
    z, y, x = (min(edge, n) for n in zyx_shape)
    return z, y, x


def _split(problem: Problem, photons: float) -> list[tuple[Problem, torch.Tensor]]:
    """Thin the photons; return, for each half, its problem and the data of the other half."""
    counts = (problem.data.double() * photons).round().cpu().numpy().astype(np.int64)
    heads = np.random.default_rng(SEED).binomial(counts, 0.5)
    # Twice a half of the photons shows the same x as all of them.
    first, second = (problem.data.new_tensor(half * (2 / photons)) for half in (heads, counts - heads))
    return [(replace(problem, data=first), second), (replace(problem, data=second), first)]


def _loss(seen: Problem, unseen: torch.Tensor, factor: float, iterations: int) -> float:
    """Return the I-divergence, up to a constant, of the unseen half from the prediction of the seen half."""
    # The noise of n photons per voxel is 1/√n of them, and where a prior grows like a modulus the best τ goes with the noise.
    trial = replace(seen, tau=math.sqrt(2) * factor * seen.tau)
    with torch.inference_mode():
        state = init(trial)
        for _ in range(iterations):
            step(trial, state)
        expected = trial.blur.forward(state.x).add_(trial.background).clamp_(min=FLOOR)
        terms = expected - torch.xlogy(unseen, expected)
        if trial.weights is not None:
            terms *= trial.weights
        if math.isfinite(trial.saturation):
            terms *= unseen < trial.saturation
        return float(terms.sum(dtype=torch.float64))


def _vertex(losses: dict[int, float], k: int) -> float:
    """Return where a parabola through a minimum and its neighbours has its vertex, from -0.5 to 0.5."""
    if k - 1 not in losses or k + 1 not in losses:
        return 0.0
    below, least, above = (losses[i] for i in (k - 1, k, k + 1))
    bend = below - 2 * least + above
    return (below - above) / (2 * bend) if bend > 0 else 0.0


def initial_tau(method: str, photons: float, sigma: float, kappa: float) -> float:
    """Return the initial τ: ``κ/(N σ²)`` for the learned prior, ``κ_TV/N`` for TV, 0 for RL.

    Parameters
    ----------
    method : str
    photons : float
        N, photons per view at the intensity scale.
    sigma : float
        Noise level of the learned prior, as a fraction of the intensity scale.
    kappa : float
        κ of the learned prior's model.

    Examples
    --------
    >>> initial_tau("garl", photons=100.0, sigma=0.02, kappa=0.004)
    0.1
    """
    if method == "rl":
        return 0.0
    return (KAPPA_TV if method == "rltv" else kappa / sigma**2) / photons
