"""One iteration of every method against the plain torch loop of Richardson-Lucy, on one padded problem, side by side.

python tests/benchmarks/iteration.py [--shape 96,224,224] [--psf 33] [--threads 1]
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import TYPE_CHECKING

import torch

from bigdeconv import models, psf
from bigdeconv.physics.convolution import Blur
from bigdeconv.priors.tv import TotalVariation
from bigdeconv.priors.wcrr import Wcrr
from bigdeconv.solvers.richardson_lucy import Problem, init, step

if TYPE_CHECKING:
    from collections.abc import Callable

REPEATS = 4


def plain_loop(
    data: torch.Tensor, kernel: torch.Tensor, background: float, fft_shape: tuple[int, ...]
) -> Callable[[], None]:
    """Richardson-Lucy with momentum as one writes it down: padded, real transforms, nothing in place."""
    padding = [n for size, n in zip(data.shape[::-1], fft_shape[::-1], strict=True) for n in (0, n - size)]
    y = torch.nn.functional.pad(data, padding)
    mask = torch.nn.functional.pad(torch.ones_like(data), padding)
    otf = torch.fft.rfftn(kernel, s=fft_shape)

    def blur(x: torch.Tensor, spectrum: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfftn(torch.fft.rfftn(x) * spectrum, s=fft_shape)

    sensitivity = blur(mask, otf.conj()).clamp(min=1e-3)
    state = {"x": blur(y, otf.conj()) / sensitivity, "before": y}

    def iterate() -> None:
        x, before = state["x"], state["before"]
        p = (x + 0.5 * (x - before)).clamp(min=1e-6)
        ratio = mask * y / (blur(p, otf) + background).clamp(min=1e-6)
        state["before"], state["x"] = x, (p * blur(ratio, otf.conj()) / sensitivity).clamp(min=1e-6)

    return iterate


def ours(data: torch.Tensor, kernel: torch.Tensor, prior: TotalVariation | Wcrr | None) -> Callable[[], None]:
    """Return a function that does one step of the solver."""
    z, y, x = data.shape
    problem = Problem(data[None], None, 0.02, Blur(kernel[None], (z, y, x)), prior, tau=0.01 if prior else 0.0)
    state = init(problem)
    return lambda: step(problem, state)


def cost(iterate: Callable[[], None]) -> tuple[float, float]:
    """Return seconds and CPU-seconds of one call, the fastest of a few."""
    iterate()
    return min(_once(iterate) for _ in range(REPEATS))


def _once(iterate: Callable[[], None]) -> tuple[float, float]:
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    iterate()
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="96,224,224")
    parser.add_argument("--psf", type=int, default=33)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    z, y, x = (int(n) for n in arguments.shape.split(","))
    sigma = arguments.psf / 8
    kernel = torch.from_numpy(psf.gaussian((sigma, sigma, sigma), truncate=(arguments.psf // 2) / sigma))
    data = torch.rand(z, y, x, generator=torch.Generator().manual_seed(0))
    fft_shape = Blur(kernel[None], (z, y, x)).fft_shape
    voxels = fft_shape[0] * fft_shape[1] * fft_shape[2]
    print(f"data {z},{y},{x}, PSF {tuple(kernel.shape)}, FFT {fft_shape}, {arguments.threads} threads")
    methods = {
        "plain loop, RL": plain_loop(data, kernel, 0.02, fft_shape),
        "rl": ours(data, kernel, None),
        "rltv": ours(data, kernel, TotalVariation((1.0, 1.0, 1.0))),
        "garl, compact": ours(data, kernel, Wcrr(models.resolve("compact"), sigma=5 / 255, mu_max=3.0)),
        "garl, large": ours(data, kernel, Wcrr(models.resolve("large"), sigma=5 / 255, mu_max=3.0)),
    }
    base = None
    for name, iterate in methods.items():
        wall, cpu = cost(iterate)
        base = base or cpu
        print(
            f"{name:16} {wall:6.2f} s  {cpu:6.2f} CPU-s  {cpu / voxels * 1e9:6.0f} ns/FFT voxel  {cpu / base:5.2f} of the loop"
        )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
