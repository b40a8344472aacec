"""Cost of a block on this machine: a small window goes through the worker's own functions, and the times per voxel are kept."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from bigdeconv.engine import block, machine
from bigdeconv.geometry import Box, Triple, fast_length, triple
from bigdeconv.numerics.camera import Camera, DataMask, prepare_views
from bigdeconv.numerics.restoration import CalibratedSettings, cpu_threads, make_prior, restore
from bigdeconv.numerics.richardson_lucy import inner_iterations, prior_window
from bigdeconv.planning.blocks import BlockTask
from bigdeconv.planning.cost import Costs, Rates
from bigdeconv.planning.levels import Level
from bigdeconv.planning.memory import Extents
from bigdeconv.psf import PSF, gaussian
from bigdeconv.storage import codecs
from bigdeconv.storage.cache import cached

if TYPE_CHECKING:
    from collections.abc import Callable

    from bigdeconv.numerics.priors.protocol import Prior
    from bigdeconv.numerics.priors.weights import WcrrWeights

WINDOW = (96, 104, 128)
"""Data window z, y, x; with the PSF its transforms have lengths 120, 120 and 144, neither the best nor the worst."""
LARGE_WINDOW = (176, 200, 200)
"""Another one, with arrays of 36 MB: too large for the heaps in which glibc keeps freed memory."""
SIGMA = 2.0
"""Standard deviation of the PSF, in voxels."""
ITERATIONS, LARGE_ITERATIONS = 3, 1
GPU_WINDOW, GPU_LARGE_WINDOW = (176, 200, 200), (304, 328, 328)
"""On a GPU, which starts its kernels in the time that a smaller window takes."""
VERSION = 8
"""Raised whenever something else is measured than before."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Everything that the cost of a block depends on, besides the machine."""

    method: str
    update: Literal["convergent", "reference"]
    n_views: int
    model: str
    """Digest of the learned prior's weights; empty without one."""
    device: Literal["cpu", "cuda"]
    threads: int


def measure(subject: Subject, model: WcrrWeights | None) -> Costs:
    """Return the cost of blocks here, CPU time or time of a GPU, from the cache where it was measured before."""
    digest = hashlib.sha256(repr((VERSION, _machine(), subject)).encode()).hexdigest()[:24]
    return cached(f"costs-{digest}", lambda: asdict(_measure(subject, model)), _parsed)


def largest_window() -> Extents:
    """Return the extents of the largest window that is restored to measure a cost."""
    support = PSF(gaussian((SIGMA,) * 3)[None], (1.0, 1.0, 1.0)).support_zyx
    fft = triple(fast_length(n + p - 1) for n, p in zip(LARGE_WINDOW, support, strict=True))
    return Extents(LARGE_WINDOW, fft, LARGE_WINDOW)


def _machine() -> tuple[str | int | None, ...]:
    """Return the machine and the libraries whose speed was measured."""
    try:
        numba = version("numba")
    except PackageNotFoundError:
        numba = None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return platform.node(), platform.processor(), os.cpu_count(), torch.__version__, np.__version__, numba, gpu


def _parsed(stored: dict[str, Any]) -> Costs:
    return Costs(**stored | {name: Rates(**stored[name]) for name in ("small", "large")})


def _measure(subject: Subject, model: WcrrWeights | None) -> Costs:
    with cpu_threads(subject.threads):
        costs = _costs(subject, model)
    if subject.device == "cuda":
        machine.release_gpu_memory()
    return costs


