"""Defaults on objects of many kinds against Richardson-Lucy and TV that the truth stops: everything automatic.

python -m tests.benchmarks.objects OUT.jsonl [--real FOLDER] [--kinds nuclei,tubes] [--seeds 0,1,2] [--photons 100]
    [--psfs narrow,wide] [--misfits none,wide,narrow,counts] [--shape 20,48,48] [--table]

Rows that OUT has are not computed again.  FOLDER holds real volumes as truths: ``stardist/img3d.tif``,
``bigstream_easifish/fix_lowres_z20-116.tif``, ``sdeconv/pollen.tif``.  Objects go on beyond the data: blurred, then cropped.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
import torch
from scipy import ndimage, signal

from bigdeconv import PSF, deconvolve, simulation
from bigdeconv.geometry import Box
from bigdeconv.numerics import metrics
from bigdeconv.numerics.restoration import ResolvedSettings, make_prior, make_problem
from bigdeconv.numerics.richardson_lucy import init, step
from bigdeconv.numerics.strength import initial_tau
from bigdeconv.psf import gaussian, scaled

if TYPE_CHECKING:
    from collections.abc import Sequence

VOXEL_ZYX_UM = (0.23, 0.1, 0.1)
BACKGROUND_SHARE = 0.1
READOUTS = (5, 10, 15, 20, 30, 50, 80, 120)
TV_STRENGTHS = (0.1, 0.3, 1.0, 3.0)
REAL = {
    "stardist": "stardist/img3d.tif",
    "easifish": "bigstream_easifish/fix_lowres_z20-116.tif",
    "pollen": "sdeconv/pollen.tif",
}
MISFITS = {"none": 1.0, "wide": 1.2, "narrow": 0.8, "counts": 1.0}
"""Width of the given PSF over the true one; ``counts`` has a gain of 0.1 and an offset of 100 that nobody tells."""


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the table."""

    kind: str
    psf: str
    photons: float
    seed: int
    misfit: str
    zyx_shape: tuple[int, int, int]


def narrow() -> np.ndarray:
    """Return a Gaussian."""
    return gaussian((3.0, 1.3, 1.3), truncate=3.0)


