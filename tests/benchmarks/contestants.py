"""Deconvolution programs side by side: each solves the same arrays in a process of its own.

``run`` starts the processes, and they run this file.  A peer that its interpreter does not have counts as not installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.benchmarks.measure import forget_peak, once, peak_bytes, resident_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Run = Callable[[int], np.ndarray]

ROOT = Path(__file__).parents[2]
NOT_INSTALLED = 77
"""Exit code of a contestant that is not there."""
ARRAYS = "arrays.npz"
BACKGROUND = 0.02
"""Of all the problems, in units of the intensity scale."""
TAU = 0.01
"""Strength where there is a prior; the cost does not depend on it."""


def ours(method: str, model: str, data: np.ndarray, psf_zyx: np.ndarray) -> Run:
    """Return the restoration of a block that a worker has read."""
    from bigdeconv import PSF, models
    from bigdeconv.geometry import Box, triple
    from bigdeconv.numerics.restoration import ResolvedSettings, make_prior, restore

    weights, voxel_zyx_um = models.resolve(model), (1.0, 1.0, 1.0)
    psf, window = PSF(psf_zyx[None], voxel_zyx_um), Box.of_shape(triple(data.shape))

    def run(iterations: int) -> np.ndarray:
        settings = ResolvedSettings(
            method=method, iterations=iterations, voxel_zyx_um=voxel_zyx_um, sigma=weights.sigma_default
        ).calibrated(tau=TAU, background=BACKGROUND, intensity_scale=1.0)
        operator = psf.operator(window, settings)
        return restore(data[None].copy(), None, operator, make_prior(settings, weights), settings)

    return run


def plain_loop(data: np.ndarray, psf_zyx: np.ndarray) -> Run:
    """Return Richardson-Lucy with momentum in plain torch: padded, real transforms, nothing in place."""
    import torch
    from torch.nn.functional import pad

    from bigdeconv.geometry import fast_length

    fft_shape = [fast_length(n + k - 1) for n, k in zip(data.shape, psf_zyx.shape, strict=True)]
    padding = [n for size, full in zip(data.shape[::-1], fft_shape[::-1], strict=True) for n in (0, full - size)]

    def blur(x: torch.Tensor, spectrum: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfftn(torch.fft.rfftn(x) * spectrum, s=fft_shape)

    def run(iterations: int) -> np.ndarray:
        y, mask = (pad(t, padding) for t in (torch.from_numpy(data), torch.ones(data.shape)))
        otf = torch.fft.rfftn(torch.from_numpy(psf_zyx), s=fft_shape)
        sensitivity = blur(mask, otf.conj()).clamp(min=1e-3)
        x = before = blur(y, otf.conj()) / sensitivity
        for k in range(iterations):
            p = (x + k / (k + 3) * (x - before)).clamp(min=1e-6)
            ratio = mask * y / (blur(p, otf) + BACKGROUND).clamp(min=1e-6)
            before, x = x, (p * blur(ratio, otf.conj()) / sensitivity).clamp(min=1e-6)
        centred = x.roll([k // 2 for k in psf_zyx.shape], (0, 1, 2))
        return centred[tuple(slice(n) for n in data.shape)].numpy()

    return run


def skimage(data: np.ndarray, psf_zyx: np.ndarray) -> Run:
    """Return scikit-image's Richardson-Lucy."""
    from skimage.restoration import richardson_lucy

    return lambda n: richardson_lucy(data, psf_zyx, num_iter=n, clip=False)


