"""Denoising quality of a model, measured with the prior as the solvers use it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from bigdeconv.numerics.metrics import psnr
from bigdeconv.numerics.priors.wcrr import Wcrr
from bigdeconv.training.denoiser import denoise

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from bigdeconv.numerics.priors.weights import WcrrWeights


def evaluate(
    model: WcrrWeights,
    sigmas: Sequence[float],
    volumes: Sequence[npt.ArrayLike],
    *,
    steps: Sequence[int] = (500,),
    tolerance: float = 0.0,
    margin: int = 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[float, dict[int, float]]:
    """Return the mean PSNR after each number of denoising steps, per noise level.

    Parameters
    ----------
    model : WcrrWeights
        Any model; its μ decides the step size.
    sigmas : sequence of float
        Noise levels in units of 1/255 of the maximum.
    volumes : sequence of array_like, ``z y x``
        Clean volumes, maximum 1.
    steps : sequence of int
        Numbers of steps after which to measure; 0 is the noisy volume.  With a model trained at its fixed point the PSNR does
        not fall with more steps.
    tolerance : float
        The iteration stops when a step changes the volume by no more than this fraction of its norm; later measurements then
        repeat the last one.
    margin : int
        Voxels at each face that are not measured.
    seed : int
        Seed of the noise.
    device : torch.device or str

    Returns
    -------
    dict
        PSNR in dB by noise level and number of steps, ``{sigma: {steps: dB}}``.
    """
    table = {}
    for sigma in sigmas:
        found = [
            _one(model, sigma, np.asarray(volume, np.float32), steps, tolerance, margin, [seed, i], device)
            for i, volume in enumerate(volumes)
        ]
        table[sigma] = {k: float(np.mean([row[k] for row in found])) for k in steps}
    return table


def _one(
    model: WcrrWeights,
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
    prior = Wcrr(model, sigma=sigma / 255, device=device)
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
        math.exp(model.log_mu),
        iterations=max(steps),
        tolerance=tolerance,
        seen=look,
    )
    final = quality(last)
    return {k: seen.get(k, final) for k in steps}
