"""How the memory, cores and GPUs of this machine are shared out to the workers of a job."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from bigdeconv.deconvolution import cuda_device_count, device_memory_bytes
from bigdeconv.errors import InvalidInputError

if TYPE_CHECKING:
    from bigdeconv.config import JobConfig

MEMORY_SHARE = 0.7
"""Part of the machine's memory that local workers may plan with."""
DEVICE_SHARE = 0.85
"""Part of a GPU's memory that blocks may take."""
LEAST_WORKER_BYTES = 3 * 2**30
REMOTE_WORKER_BYTES = 8 * 2**30
"""What a worker of a running cluster is taken to have unless --memory says more."""


@dataclass(frozen=True, slots=True)
class Shares:
    """So many workers of this machine, and what each of them gets."""

    workers: int
    threads: int
    cuda: bool
    """Whether each has a GPU of its own."""
    budget_bytes: int
    device_budget_bytes: int | None
    """Of its GPU's memory."""


def share_out(config: JobConfig) -> Shares:
    """Return what each worker gets: one worker per GPU, or one per core as memory allows, unless the settings say how many.

    Raises
    ------
    InvalidInputError
        If a GPU is asked for where there is none.
    """
    cores = len(os.sched_getaffinity(0))
    gpus = 0 if config.device == "cpu" else cuda_device_count()
    if config.device == "cuda" and gpus == 0 and config.scheduler is None:
        raise InvalidInputError("device: got cuda, but torch finds no CUDA device here; use --device cpu or auto.")
    workers = min(config.workers or gpus, gpus) if gpus else config.workers or _workers_that_fit(config, cores)
    return Shares(
        workers,
        threads=max(cores // workers, 1),
        cuda=gpus > 0,
        budget_bytes=_budget_bytes(config, workers),
        device_budget_bytes=int(DEVICE_SHARE * device_memory_bytes()) if gpus else None,
    )


def _workers_that_fit(config: JobConfig, cores: int) -> int:
    memory = LEAST_WORKER_BYTES if config.memory == "auto" else config.memory
    return max(min(cores, int(MEMORY_SHARE * _memory_bytes() // memory)), 1)


def _budget_bytes(config: JobConfig, workers: int) -> int:
    if config.memory != "auto":
        return config.memory
    if config.scheduler is not None:
        return REMOTE_WORKER_BYTES
    return int(MEMORY_SHARE * _memory_bytes() / workers)


def _memory_bytes() -> int:
    """Return the memory of this machine, or what a batch system's control group allows of it."""
    total: int = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        return min(total, int(limit.read_text()))
    except (OSError, ValueError):
        return total
