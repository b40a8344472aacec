"""The automatic τ of the learned prior against the best one, over photon levels and numbers of views.

python -m tests.benchmarks.auto_tau [--model compact] [--views 1] [--seed 0]
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np
import torch

from bigdeconv import PSF, deconvolve, models, psf, simulation
from bigdeconv.calibration.choices import Window
from bigdeconv.calibration.numbers import UserOverrides, chosen_tau, signal_levels
from bigdeconv.numerics import metrics
from bigdeconv.numerics.camera import Camera
from bigdeconv.numerics.restoration import ResolvedSettings
from bigdeconv.numerics.thinning import Place

if TYPE_CHECKING:
    from bigdeconv.numerics.priors.weights import WcrrWeights

SHAPE = (24, 64, 64)
VOXEL_ZYX_UM = (0.12, 0.04, 0.04)
PHOTONS = (2.5, 8, 30, 100)
FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def compare(photons: float, truth: np.ndarray, prepared: PSF, model: WcrrWeights, seed: int) -> None:
    """Print the RSNR of multiples of the automatic τ at one photon level."""
    data = simulation.acquire(truth, prepared.views, photons=photons, background=1.0, seed=seed)
    valid = np.ones(SHAPE, bool)
    levels = signal_levels(lambda: ((view, valid) for view in data), prepared, Camera(), UserOverrides())
    settings = ResolvedSettings(method="garl", iterations=50, voxel_zyx_um=VOXEL_ZYX_UM, sigma=model.sigma_default)
    tau = chosen_tau(settings, levels, [Window(data, None, Place())], prepared, model)
    given = {
        "model": model,
        "iterations": 50,
        "background": levels.background,
        "intensity_scale": levels.intensity_scale,
    }
    found = {f: metrics.rsnr(deconvolve(data, prepared, tau=f * tau, **given), truth) for f in FACTORS}
    row = "  ".join(f"{factor:g}: {value:.2f}" for factor, value in found.items())
    print(f"{photons:5g} photons, scale {levels.intensity_scale:.1f}, background {levels.background:.2f}  {row}")
    print(f"      auto less best: {found[1.0] - max(found.values()):+.2f} dB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="compact")
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    extent = [n * v for n, v in zip(SHAPE, VOXEL_ZYX_UM, strict=True)]
    specimen = simulation.tubes(
        arguments.seed, extent, count=(4, 6), outer_radius_um=(0.04, 0.2), sigma_um=0.06, fluorophores_per_um=4000.0
    )
    truth = simulation.sample(specimen, SHAPE, VOXEL_ZYX_UM, peak_one=True)
    prepared = PSF(psf.airyscan(voxel_zyx_um=VOXEL_ZYX_UM, na=1.4, n_views=arguments.views), VOXEL_ZYX_UM)
    for photons in PHOTONS:
        compare(photons, truth, prepared, models.resolve(arguments.model), arguments.seed)


if __name__ == "__main__":
    main()
