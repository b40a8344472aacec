"""All measurements that need a GPU, in one call: results against a CPU's, times and memory, the tests marked cuda.

python -m tests.benchmarks.gpu OUTPUT [--device cuda] [--edges 256,512] [--check-shape 48,96,96]

Writes ``gpu.json`` in OUTPUT, before the tests run and again with their result, and ends with 1 where a result differs too much
from the CPU's, or a test fails.  Needs neither zarr nor Dask.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigdeconv import models, psf
from bigdeconv.geometry import Box, Triple, triple
from bigdeconv.numerics.priors.filters import SequentialConvolutions
from bigdeconv.numerics.priors.wcrr import Wcrr
from bigdeconv.numerics.restoration import MU_MAX, ResolvedSettings, make_prior, restore
from bigdeconv.numerics.richardson_lucy import Problem, init, step
from bigdeconv.psf import PSF
from tests.benchmarks.contestants import BACKGROUND, ROOT, TAU
from tests.benchmarks.measure import finished, machine, once, random_volume, rates

if TYPE_CHECKING:
    from bigdeconv.numerics.priors.weights import WcrrWeights
    from bigdeconv.numerics.restoration import CalibratedSettings

METHODS = {"rl": ("rl", "compact"), "garl, compact": ("garl", "compact"), "garl, large": ("garl", "large")}
"""The large model has the published architecture."""
MAX_DIFFERENCE = 1e-3
"""Relative difference to float32 on a CPU after 50 iterations."""
MAX_GRADIENT_ERROR = 2e-5
"""Relative error of the learned prior's gradient.  Products of 10 bits have 3e-3: a weak prior hides it from the estimate, and a
strong one makes 1e-2 of it."""
RL_BYTES = 4 * 2 * 8 + 10 * 4
"""Bytes per FFT voxel and iteration: four transforms that read and write twice, and ten volumes read or written in between."""
TESTS = ("-m", "cuda", "--noconftest", "tests/test_cuda.py")
"""Arguments of pytest; the shared fixtures need zarr and Dask, these tests do not need the fixtures."""
VOXEL_ZYX_UM = (1.0, 1.0, 1.0)


def settings(method: str, model: WcrrWeights, device: str, iterations: int = 50) -> CalibratedSettings:
    """Return the settings of a method on a device."""
    resolved = ResolvedSettings(
        method=method, iterations=iterations, voxel_zyx_um=VOXEL_ZYX_UM, sigma=model.sigma_default, device=device
    )
    return resolved.calibrated(tau=TAU, background=BACKGROUND, intensity_scale=1.0)


def difference(name: str, device: str, shape: Triple, iterations: int = 50) -> float:
    """Return the relative difference between the estimates of a device and of a CPU."""
    method, model = METHODS[name][0], models.resolve(METHODS[name][1])
    data, narrow = random_volume(shape).numpy()[None], PSF(psf.gaussian((2.0, 1.5, 1.5))[None], VOXEL_ZYX_UM)

    def solve(where: str) -> np.ndarray:
        chosen = settings(method, model, where, iterations)
        operator = narrow.operator(Box.of_shape(shape), chosen)
        return restore(data.copy(), None, operator, make_prior(chosen, model), chosen).astype(float)

    there, here = solve(device), solve("cpu")
    return float(np.linalg.norm(there - here) / np.linalg.norm(here))


def gradient(name: str, device: str, shape: Triple) -> dict[str, float]:
    """Return the relative error of the learned prior's gradient on a device, against float64 on a CPU, and its time per voxel."""
    model = models.resolve(METHODS[name][1])
    x = random_volume(shape)
    exact, found = (
        Wcrr(model, sigma=model.sigma_default, mu_max=MU_MAX, dtype=dtype, device=where, filters=filters)
        for dtype, where, filters in (
            (torch.float64, "cpu", SequentialConvolutions),
            (torch.float32, device, None),
        )
    )
    reference = exact.gradient(x.double())
    error = float((found.gradient(x.to(device)).cpu() - reference).norm() / reference.norm())
    large = random_volume(triple(4 * n for n in shape), device)
    compute = finished(lambda: found.gradient(large), device)
    compute()
    return {"error": error, "ns_per_voxel": min(once(compute).seconds for _ in range(5)) / large.numel() * 1e9}