def redlionfish(data: np.ndarray, psf_zyx: np.ndarray) -> Run:
    """Return RedLionfish on the CPU, on data padded with zeros: it wraps around."""
    from RedLionfishDeconv import doRLDeconvolutionFromNpArrays

    from bigdeconv.geometry import fast_length

    spare = [fast_length(n + k - 1) - n for n, k in zip(data.shape, psf_zyx.shape, strict=True)]
    padded = np.pad(data, [(s // 2, s - s // 2) for s in spare])
    inner = tuple(slice(s // 2, s // 2 + n) for s, n in zip(spare, data.shape, strict=True))
    return lambda n: doRLDeconvolutionFromNpArrays(padded, psf_zyx, niter=n, method="cpu")[inner]


def sdeconv(data: np.ndarray, psf_zyx: np.ndarray) -> Run:
    """Return sdeconv's Richardson-Lucy, padded by the reach of the PSF, which it expects as large as the data."""
    import torch
    from sdeconv.deconv import SRichardsonLucy

    reach = tuple(k // 2 for k in psf_zyx.shape)
    padded = np.zeros_like(data)
    padded[
        tuple(slice(n // 2 - k // 2, n // 2 - k // 2 + k) for n, k in zip(data.shape, psf_zyx.shape, strict=True))
    ] = psf_zyx
    return lambda n: SRichardsonLucy(torch.from_numpy(padded), niter=n, pad=reach)(torch.from_numpy(data)).numpy()


def ci_deconvolve(data: np.ndarray, psf_zyx: np.ndarray) -> Run:
    """Return ci-deconvolve's accelerated Richardson-Lucy with its unknown exterior, without its stopping rule."""
    from core.deconvolve_ci import ci_rl_deconvolve

    fixed: dict[str, Any] = {"convergence": "fixed", "offset": 0.0, "background": BACKGROUND, "start": "flat"}
    return lambda n: ci_rl_deconvolve(data, psf_zyx, niter=n, device="cpu", tiling="none", **fixed)["result"]


OURS = {
    "rl": partial(ours, "rl", "compact"),
    "rltv": partial(ours, "rltv", "compact"),
    "garl, compact": partial(ours, "garl", "compact"),
    "garl, large": partial(ours, "garl", "large"),
    "plain torch loop, RL": plain_loop,
}
PEERS = {
    "scikit-image, RL": skimage,
    "RedLionfish, RL": redlionfish,
    "sdeconv, RL": sdeconv,
    "ci-deconvolve, RL": ci_deconvolve,
}


def run(
    names: Iterable[str],
    data: np.ndarray,
    psf_zyx: np.ndarray,
    folder: Path,
    *,
    iterations: tuple[int, int],
    rounds: int,
    threads: int,
    peers_python: str,
) -> dict[str, dict[str, float] | None]:
    """Let contestants solve one problem, all in turn, and return the least cost of each.

    Parameters
    ----------
    names : iterable of str
        Keys of `OURS` and `PEERS`.
    data : ndarray, ``z y x``
    psf_zyx : ndarray, ``z y x``
    folder : Path
        Folder for the arrays and the estimates.
    iterations : tuple of int
        A few and some more: their difference is the cost of an iteration, without preparations.
    rounds : int
        Processes of each contestant.
    threads : int
    peers_python : str
        Interpreter that has the peers.

    Returns
    -------
    dict
        ``seconds`` and ``cpu_seconds`` per iteration, ``peak_bytes`` above the memory of the process before the data; None for a
        contestant that is not installed.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    np.savez(folder / ARRAYS, data=data, psf_zyx=psf_zyx)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "cli")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}
    for _ in range(rounds):
        for name in found:
            python = peers_python if name in PEERS else sys.executable
            command = [python, "-m", "tests.benchmarks.contestants", name, folder, *map(str, iterations)]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
            elif done.returncode != NOT_INSTALLED:
                raise RuntimeError(f"{name}: {done.stderr}")
    more = iterations[1] - iterations[0]
    return {name: _per_iteration(costs, more) if costs else None for name, costs in found.items()}


def _per_iteration(costs: list[dict[str, float]], more: int) -> dict[str, float]:
    """Return the difference of the least costs of a few iterations and of some more, and the least peak."""
    least = {key: min(cost[key] for cost in costs) for key in costs[0]}
    return {
        "seconds": (least["many_seconds"] - least["few_seconds"]) / more,
        "cpu_seconds": (least["many_cpu_seconds"] - least["few_cpu_seconds"]) / more,
        "peak_bytes": least["peak_bytes"],
    }


def main(name: str, folder: str, few: str, many: str) -> None:
    """Print the cost of one contestant as JSON."""
    make = (OURS | PEERS)[name]
    tiny = np.random.default_rng(0).uniform(size=(8, 8, 8)).astype(np.float32)
    try:
        make(tiny, np.full((3, 3, 3), 1 / 27, np.float32))(2)  # imports and caches of libraries
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(NOT_INSTALLED)
    resident = resident_bytes()
    forget_peak()
    with np.load(Path(folder) / ARRAYS) as file:
        solve = make(file["data"], file["psf_zyx"])
    solve(int(few))  # The first run also pays for preparations of libraries per shape.
    costs: dict[str, float] = {}
    for label, iterations in (("few", few), ("many", many)):
        cost = once(lambda n=int(iterations): np.save(Path(folder) / f"{name}.npy", solve(n)))
        costs |= {f"{label}_seconds": cost.seconds, f"{label}_cpu_seconds": cost.cpu_seconds}
    print(json.dumps({**costs, "peak_bytes": peak_bytes() - resident}))


if __name__ == "__main__":
    main(*sys.argv[1:])
