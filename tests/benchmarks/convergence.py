"""Comparison of the convergent update with the reference: five phantoms, a tenth of the initial τ, the same, and ten times it.

For each: the highest rise of the objective without momentum, and with it the highest and the longest; the iteration at which
the convergent update reaches the objective of the reference after 50, with the same cap on μ; the difference between float32 and
float64; and the RSNR of both after 20, 50 and 100, of the reference also with the model's own μ.  Heights are fractions of the
gain of 50 iterations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigdeconv import models
from bigdeconv.geometry import triple
from bigdeconv.models.pyxudeconv import import_pyxudeconv
from bigdeconv.numerics import metrics
from bigdeconv.numerics.convolution import Blur
from bigdeconv.numerics.priors.tv import TotalVariation
from bigdeconv.numerics.priors.wcrr import Wcrr
from bigdeconv.numerics.restoration import MU_MAX
from bigdeconv.numerics.richardson_lucy import Problem, init, objective, step
from bigdeconv.numerics.strength import initial_tau
from tests.benchmarks import scenes
from tests.benchmarks.measure import once

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bigdeconv.numerics.priors.weights import WcrrWeights
    from tests.benchmarks.scenes import Scene

ITERATIONS = 50
MAX_ITERATIONS = 100
"""Iterations after which the search for the reference's objective ends."""
STRENGTHS = (0.1, 1.0, 10.0)
MARKS = (20, 50, 100)
"""Iterations at which the RSNR is compared with the reference's."""
AT_ITERATIONS = MARKS.index(ITERATIONS)
PHOTONS = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    prior: str
    phantom: str
    strength: float
    """τ over the initial one (`initial_tau`)."""
    rise_without_momentum: float
    rise: float
    longest_rise: int
    """Iterations in a row."""
    level_with_reference: int | None
    """Iteration at which the reference's objective after 50 is reached."""
    float32_apart: float
    """Relative difference to float64 after 50 iterations."""
    rsnr_db: tuple[float, ...]
    """After each of `MARKS`."""
    rsnr_reference_db: tuple[float, ...]
    """Of the reference with the same μ."""
    rsnr_own_mu_db: float
    """Of the reference with the model's own μ, after 50."""


def load(name_or_folder: str) -> WcrrWeights:
    """Return a shipped model, a model file, or a folder of pyxudeconv, as weights."""
    return import_pyxudeconv(name_or_folder) if Path(name_or_folder).is_dir() else models.resolve(name_or_folder)


def table(
    priors: Sequence[str],
    shape: tuple[int, int, int],
    *,
    phantoms: Sequence[str] = tuple(scenes.PHANTOMS),
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 1,
) -> Iterator[Row]:
    """Yield the rows: a prior is ``tv``, a model's name, a model file, or a folder of pyxudeconv."""
    for prior in priors:
        model = None if prior == "tv" else load(prior)
        for phantom in phantoms:
            scene = scenes.image(scenes.PHANTOMS[phantom](shape, seed), PHOTONS, seed)
            for strength in strengths:
                yield row(Path(prior).stem, phantom, strength, scene, model)


def curves(prior: str, shape: tuple[int, int, int], marks: Sequence[int], *, seed: int = 1) -> dict[str, Any]:
    """Return the objective against iterations and CPU-seconds for three updates, and the least that any reached."""
    model = None if prior == "tv" else load(prior)
    scene = scenes.image(scenes.tubes(shape, seed), PHOTONS, seed)
    p = problem(scene, model, 1.0, dtype=torch.float32)
    ways = {
        "convergent": p,
        "without momentum": replace(p, momentum=False),
        "reference": replace(p, update="reference"),
    }
    found = {name: _curve(way, marks) for name, way in ways.items()}
    return {"prior": Path(prior).stem, "least": min(c["objective"] for curve in found.values() for c in curve), **found}


