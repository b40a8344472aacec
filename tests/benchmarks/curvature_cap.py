"""RSNR of GARL against iterations for caps on μ and both updates, on simulated tubes at two photon levels, beside RL.

python -m tests.benchmarks.curvature_cap
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from bigdeconv import models, psf
from bigdeconv.numerics import metrics
from bigdeconv.numerics.convolution import Blur
from bigdeconv.numerics.priors.wcrr import Wcrr
from bigdeconv.numerics.richardson_lucy import Problem, init, step
from tests.benchmarks import scenes

if TYPE_CHECKING:
    import numpy as np

SHAPE = (24, 48, 48)
MARKS = (15, 30, 50)
SIGMA = 10 / 255
STRENGTHS = (10.0, 30.0)
"""τ times the photons at the intensity scale."""


def curve(problem: Problem, truth: np.ndarray) -> str:
    state, marks = init(problem), []
    with torch.inference_mode():
        for k in range(1, max(MARKS) + 1):
            step(problem, state)
            if k in MARKS:
                marks.append(metrics.rsnr(state.x[problem.blur.data_slices].numpy(), truth))
    return "  ".join(f"{m:5.2f}" for m in marks)


def compare(seed: int, photons: float) -> None:
    truth = scenes.tubes(SHAPE, seed, count=(6, 8), outer_radius_um=(0.05, 0.2))
    scene = scenes.image(truth, photons, seed, psf.gaussian((2.0, 1.5, 1.5)))
    weights = models.resolve("default")

    def problem(update: str, mu_max: float, strength: float) -> Problem:
        return Problem(
            data=torch.from_numpy(scene.photons / scene.scale)[None],
            weights=None,
            background=scenes.BACKGROUND / scene.scale,
            blur=Blur(torch.from_numpy(scene.psf.views), SHAPE),
            prior=Wcrr(weights, sigma=SIGMA, mu_max=mu_max),
            tau=strength / scene.scale,
            update=update,
        )

    print(f"\nseed {seed}, {photons:g} photons; dB at {MARKS} iterations")
    print(f"  RL                           {curve(problem('reference', 1.0, 0.0), truth)}")
    for strength in STRENGTHS:
        for update, mu_max in (("reference", math.inf), ("convergent", 1.0), ("convergent", 3.0), ("convergent", 10.0)):
            name = f"τN {strength:g}, {update}, μ ≤ {mu_max:g}"
            print(f"  {name:<28} {curve(problem(update, mu_max, strength), truth)}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in ((11, 10.0), (11, 100.0), (12, 10.0), (12, 100.0)):
        compare(*case)
