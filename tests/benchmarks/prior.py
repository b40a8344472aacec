"""Cost of the learned prior's gradient: the plain convolutions of a whole volume, the same in slabs, and by rows.

python tests/benchmarks/prior.py [--threads 1] [--shape 60,96,250]
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from bigdeconv import models
from bigdeconv.priors.filters import Chain, Rows
from bigdeconv.priors.wcrr import Wcrr, fourier_lambda_max

if TYPE_CHECKING:
    from bigdeconv.priors.weights import WcrrWeights

REPEATS = 3
WAYS = {"plain": partial(Chain, limit_bytes=2**50), "slabs of 2 MiB": partial(Chain, limit_bytes=2**21), "rows": Rows}


def published_architecture(weights: WcrrWeights) -> WcrrWeights:
    """Return a model with 64 channels of random filters; its cost is that of the published one."""
    last = np.random.default_rng(0).normal(size=(64, *weights.layers[-1].shape[1:])).astype(np.float32)
    layers = (*weights.layers[:-1], last)
    scaling = np.repeat(weights.scaling, 4, axis=0)
    return replace(weights, layers=layers, scaling=scaling, lambda_max=fourier_lambda_max(layers))


def cost(prior: Wcrr, x: torch.Tensor) -> tuple[float, float]:
    """Return seconds and CPU-seconds of one gradient, the fastest of a few."""
    prior.gradient(x)
    return min(_once(prior, x) for _ in range(REPEATS))


def _once(prior: Wcrr, x: torch.Tensor) -> tuple[float, float]:
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    prior.gradient(x)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shape", default="60,96,250")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    x = torch.rand(*(int(n) for n in arguments.shape.split(",")), generator=torch.Generator().manual_seed(0))
    compact = models.resolve("compact")
    for name, weights in (("compact", compact), ("published architecture", published_architecture(compact))):
        plain = None
        for way, filters in WAYS.items():
            wall, cpu = cost(Wcrr(weights, sigma=10 / 255, filters=filters), x)
            plain = plain or wall
            ns = 1e9 / x.numel()
            print(
                f"{name:24} {way:16} {wall * ns:6.0f} ns/voxel  {cpu * ns:6.0f} CPU  {plain / wall:5.1f} x", flush=True
            )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