def timing(name: str, device: str, edge: int, steps: int, measured: dict[str, float]) -> dict[str, Any]:
    """Return the cost of an iteration per FFT voxel, and its share of the device's measured rates."""
    method, model = METHODS[name][0], models.resolve(METHODS[name][1])
    chosen = settings(method, model, device)
    wide = psf.gaussian((4.0, 4.0, 4.0), truncate=4.0)[: edge // 2, : edge // 2, : edge // 2]
    data_shape = triple(edge - k + 1 for k in wide.shape)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    operator = PSF(wide[None], VOXEL_ZYX_UM).operator(Box.of_shape(data_shape), chosen)
    data = random_volume(data_shape, device)[None]
    problem = Problem(data, None, BACKGROUND, operator, make_prior(chosen, model), tau=TAU if method != "rl" else 0.0)
    state = init(problem)
    iterate = finished(lambda: step(problem, state), device)
    iterate()
    cost = min(once(iterate).seconds for _ in range(steps))
    voxels = edge**3
    ns = cost / voxels * 1e9
    flop = 0 if method == "rl" else convolution_flop(model)
    return {
        "method": name,
        "fft_edge": edge,
        "ns_per_fft_voxel": ns,
        "share_of_copy": RL_BYTES / ns / measured["copy_gb_per_s"],
        "share_of_product": flop / ns / measured["product_gflops"] * (np.prod(data_shape) / voxels),
        "peak_fft_volumes": torch.cuda.max_memory_allocated() / voxels / 4 if device == "cuda" else None,
    }


def convolution_flop(model: WcrrWeights) -> float:
    """Return the operations per voxel of the sequential convolutions, forward and adjoint."""
    return float(2 * 2 * sum(layer.size for layer in model.layers))


def run(device: str, edges: list[int], check_shape: Triple, *, iterations: int, steps: int) -> dict[str, Any]:
    """Compare and time everything on a device."""
    with torch.inference_mode():
        measured = rates((edges[0],) * 3, min(16 * edges[0], 8192), device)
        return {
            "machine": machine(),
            "rates": measured,
            "difference": {name: difference(name, device, check_shape, iterations) for name in METHODS},
            "gradient": {name: gradient(name, device, check_shape) for name in METHODS if METHODS[name][0] == "garl"},
            "timing": [timing(name, device, edge, steps, measured) for edge in edges for name in METHODS],
        }


def failures(results: dict[str, Any]) -> list[str]:
    """Return one sentence for each result that differs too much from the CPU's, and one if a test failed."""
    found = [
        f"{name} differs from the CPU's result by {value:.1e}, more than {MAX_DIFFERENCE:g}."
        for name, value in results["difference"].items()
        if not value <= MAX_DIFFERENCE
    ]
    found += [
        f"The prior's gradient of {name} has an error of {values['error']:.1e}, more than {MAX_GRADIENT_ERROR:g}."
        for name, values in results["gradient"].items()
        if not values["error"] <= MAX_GRADIENT_ERROR
    ]
    return found + ([f"The tests ended with {results['tests']}."] if results["tests"] else [])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu is for trying this script")
    parser.add_argument("--edges", default="256,512", help="of the FFTs")
    parser.add_argument("--check-shape", default="48,96,96", help="extent of the comparison with a CPU, z,y,x")
    parser.add_argument("--iterations", type=int, default=50, help="iterations of the comparison")
    given = parser.parse_args()
    edges = [int(edge) for edge in given.edges.split(",")]
    results = run(given.device, edges, triple(given.check_shape.split(",")), iterations=given.iterations, steps=5)
    given.output.mkdir(parents=True, exist_ok=True)
    _write(given.output, results)  # The tests may take the machine down with them.
    results["tests"] = subprocess.run([sys.executable, "-m", "pytest", "-q", *TESTS], cwd=ROOT, check=False).returncode
    _write(given.output, results)
    print(json.dumps(results, indent=1))
    found = failures(results)
    for sentence in found:
        print(sentence, file=sys.stderr)
    sys.exit(bool(found))


def _write(folder: Path, results: dict[str, Any]) -> None:
    (folder / "gpu.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