def _curve(p: Problem, marks: Sequence[int]) -> list[dict[str, float]]:
    state = init(p)
    points, seconds = [{"iterations": 0, "cpu_seconds": 0.0, "objective": objective(p, state.x)}], 0.0
    for k in range(1, max(marks) + 1):
        seconds += once(lambda: step(p, state)).cpu_seconds
        if k in marks:
            points.append({"iterations": k, "cpu_seconds": seconds, "objective": objective(p, state.x)})
    return points


def problem(
    scene: Scene, model: WcrrWeights | None, strength: float, *, mu_max: float = MU_MAX, dtype: torch.dtype
) -> Problem:
    """Return a problem at a strength over the initial τ; without a model the prior is TV."""
    if model is None:
        tau, prior = initial_tau("rltv", scene.scale, 0, 0), TotalVariation(scenes.VOXEL_ZYX_UM)
    else:
        tau = initial_tau("garl", scene.scale, model.sigma_default, model.kappa)
        prior = Wcrr(model, sigma=model.sigma_default, dtype=dtype, mu_max=mu_max)
    return Problem(
        data=torch.tensor(scene.photons / scene.scale, dtype=dtype)[None],
        weights=None,
        background=scenes.BACKGROUND / scene.scale,
        blur=Blur(torch.tensor(scene.psf.views, dtype=dtype), triple(scene.photons.shape)),
        prior=prior,
        tau=strength * tau,
    )


def objectives(p: Problem, iterations: int) -> np.ndarray:
    """Return the objective before and after each iteration."""
    state = init(p)
    values = [objective(p, state.x)]
    for _ in range(iterations):
        step(p, state)
        values.append(objective(p, state.x))
    return np.array(values)


def estimates(p: Problem, marks: Sequence[int]) -> dict[int, torch.Tensor]:
    """Return the estimates after numbers of iterations, on the data window."""
    state, found = init(p), {}
    for k in range(1, max(marks) + 1):
        step(p, state)
        if k in marks:
            found[k] = state.x[p.blur.data_slices].clone()
    return found


def row(name: str, phantom: str, strength: float, scene: Scene, model: WcrrWeights | None) -> Row:
    """Return one line of the table."""
    p = problem(scene, model, strength, dtype=torch.float64)
    plain = objectives(replace(p, momentum=False), ITERATIONS)
    reference = objectives(replace(p, update="reference"), ITERATIONS)
    theirs = estimates(replace(p, update="reference"), MARKS)
    fast = objectives(p, MAX_ITERATIONS)
    each = estimates(p, MARKS)
    ours = each[ITERATIONS]
    single = estimates(problem(scene, model, strength, dtype=torch.float32), [ITERATIONS])[ITERATIONS].double()
    own_mu = replace(problem(scene, model, strength, mu_max=math.inf, dtype=torch.float64), update="reference")
    gain = fast[0] - fast[: ITERATIONS + 1].min()
    rises = np.diff(fast) > 1e-12 * gain
    level = np.flatnonzero(fast <= reference[-1])
    return Row(
        prior=name,
        phantom=phantom,
        strength=strength,
        rise_without_momentum=float(max(np.diff(plain).max(), 0) / gain),
        rise=highest_rise(fast) / float(gain),
        longest_rise=max((len(run) for run in "".join("+" if r else " " for r in rises).split()), default=0),
        level_with_reference=int(level[0]) if len(level) else None,
        float32_apart=float(torch.linalg.vector_norm(single - ours) / torch.linalg.vector_norm(ours)),
        rsnr_db=tuple(metrics.rsnr(each[k].numpy(), scene.truth) for k in MARKS),
        rsnr_reference_db=tuple(metrics.rsnr(theirs[k].numpy(), scene.truth) for k in MARKS),
        rsnr_own_mu_db=metrics.rsnr(estimates(own_mu, [ITERATIONS])[ITERATIONS].numpy(), scene.truth),
    )


def highest_rise(values: np.ndarray) -> float:
    """Return the largest climb of a curve above the lowest point before it."""
    return float((values - np.minimum.accumulate(values)).max())
