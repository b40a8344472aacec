"""What a block costs on this machine: a small one is restored and coded, and the time per voxel handed to the planner."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from bigdeconv.calibration import prepare_views
from bigdeconv.costs import Costs
from bigdeconv.deconvolution import Settings, make_blur, make_prior, restore
from bigdeconv.intensity import Camera, Validity
from bigdeconv.memory import HEAP_BYTES
from bigdeconv.psf import gaussian
from bigdeconv.pyramid import downsample
from bigdeconv.solvers.richardson_lucy import prior_steps, prior_window
from bigdeconv.storage.arrays import codec_seconds
from bigdeconv.storage.cache import remembered

if TYPE_CHECKING:
    from collections.abc import Callable

    from bigdeconv.priors.weights import WcrrWeights

WINDOW = (96, 104, 128)
"""Data window of the trial; with its PSF the transforms are 120, 120 and 144 long, neither the best nor the worst lengths."""
SIGMA = 2.0
"""Of its PSF, in voxels."""
ITERATIONS = 3
_VERSION = 3
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
    machine = (platform.node(), platform.processor(), os.cpu_count(), torch.__version__, np.__version__)
    digest = hashlib.sha256(repr((_VERSION, machine, subject)).encode()).hexdigest()[:24]
    return remembered(f"costs-{digest}", lambda: asdict(_measure(subject, model)), lambda stored: Costs(**stored))


def _measure(subject: Subject, model: WcrrWeights | None) -> Costs:
    threads = torch.get_num_threads()
    torch.set_num_threads(subject.threads)
    try:
        return _costs(subject, model)
    finally:
        torch.set_num_threads(threads)


def _costs(subject: Subject, model: WcrrWeights | None) -> Costs:
    fault = _fault_seconds() if subject.device == "cpu" else 0.0
    views, clock = min(subject.n_views, 2), _clock(subject.device)
    kernels = np.stack([gaussian((SIGMA,) * 3)] * views)
    counts = np.random.default_rng(0).poisson(20.0, (views, *WINDOW)).astype(np.uint16)
    plain = _settings(subject, "rl")
    blur = make_blur(kernels, WINDOW, plain)
    n_fft, n_window = math.prod(blur.fft_shape), math.prod(WINDOW)
    n_prior = math.prod(s.stop - s.start for s in prior_window(blur))

    prepared = _mean_time(clock, lambda: prepare_views(counts, Camera(), Validity(0.0, 10.0, 5.0, 50.0)))
    photons, weights, _ = prepare_views(counts, Camera(), Validity(0.0, 10.0, 5.0, 50.0))
    steps = _mean_time(clock, lambda: restore(photons.copy(), weights, blur, None, plain))
    fft = steps / ((ITERATIONS + 1) * (views + 1) * n_fft * math.log2(n_fft))
    prior, n_steps = 0.0, 1
    if subject.method != "rl":
        with_prior = _settings(subject, subject.method)
        tools = make_prior(with_prior, model)
        assert tools is not None
        prior = max(_mean_time(clock, lambda: restore(photons.copy(), weights, blur, tools, with_prior)) - steps, 0.0)
        if subject.update == "convergent":
            n_steps = prior_steps(tools, subject.n_views)
            prior *= n_steps / prior_steps(tools, views)
    finish = _mean_time(clock, lambda: _finish(photons[0]))
    decode, encode = codec_seconds()
    return Costs(
        fft=fft,
        prior=prior / (ITERATIONS * n_prior),
        prior_steps=n_steps,
        prepare=prepared / (views * n_window),
        fault=fault,
        decode=decode,
        write=encode + finish / n_window,
    )


def _settings(subject: Subject, method: str) -> Settings:
    numbers = (ITERATIONS, 0.01, 5 / 255, 5.0, 50.0, (1.0, 1.0, 1.0), 65535.0)
    return Settings(method, *numbers, update=subject.update, device=subject.device)


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


def _fault_seconds() -> float:
    """Return the time that the system takes to hand out a byte of fresh memory: of filling an array the first time."""
    n = HEAP_BYTES + HEAP_BYTES // 8
    repeats, difference = 5, 0.0
    for _ in range(repeats):
        started = time.process_time()
        array = torch.empty(n, dtype=torch.uint8).fill_(1)
        between = time.process_time()
        array.fill_(2)
        difference += (between - started) - (time.process_time() - between)
        del array
    return max(difference, 0.0) / (repeats * n)


def _clock(device: str) -> Callable[[], float]:
    return time.process_time if device == "cpu" else time.perf_counter


def _mean_time(clock: Callable[[], float], action: Callable[[], object]) -> float:
    """Return the time of an action, the first time and once more: a block finds nothing warm either."""
    started = clock()
    for _ in range(2):
        action()
    return (clock() - started) / 2
