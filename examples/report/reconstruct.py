"""RL, TV and GARL on a scene: one pass with its iterates, and the choice of strengths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import torch
from phantom import VOXEL_ZYX_UM

from bigdeconv.calibration.choices import Window
from bigdeconv.calibration.numbers import chosen_tau
from bigdeconv.numerics import metrics
from bigdeconv.numerics.convolution import Blur
from bigdeconv.numerics.priors.tv import TotalVariation
from bigdeconv.numerics.priors.wcrr import Wcrr
from bigdeconv.numerics.restoration import MU_MAX, ResolvedSettings
from bigdeconv.numerics.richardson_lucy import Problem, init, step
from bigdeconv.numerics.strength import initial_tau
from bigdeconv.numerics.thinning import Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from phantom import Scene

    from bigdeconv.numerics.priors.weights import WcrrWeights

MARKS = (20, 30, 50)
"""Iterations that the report shows."""
TV_STRENGTHS = (1.0, 3.0, 10.0, 30.0)
GARL_KAPPAS = (2.4, 4.8)
GARL_SIGMAS = (0.4, 0.7, 1.0)
"""Trials for GARL, as multiples of the model's own: κ of `initial_tau`, which follows σ, and noise level."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method with its settings; they are given in units of the intensity scale."""

    name: str
    strength: float = 0.0
    """τ times the photons at the intensity scale, so that one number serves all exposures."""
    sigma: float = 0.0
    """Noise level of the learned prior."""
    model: WcrrWeights | None = None


def problem(scene: Scene, method: Method) -> Problem:
    """Return the problem that a method solves on a scene, in units of the intensity scale."""
    prior: TotalVariation | Wcrr | None = None
    if method.name == "TV":
        prior = TotalVariation(VOXEL_ZYX_UM)
    elif method.model is not None:
        prior = Wcrr(method.model, sigma=method.sigma, mu_max=MU_MAX)
    z, y, x = scene.truth.shape
    return Problem(
        data=torch.from_numpy(scene.photons) / scene.scale,
        weights=None,
        background=scene.levels.background / scene.scale,
        blur=Blur(torch.from_numpy(scene.psf.views), (z, y, x)),
        prior=prior,
        tau=method.strength / scene.scale,
    )


@torch.inference_mode()
def iterates(scene: Scene, method: Method, marks: Iterable[int] = MARKS) -> dict[int, np.ndarray]:
    """Return the estimates ``z y x`` of one pass after some numbers of iterations."""
    task = problem(scene, method)
    state = init(task)
    found = {}
    for k in range(1, max(marks) + 1):
        step(task, state)
        if k in marks:
            found[k] = state.x[task.blur.data_slices].numpy().copy()
    return found


def scores(scene: Scene, estimates: dict[int, np.ndarray]) -> dict[int, float]:
    """Return the regressed SNR of each estimate over the whole volume, in dB."""
    return {k: metrics.rsnr(estimate, scene.truth) for k, estimate in estimates.items()}


def tune(method: Method, scenes: Sequence[Scene]) -> tuple[Method, list[dict[str, float]]]:
    """Choose the settings of TV or GARL that are best on average over scenes whose truth may be seen.

    TV is judged by its best iteration, GARL by its last: it is meant to be left to converge.

    Returns
    -------
    Method, list
        The method with its settings, and one row per trial.
    """
    trials = []
    for trial in _trials(method):
        found = [scores(scene, iterates(scene, trial)) for scene in scenes]
        values = [max(s.values()) if method.model is None else s[MARKS[-1]] for s in found]
        trials.append((sum(values) / len(values), trial))
    rows = [{"sigma": t.sigma, "strength": t.strength, "rsnr_db": value} for value, t in trials]
    return max(trials, key=lambda pair: pair[0])[1], rows


def automatic(scene: Scene, method: Method) -> Method:
    """Return GARL with the default noise level of its model and the τ that data thinning chooses."""
    sigma = method.model.sigma_default
    settings = ResolvedSettings(method="garl", iterations=MARKS[-1], voxel_zyx_um=VOXEL_ZYX_UM, sigma=sigma)
    windows = [Window(scene.photons, None, Place())]
    tau = chosen_tau(settings, scene.levels, windows, scene.psf, method.model)
    return replace(method, name="GARL, auto", strength=tau * scene.scale, sigma=sigma)


def _trials(method: Method) -> list[Method]:
    if method.model is None:
        return [replace(method, strength=strength) for strength in TV_STRENGTHS]
    found = []
    for a, b in product(GARL_SIGMAS, GARL_KAPPAS):
        sigma = a * method.model.sigma_default
        found.append(replace(method, sigma=sigma, strength=initial_tau("garl", 1.0, sigma, b * method.model.kappa)))
    return found
