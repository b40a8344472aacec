"""How well a model denoises, measured through the prior as the solvers use it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from bigdeconv.priors.wcrr import Wcrr
from bigdeconv.quality import psnr
from bigdeconv.training.denoiser import denoise

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from bigdeconv.priors.weights import WcrrWeights


def evaluate(
    weights: WcrrWeights,
    sigmas: Sequence[float],
    volumes: Sequence[npt.ArrayLike],
    *,
    steps: Sequence[int] = (500,),
    tolerance: float = 0.0,
    margin: int = 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[float, dict[int, float]]:
    """Return the mean PSNR in dB after each number of denoising steps, per noise level.

    Parameters
    ----------
    weights
        Any model; its own μ decides the step.
    sigmas
        Noise levels in 1/255 of the volumes' maximum.
    volumes
        Clean volumes, ``z y x``, maximum 1.
    steps
        Numbers of steps at which to look; 0 is the noisy volume.  A model that was trained at its fixed point does not
        lose with more.
    tolerance
        Stop earlier where a step moves by no more than this share of the norm; the later numbers are then the last one.
    margin
        Voxels at each face that do not count.
    seed
        Of the noise.

    Returns
    -------
    dict
        ``{sigma: {steps: dB}}``.
    """
    table = {}
    for sigma in sigmas:
        found = [
            _one(weights, sigma, np.asarray(volume, np.float32), steps, tolerance, margin, [seed, i], device)
            for i, volume in enumerate(volumes)
        ]
        table[sigma] = {k: float(np.mean([row[k] for row in found])) for k in steps}
    return table


def _one(
    weights: WcrrWeights,
    sigma: float,
    clean: npt.NDArray[np.float32],
    steps: Sequence[int],
    tolerance: float,
    margin: int,
    seed: list[int],
    device: torch.device | str,
) -> dict[int, float]:
    noise = np.random.default_rng(seed).standard_normal(clean.shape, dtype=np.float32)
    noisy = torch.from_numpy(clean + noise * np.float32(sigma / 255)).to(device)[None]
    prior = Wcrr(weights, sigma=sigma / 255, device=device)
    inner = tuple(slice(margin, n - margin) for n in clean.shape)

    def quality(x: Tensor) -> float:
        return psnr(x[0].cpu().numpy()[inner], clean[inner])

    seen = {0: quality(noisy)}

    def look(k: int, x: Tensor) -> None:
        if k in steps:
            seen[k] = quality(x)

    last = denoise(
        noisy,
        lambda x: prior.gradient(x[0])[None],
        math.exp(weights.log_mu),
        iterations=max(steps),
        tolerance=tolerance,
        seen=look,
    )
    final = quality(last)
    return {k: seen.get(k, final) for k in steps}