def wide(zyx_shape: tuple[int, int, int] = (17, 23, 23), *, na: float = 1.0, index: float = 1.33) -> np.ndarray:
    """Return a scalar widefield PSF at 0.52 µm (Born and Wolf): a cone of light beside a narrow focus."""
    n, wavelength_um = 64, 0.52
    dz, _, dx = VOXEL_ZYX_UM
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(n, dx), np.fft.fftfreq(n, dx), indexing="ij"))
    pupil = frequency < na / wavelength_um
    axial = np.sqrt(np.maximum((index / wavelength_um) ** 2 - frequency**2, 0))
    half = [m // 2 for m in zyx_shape]
    box = [slice(n // 2 - h, n // 2 + h + 1) for h in half[1:]]
    planes = [
        np.abs(np.fft.fftshift(np.fft.ifft2(pupil * np.exp(2j * np.pi * axial * z * dz))))[tuple(box)] ** 2
        for z in range(-half[0], half[0] + 1)
    ]
    found = np.array(planes)
    return (found / found.sum()).astype(np.float32)


PSFS = {"narrow": narrow, "wide": wide}


def truth_of(case: Case, zyx_shape: tuple[int, ...], real: Path | None) -> np.ndarray:
    """Return the object, maximum 1."""
    if case.kind not in REAL:
        return simulation.objects(case.kind, case.seed, zyx_shape, VOXEL_ZYX_UM)
    assert real is not None
    volume = ndimage.gaussian_filter(tifffile.imread(real / REAL[case.kind]).astype(np.float32), (0.4, 0.6, 0.6))
    volume = np.maximum(volume - np.percentile(volume, 1), 0)
    volume = np.pad(volume, [(0, max(0, s - n)) for s, n in zip(zyx_shape, volume.shape, strict=True)], mode="reflect")
    rng = np.random.default_rng(case.seed)
    starts = [[rng.integers(0, n - s + 1) for n, s in zip(volume.shape, zyx_shape, strict=True)] for _ in range(20)]
    parts = [volume[tuple(slice(a, a + s) for a, s in zip(start, zyx_shape, strict=True))] for start in starts]
    brightest = max(parts, key=lambda part: float(part.mean()))
    return brightest / brightest.max()


def measure(case: Case, real: Path | None) -> dict[str, Any]:
    """Return one row."""
    kernel = PSFS[case.psf]()
    grown = tuple(s + p - 1 for s, p in zip(case.zyx_shape, kernel.shape, strict=True))
    truth = truth_of(case, grown, real)
    blurred = np.maximum(signal.fftconvolve(truth, kernel, mode="valid"), 0)
    factor = case.photons / np.percentile(blurred, 99.9)
    inside = tuple(slice(p // 2, p // 2 + s) for p, s in zip(kernel.shape, case.zyx_shape, strict=True))
    truth = truth[inside] * factor
    background = BACKGROUND_SHARE * case.photons
    counts = np.random.default_rng(case.seed + 77).poisson(blurred * factor + background).astype(np.float64)
    scale, offset = (10.0, 100.0) if case.misfit == "counts" else (1.0, 0.0)
    psf = scaled(PSF(kernel[None], VOXEL_ZYX_UM), (MISFITS[case.misfit],) * 3)
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = deconvolve(counts * scale + offset, psf, return_choices=True)
    seconds = time.process_time() - started
    chosen = ours.settings
    rl = _stopped_by_the_truth("rl", counts, psf, chosen.background, chosen.intensity_scale, (0.0,), truth)
    tv_taus = [f * initial_tau("rltv", chosen.intensity_scale, 0, 0) for f in TV_STRENGTHS]
    tv = _stopped_by_the_truth("rltv", counts, psf, chosen.background, chosen.intensity_scale, tv_taus, truth)
    low, high = ours.findings.background_interval or (chosen.background, chosen.background)
    return {
        **asdict(case),
        "rsnr": metrics.rsnr(ours.estimate, truth),
        "rl": max(rl.values()),
        "rl15": rl[0.0, 15],
        "tv": max(tv.values()),
        "flux": float(ours.estimate.mean() / truth.mean() / scale),
        "background": chosen.background / background,
        "interval": [low / background, high / background],
        "gain": ours.camera.gain * scale,
        "iterations": chosen.iterations,
        "tau": chosen.tau,
        "sigma": chosen.sigma,
        "narrower": [ours.findings.narrower_psf_nats, ours.findings.narrower_psf_error],
        "fell_back": ours.findings.fell_back,
        "warnings": len(ours.findings.warnings),
        "not_chosen": ours.findings.not_chosen,
        "cpu_seconds": seconds,
    }


def _stopped_by_the_truth(
    method: str, counts: np.ndarray, psf: PSF, background: float, scale: float, taus: Sequence[float], truth: np.ndarray
) -> dict[tuple[float, int], float]:
    found = {}
    for tau in taus:
        settings = ResolvedSettings(method=method, iterations=max(READOUTS), voxel_zyx_um=VOXEL_ZYX_UM).calibrated(
            tau=tau, background=background, intensity_scale=scale
        )
        operator = psf.operator(Box.of_shape(counts.shape), settings)
        problem = make_problem(counts[None].astype(np.float32), None, operator, make_prior(settings, None), settings)
        with torch.inference_mode():
            state = init(problem)
            for n in range(1, max(READOUTS) + 1):
                step(problem, state)
                if n in READOUTS:
                    found[tau, n] = metrics.rsnr(state.x[problem.blur.data_slices].numpy(), truth)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table, and what must hold."""
    lines = [
        "| kind | PSF | N | seed | misfit | GARL | RL best | TV best | Δ RL | Δ TV | flux | b/true | interval | it. | told |"
    ]
    lines.append("|" + "---|" * 15)
    for r in rows:
        low, high = r["interval"]
        told = "fell back" if r["fell_back"] else r["warnings"] or ""
        lines.append(
            f"| {r['kind']} | {r['psf']} | {r['photons']:g} | {r['seed']} | {r['misfit']} | {r['rsnr']:.2f} | {r['rl']:.2f} "
            f"| {r['tv']:.2f} | {r['rsnr'] - r['rl']:+.2f} | {r['rsnr'] - r['tv']:+.2f} | {r['flux']:.2f} "
            f"| {r['background']:.2f} | {low:.2f} to {high:.2f} | {r['iterations']} | {told} |"
        )
    over_rl = np.array([r["rsnr"] - r["rl"] for r in rows])
    over_tv = np.array([r["rsnr"] - r["tv"] for r in rows])
    over_rl15 = np.array([r["rsnr"] - r["rl15"] for r in rows])
    held = np.mean([r["interval"][0] <= 1 <= r["interval"][1] for r in rows])
    fluxes = [r["flux"] for r in rows]
    untold = [d for r, d in zip(rows, over_rl, strict=True) if not r["warnings"]]
    back = [d for r, d in zip(rows, over_rl15, strict=True) if r["fell_back"]]
    lines += [
        f"\n{len(rows)} rows.",
        f"Over RL at its best: mean {over_rl.mean():+.2f}, least {over_rl.min():+.2f}, {(over_rl < -0.1).sum()} below -0.1.",
        f"Over TV at its best: mean {over_tv.mean():+.2f}, least {over_tv.min():+.2f}, {(over_tv < -0.2).sum()} below -0.2.",
        f"Rows without a warning over RL: least {min(untold, default=0):+.2f}, {sum(d < -0.2 for d in untold)} below -0.2.",
        f"Rows that fell back: {len(back)}, over RL at 15 least {min(back, default=0):+.2f}.",
        f"Flux {min(fluxes):.2f} to {max(fluxes):.2f}; background in its interval in {100 * held:.0f} %.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--kinds")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--photons", default="100")
    parser.add_argument("--psfs", default="narrow,wide")
    parser.add_argument("--misfits", default="none")
    parser.add_argument("--shape", default="20,48,48")
    parser.add_argument("--table", action="store_true", help="Print the rows that OUT has, and stop.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    if arguments.table:
        for misfit in dict.fromkeys(r["misfit"] for r in rows):
            print(table([r for r in rows if r["misfit"] == misfit]))
        return
    kinds = arguments.kinds.split(",") if arguments.kinds else [*simulation.KINDS, *(REAL if arguments.real else ())]
    z, y, x = (int(n) for n in arguments.shape.split(","))
    done = {json.dumps({key: r[key] for key in Case.__dataclass_fields__}) for r in rows}
    for misfit, seed, photons, kind, psf in product(
        arguments.misfits.split(","),
        map(int, arguments.seeds.split(",")),
        map(float, arguments.photons.split(",")),
        kinds,
        arguments.psfs.split(","),
    ):
        case = Case(kind, psf, photons, seed, misfit, (z, y, x))
        if json.dumps(asdict(case)) in done or json.dumps({**asdict(case), "zyx_shape": [z, y, x]}) in done:
            continue
        row = measure(case, arguments.real)
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(table([row]).splitlines()[2], flush=True)


if __name__ == "__main__":
    main()
