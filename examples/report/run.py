"""Reproduce table 1 and figures 1, 2, 3, 6, 7 and 8 of the report on simulated data.

    python examples/report/run.py --seed 0 --output DIR [--small] [--table-only] [--model NAME|FILE]

Needs matplotlib (``pip install bigdeconv[plot]``).  Strengths are chosen on phantoms that are not reported, except that of
"GARL, auto", which its own measurements choose.

References
----------
Pham, "3D Deconvolution Microscopy with a Learned Regularizer" (2025).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import figures
import panels
import phantom
import reconstruct
import table
from reconstruct import Method

from bigdeconv import models


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of all parts; shapes are z y x voxels."""

    views: int
    reported: tuple[int, int, int]
    tuning: tuple[int, int, int]
    tuning_scenes: int
    convergence: tuple[int, int, int]
    convergence_iterations: int


FULL = Sizes(32, (32, 96, 96), (32, 96, 96), 1, (20, 40, 40), 100)
SMALL = Sizes(8, (16, 32, 32), (12, 24, 24), 1, (12, 24, 24), 10)


def reproduce(folder: Path, seed: int, sizes: Sizes, model: str, *, table_only: bool = False) -> None:
    """Write the table, then the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {what}", flush=True)

    methods = _tuned(seed, sizes, model, tell)
    scene = phantom.microtubules(seed, sizes.views, sizes.reported)
    automatic = reconstruct.automatic(scene, methods["GARL"])
    tabled = {**methods, automatic.name: automatic}
    estimates = _all_iterates(scene, tabled, tell, marks=(5, 10, *reconstruct.MARKS))
    _table(folder, seed, scene, tabled, estimates, model)
    tell(f"table 1: {folder / 'table1.md'}")
    if table_only:
        return
    figures.samples(folder / "figure1.png", [scene.truth, phantom.tubes(seed + 1, sizes.reported)])
    least = phantom.microtubules(seed, sizes.views, sizes.convergence)
    figures.convergence(folder / "figure2.png", least, methods["GARL"], sizes.convergence_iterations)
    figures.amplification(folder / "figure3.png", estimates["RL"], panels.interesting(scene.truth))
    _compare(folder / "figure6.png", scene, estimates, "Figure 6: simulated microtubules")
    tell("figures 1, 2, 3 and 6")
    for number, aperture in ((7, "wide"), (8, "narrow")):
        sample = phantom.calibration(seed, sizes.views, sizes.reported, aperture)
        found = _all_iterates(sample, methods, tell)
        _compare(folder / f"figure{number}.png", sample, found, f"Figure {number}: calibration sample, {aperture} PSF")


def _tuned(seed, sizes, model, tell) -> dict[str, Method]:
    seeds = [phantom.TUNING_SEED + seed + i for i in range(sizes.tuning_scenes)]
    scenes = [phantom.microtubules(s, sizes.views, sizes.tuning) for s in seeds]
    methods = {"RL": Method("RL")}
    for untuned in (Method("TV"), Method("GARL", model=models.resolve(model))):
        methods[untuned.name], trials = reconstruct.tune(untuned, scenes)
        for trial in trials:
            print(f"          {untuned.name}: {', '.join(f'{k} {v:.4g}' for k, v in trial.items())}")
        tell(f"{untuned.name} tuned")
    return methods


def _all_iterates(scene, methods, tell, marks=reconstruct.MARKS):
    found = {}
    for name, method in methods.items():
        found[name] = reconstruct.iterates(scene, method, marks)
        rsnr = ", ".join(f"{k}: {v:.2f}" for k, v in reconstruct.scores(scene, found[name]).items())
        tell(f"{name} RSNR in dB at {rsnr}")
    return found


def _table(folder, seed, scene, methods, estimates, model) -> None:
    scores = {name: reconstruct.scores(scene, found) for name, found in estimates.items()}
    rsnr_db = {name: {k: row[k] for k in reconstruct.MARKS} for name, row in scores.items()}
    result = {
        "seed": seed,
        "model": Path(model).name,
        "views": scene.psf.n_views,
        "zyx_shape": scene.truth.shape,
        "intensity_scale": scene.scale,
        "settings": {name: {"tau": m.strength / scene.scale, "sigma": m.sigma} for name, m in methods.items()},
        "rsnr_db": rsnr_db,
        "gain_db": table.gain_db(rsnr_db),
    }
    table.write(folder, result)


def _compare(path, scene, estimates, title) -> None:
    shown = {f"{name} {k}": k for name, k in (("RL", 20), ("RL", 50), ("TV", 50), ("GARL", 20), ("GARL", 50))}
    figures.comparison(path, scene, estimates, shown, title)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of the reported phantoms")
    parser.add_argument("--output", type=Path, required=True, help="folder for the table and the figures")
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--model", default=models.DEFAULT, help="name of a shipped model, or a model file")
    parser.add_argument("--table-only", action="store_true", help="no figures")
    given = parser.parse_args()
    reproduce(given.output, given.seed, SMALL if given.small else FULL, given.model, table_only=given.table_only)
