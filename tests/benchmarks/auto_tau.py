"""The automatic strength of the learned prior against the best one, over photon levels and numbers of views.

python -m tests.benchmarks.auto_tau [--model compact] [--views 1] [--seed 0]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from bigdeconv import deconvolve, intensity, models, psf, quality, simulation
from bigdeconv.deconvolution import Settings, choose_tau

SHAPE = (24, 64, 64)
VOXEL_ZYX_UM = (0.12, 0.04, 0.04)
PHOTONS = (2.5, 8, 30, 100)
FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="compact")
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = models.resolve(arguments.model)
    extent = [n * v for n, v in zip(SHAPE, VOXEL_ZYX_UM, strict=True)]
    specimen = simulation.tubes(
        arguments.seed, extent, count=(4, 6), outer_radius_um=(0.04, 0.2), sigma_um=0.06, fluorophores_per_um=4000.0
    )
    truth = simulation.sample(specimen, SHAPE, VOXEL_ZYX_UM, peak_one=True)
    kernels = psf.airyscan(voxel_zyx_um=VOXEL_ZYX_UM, na=1.4, n_views=arguments.views)
    for photons in PHOTONS:
        data = simulation.acquire(truth, kernels, photons=photons, background=1.0, seed=arguments.seed)
        everywhere = [np.ones(SHAPE, bool)] * arguments.views
        background = intensity.estimate_background(list(data), everywhere, [n // 2 for n in kernels.shape[1:]])
        scale = intensity.estimate_scale(list(data), everywhere, background)
        draft = Settings("garl", 50, 0.0, model.sigma_default, background, scale, VOXEL_ZYX_UM)
        tau = choose_tau([(data, None)], kernels, model, draft)
        settings = {"model": model, "background": background, "intensity_scale": scale}
        found = {f: quality.rsnr(deconvolve(data, kernels, tau=f * tau, **settings), truth) for f in FACTORS}
        row = "  ".join(f"{factor:g}: {value:.2f}" for factor, value in found.items())
        print(f"{photons:5g} photons, scale {scale:.1f}, background {background:.2f}  {row}", flush=True)
        print(f"      auto less best: {found[1.0] - max(found.values()):+.2f} dB", flush=True)


if __name__ == "__main__":
    main()
