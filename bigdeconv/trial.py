"""What a block costs on this machine: a small one is restored and coded, and the time per voxel handed to the planner."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from bigdeconv.calibration import prepare_views
from bigdeconv.costs import Costs, Rates
from bigdeconv.deconvolution import Settings, cpu_threads, make_blur, make_prior, restore
from bigdeconv.geometry import triple
from bigdeconv.intensity import Camera, Validity
from bigdeconv.psf import gaussian
from bigdeconv.pyramid import downsample
from bigdeconv.solvers.richardson_lucy import prior_steps, prior_window
from bigdeconv.storage.arrays import codec_seconds
from bigdeconv.storage.cache import remembered

if TYPE_CHECKING:
    from collections.abc import Callable

    from bigdeconv.priors import Prior
    from bigdeconv.priors.weights import WcrrWeights

WINDOW = (96, 104, 128)
"""Data window of the trial; with its PSF the transforms are 120, 120 and 144 long, neither the best nor the worst lengths."""
LARGE_WINDOW = (176, 200, 200)
"""Another whose arrays, of 36 MB, are too large for the heaps in which glibc keeps what is freed."""
SIGMA = 2.0
"""Of its PSF, in voxels."""
ITERATIONS, LARGE_ITERATIONS = 3, 1
_VERSION = 5
"""Raised when what is measured changes."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What the cost depends on, besides the machine."""

    method: str
    update: Literal["convergent", "reference"]
    n_views: int
    model: str
    """Digest of the learned prior's weights; empty without one."""
    device: str
    threads: int


def measure(subject: Subject, model: WcrrWeights | None) -> Costs:
    """Return what a block costs here: CPU time, or a GPU's time; remembered on disk, as measuring it takes seconds."""
    # Another library or machine has costs of its own.
    machine = (
        platform.node(),
        platform.processor(),
        os.cpu_count(),
        torch.__version__,
        np.__version__,
        version("numba"),
    )
    digest = hashlib.sha256(repr((_VERSION, machine, subject)).encode()).hexdigest()[:24]
    return remembered(f"costs-{digest}", lambda: asdict(_measure(subject, model)), _parsed)


def _parsed(stored: dict[str, Any]) -> Costs:
    return Costs(**stored | {name: Rates(**stored[name]) for name in ("small", "large")})


def _measure(subject: Subject, model: WcrrWeights | None) -> Costs:
    with cpu_threads(subject.threads):
        return _costs(subject, model)


def _costs(subject: Subject, model: WcrrWeights | None) -> Costs:
    views, clock = min(subject.n_views, 2), _clock(subject.device)
    counts = np.random.default_rng(0).poisson(20.0, (views, *WINDOW)).astype(np.uint16)
    prepared = _mean_time(clock, lambda: prepare_views(counts, Camera(), Validity(0.0, 10.0, 5.0, 50.0)))
    photons, *_ = prepare_views(counts, Camera(), Validity(0.0, 10.0, 5.0, 50.0))
    finish = _mean_time(clock, lambda: _finish(photons[0]))
    decode, encode = codec_seconds()

    tools = make_prior(_settings(subject, ITERATIONS), model)
    if subject.method == "garl" and subject.device == "cpu":
        # What is compiled once in a process is no block's cost.
        assert tools is not None
        tools.gradient(torch.zeros(WINDOW))
    small = _rates(subject, photons, tools, ITERATIONS, repeats=2)
    wide = np.random.default_rng(0).uniform(0.0, 40.0, (1, *LARGE_WINDOW)).astype(np.float32)
    # The learned prior goes tile by tile, whatever the size of the whole.
    large = _rates(subject, wide, tools if subject.method == "rltv" else None, LARGE_ITERATIONS, repeats=1)
    return Costs(
        small=small,
        large=large if subject.method == "rltv" else replace(large, prior=small.prior),
        prepare=prepared / counts.size,
        decode=decode,
        write=encode + finish / photons[0].size,
    )


def _rates(subject: Subject, photons: np.ndarray, tools: Prior | None, iterations: int, repeats: int) -> Rates:
    """Time the making of OTFs, and the restoration of a window ``v z y x`` with and without a prior."""
    clock, views = _clock(subject.device), len(photons)
    settings = _settings(subject, iterations)
    kernels = np.stack([gaussian((SIGMA,) * 3)] * views)
    started = clock()
    blur = make_blur(kernels, triple(photons.shape[1:]), settings)
    otfs = clock() - started
    n_fft = math.prod(blur.fft_shape)

    plain = _mean_time(clock, lambda: restore(photons.copy(), None, blur, None, settings), repeats)
    prior = 0.0
    if tools is not None:
        with_prior = _mean_time(clock, lambda: restore(photons.copy(), None, blur, tools, settings), repeats)
        prior = max(with_prior - plain, 0.0)
        prior /= iterations * math.prod(s.stop - s.start for s in prior_window(blur))
        if subject.update == "convergent":
            prior *= prior_steps(tools, subject.n_views) / prior_steps(tools, views)
    return Rates(plain / ((iterations + 1) * (views + 1) * n_fft * math.log2(n_fft)), otfs / (views * n_fft), prior)


def _settings(subject: Subject, iterations: int) -> Settings:
    numbers = (0.01, 5 / 255, 5.0, 50.0, (1.0, 1.0, 1.0), 65535.0)
    return Settings(subject.method, iterations, *numbers, update=subject.update, device=subject.device)


def _finish(estimate: np.ndarray) -> None:
    """Do what is done with an estimate until it is encoded: checked, weighed, summed, rounded, averaged."""
    np.isfinite(estimate).all()
    core = estimate.astype(np.float32)
    core *= np.float32(0.5)
    core += estimate
    core.max()
    np.rint(core, out=core)
    np.count_nonzero(core > 65535)
    downsample(np.clip(core, 0, 65535, out=core).astype(np.uint16), (2, 2, 2))


def _clock(device: str) -> Callable[[], float]:
    return time.process_time if device == "cpu" else time.perf_counter


def _mean_time(clock: Callable[[], float], action: Callable[[], object], repeats: int = 2) -> float:
    """Return the time of an action, the first time included: a block finds few arrays warm either."""
    started = clock()
    for _ in range(repeats):
        action()
    return (clock() - started) / repeats
