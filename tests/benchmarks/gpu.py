"""Everything that takes a GPU, in one call: the results against a CPU's, the tests marked cuda, times and memory.

python -m tests.benchmarks.gpu OUTPUT [--device cuda] [--edges 256,512] [--check-shape 48,96,96]

Writes ``gpu.json`` in OUTPUT and ends with 1 where a result is further from the CPU's than it may be, or a test fails.
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
from bigdeconv.deconvolution import Settings, make_blur, make_prior, restore
from bigdeconv.geometry import Triple, triple
from bigdeconv.solvers.richardson_lucy import Problem, init, step
from tests.benchmarks.contestants import BACKGROUND, ROOT, TAU
from tests.benchmarks.measure import finished, machine, once, random_volume, rates

if TYPE_CHECKING:
    from bigdeconv.priors.weights import WcrrWeights

METHODS = {"rl": ("rl", "compact"), "garl, compact": ("garl", "compact"), "garl, large": ("garl", "large")}
"""The large model has the published architecture."""
MOST_APART = 1e-3
"""Relative difference to float32 on a CPU after 50 iterations."""
RL_BYTES = 4 * 2 * 8 + 10 * 4
"""Bytes per FFT voxel and iteration: four transforms that read and write twice, and ten volumes read or written in between."""


def settings(method: str, model: WcrrWeights, device: str, iterations: int = 50) -> Settings:
    """Return the settings of a method on a device."""
    return Settings(method, iterations, TAU, model.sigma_default, BACKGROUND, 1.0, (1.0, 1.0, 1.0), device=device)


def apart(name: str, device: str, shape: Triple, iterations: int = 50) -> float:
    """Return how far the estimates of a device and of a CPU are from each other, relative."""
    method, model = METHODS[name][0], models.resolve(METHODS[name][1])
    data, kernel = random_volume(shape).numpy()[None], psf.gaussian((2.0, 1.5, 1.5))[None]

    def solve(where: str) -> np.ndarray:
        chosen = settings(method, model, where, iterations)
        return restore(data.copy(), None, make_blur(kernel, shape, chosen), make_prior(chosen, model), chosen).astype(
            float
        )

    there, here = solve(device), solve("cpu")
    return float(np.linalg.norm(there - here) / np.linalg.norm(here))


def timing(name: str, device: str, edge: int, steps: int, measured: dict[str, float]) -> dict[str, Any]:
    """Return what an iteration costs per FFT voxel, and what share of the device's measured rates that is."""
    method, model = METHODS[name][0], models.resolve(METHODS[name][1])
    chosen = settings(method, model, device)
    kernel = psf.gaussian((4.0, 4.0, 4.0), truncate=4.0)[: edge // 2, : edge // 2, : edge // 2]
    data_shape = triple(edge - k + 1 for k in kernel.shape)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    blur = make_blur(kernel[None], data_shape, chosen)
    data = random_volume(data_shape, device)[None]
    problem = Problem(data, None, BACKGROUND, blur, make_prior(chosen, model), tau=TAU if method != "rl" else 0.0)
    state = init(problem)
    iterate = finished(lambda: step(problem, state), device)
    iterate()
    cost = min(once(iterate).seconds for _ in range(steps))
    voxels = edge**3
    ns = cost / voxels * 1e9
    flop = 0 if method == "rl" else chain_flop(model)
    return {
        "method": name,
        "fft_edge": edge,
        "ns_per_fft_voxel": ns,
        "share_of_copy": RL_BYTES / ns / measured["copy_gb_per_s"],
        "share_of_product": flop / ns / measured["product_gflops"] * (np.prod(data_shape) / voxels),
        "peak_fft_volumes": torch.cuda.max_memory_allocated() / voxels / 4 if device == "cuda" else None,
    }


def chain_flop(model: WcrrWeights) -> float:
    """Return the operations per voxel of the chain of convolutions, there and back."""
    return float(2 * 2 * sum(layer.size for layer in model.layers))


def run(device: str, edges: list[int], check_shape: Triple, *, iterations: int, steps: int) -> dict[str, Any]:
    """Compare and time everything on a device."""
    with torch.inference_mode():
        measured = rates((edges[0],) * 3, min(16 * edges[0], 8192), device)
        return {
            "machine": machine(),
            "rates": measured,
            "apart": {name: apart(name, device, check_shape, iterations) for name in METHODS},
            "timing": [timing(name, device, edge, steps, measured) for edge in edges for name in METHODS],
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu is for trying this script")
    parser.add_argument("--edges", default="256,512", help="of the FFTs")
    parser.add_argument("--check-shape", default="48,96,96", help="of what is compared with a CPU's result, z,y,x")
    parser.add_argument("--iterations", type=int, default=50, help="of what is compared")
    given = parser.parse_args()
    edges = [int(edge) for edge in given.edges.split(",")]
    results = run(given.device, edges, triple(given.check_shape.split(",")), iterations=given.iterations, steps=5)
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "cuda"], cwd=ROOT, check=False).returncode
    results["tests"] = tests
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "gpu.json").write_text(json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))
    nothing_to_test = given.device == "cpu" and tests == 5
    sys.exit(int(max(results["apart"].values()) > MOST_APART or not (tests == 0 or nothing_to_test)))


if __name__ == "__main__":
    main()