def _costs(subject: Subject, model: WcrrWeights | None) -> Costs:
    views, clock = min(subject.n_views, 2), _clock(subject.device)
    window, large_window = (WINDOW, LARGE_WINDOW) if subject.device == "cpu" else (GPU_WINDOW, GPU_LARGE_WINDOW)
    counts = np.random.default_rng(0).poisson(20.0, (views, *window)).astype(np.uint16)
    prepared = _mean_time(clock, lambda: prepare_views(counts, Camera(), DataMask(0.0, 10.0, 5.0, 50.0)))
    photons, *_ = prepare_views(counts, Camera(), DataMask(0.0, 10.0, 5.0, 50.0))
    finish = _mean_time(clock, lambda: _finish(photons[0]))
    decode, encode = codecs.seconds_per_voxel()

    prior = make_prior(_settings(subject, ITERATIONS), model)
    if subject.method == "garl":
        # What is compiled once in a process is no block's cost.
        assert prior is not None
        prior.gradient(torch.zeros(window, device=subject.device))
    small = _rates(subject, photons, prior, ITERATIONS, repeats=2)
    wide = np.random.default_rng(0).uniform(0.0, 40.0, (1, *large_window)).astype(np.float32)
    # The learned prior works tile by tile: its cost per voxel does not depend on the window.
    large = _rates(subject, wide, prior if subject.method == "rltv" else None, LARGE_ITERATIONS, repeats=1)
    return Costs(
        small=small,
        large=large if subject.method == "rltv" else replace(large, prior=small.prior),
        prepare=prepared / counts.size,
        decode=decode,
        write=encode + finish / photons[0].size,
    )


def _rates(subject: Subject, photons: np.ndarray, prior: Prior | None, iterations: int, repeats: int) -> Rates:
    """Time the making of an operator, and the restoration of a window ``v z y x`` with and without a prior."""
    clock, n_views = _clock(subject.device), len(photons)
    settings = _settings(subject, iterations)
    psf = PSF(np.stack([gaussian((SIGMA,) * 3)] * n_views), (1.0, 1.0, 1.0))
    if subject.device == "cuda":
        # A GPU's libraries load, and choose their kernels, at the first call.
        restore(photons.copy(), None, psf.operator(Box.of_shape(triple(photons.shape[1:])), settings), prior, settings)
    started = clock()
    operator = psf.operator(Box.of_shape(triple(photons.shape[1:])), settings)
    otfs = clock() - started
    n_fft = math.prod(operator.fft_shape)

    plain = _mean_time(clock, lambda: restore(photons.copy(), None, operator, None, settings), repeats)
    extra = 0.0
    if prior is not None:
        with_prior = _mean_time(clock, lambda: restore(photons.copy(), None, operator, prior, settings), repeats)
        extra = max(with_prior - plain, 0.0) / iterations / math.prod(s.stop - s.start for s in prior_window(operator))
        if subject.update == "convergent":
            extra *= inner_iterations(prior, subject.n_views) / inner_iterations(prior, n_views)
    return Rates(plain / ((iterations + 1) * (n_views + 1) * n_fft * math.log2(n_fft)), otfs / (n_views * n_fft), extra)


def _settings(subject: Subject, iterations: int) -> CalibratedSettings:
    return CalibratedSettings(
        method=subject.method,
        iterations=iterations,
        voxel_zyx_um=(1.0, 1.0, 1.0),
        sigma=5 / 255,
        update=subject.update,
        device=subject.device,
        tau=0.01,
        background=5.0,
        intensity_scale=50.0,
        saturation=65535.0,
    )


def _finish(estimate: np.ndarray) -> None:
    """Take an estimate through all that a worker does until it is encoded."""
    shape = triple(estimate.shape)
    box, half = Box.of_shape(shape), triple(n // 2 for n in shape)
    levels = (Level((1, 1, 1), shape, shape, None, in_task=True), Level((2, 2, 2), half, half, None, in_task=True))
    kept = block.kept_voxels(estimate, BlockTask(0, 0, 0, _INNER, box, box, box), blend=_BLEND)
    stored, _ = block.to_stored(kept, np.dtype(np.uint16), 1.0, None)
    for _ in block.levels_of(stored, levels):
        pass


_INNER: Triple = (1, 1, 1)
"""Position of a block with lower neighbours on every axis."""
_BLEND: Triple = (4, 4, 4)


def _clock(device: str) -> Callable[[], float]:
    return time.process_time if device == "cpu" else _finished_on_gpu


def _finished_on_gpu() -> float:
    """Return the time when the GPU has done all that it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def _mean_time(clock: Callable[[], float], action: Callable[[], object], repeats: int = 2) -> float:
    """Return the mean time of an action, the first time included: a block finds few warm arrays either."""
    started = clock()
    for _ in range(repeats):
        action()
    return (clock() - started) / repeats
