"""How the memory, cores and GPUs of this machine are shared out to the workers of a job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from bigdeconv.deconvolution import cuda_device_count
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


def local_workers(config: JobConfig) -> tuple[int, int, bool]:
    """Return processes, threads for each, and whether each gets a GPU."""
    cores = len(os.sched_getaffinity(0))
    gpus = 0 if config.device == "cpu" else cuda_device_count()
    if config.device == "cuda" and gpus == 0 and config.scheduler is None:
        raise InvalidInputError("device: got cuda, but torch finds no CUDA device here; use --device cpu or auto.")
    if gpus:
        count = min(config.workers or gpus, gpus)
        return count, max(cores // count, 1), True
    memory = LEAST_WORKER_BYTES if config.memory == "auto" else config.memory
    count = config.workers or max(min(cores, int(MEMORY_SHARE * _memory_bytes() // memory)), 1)
    return count, max(cores // count, 1), False


def budget_bytes(config: JobConfig, workers: int) -> int:
    """Return the memory that each worker may take."""
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
