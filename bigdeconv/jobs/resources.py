"""Workers of a job: their number, and the share of the machine's memory, cores and GPUs that each of them gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bigdeconv.engine import machine
from bigdeconv.errors import InvalidInputError
from bigdeconv.planning.resources import Resources

if TYPE_CHECKING:
    from bigdeconv.config import JobConfig

MEMORY_SHARE = 0.7
"""Part of the machine's memory that local workers may plan with."""
DEVICE_SHARE = 0.85
"""Part of a GPU's memory that blocks may take."""
MIN_WORKER_BYTES = 3 * 2**30
REMOTE_WORKER_BYTES = 8 * 2**30
"""Assumed memory of a worker of a running cluster where --memory is not given."""


def find_resources(config: JobConfig, device: Literal["cpu", "cuda"] | None = None) -> Resources:
    """Return one worker per GPU, or one per core as memory allows, unless the settings say otherwise.

    Parameters
    ----------
    config : JobConfig
    device : {"cpu", "cuda"}, optional
        Device of the blocks.  Default: that of the settings, or else the GPUs of this machine.

    Raises
    ------
    InvalidInputError
        If a GPU is asked for on a machine without one.
    """
    device = device or config.device
    cores = machine.n_cores()
    gpus = 0 if device == "cpu" else machine.n_cuda_devices()
    if device == "cuda" and gpus == 0 and config.scheduler is None:
        raise InvalidInputError("device: got cuda, but torch finds no CUDA device here; use --device cpu or auto.")
    workers = min(config.workers or gpus, gpus) if gpus else config.workers or _workers_that_fit(config, cores)
    return Resources(
        workers,
        threads=max(cores // workers, 1),
        budget_bytes=_budget_bytes(config, workers),
        device="cuda" if gpus or device == "cuda" else "cpu",
        device_budget_bytes=int(DEVICE_SHARE * machine.cuda_memory_bytes()) if gpus else None,
    )


def _workers_that_fit(config: JobConfig, cores: int) -> int:
    memory = MIN_WORKER_BYTES if config.memory is None else config.memory
    return max(min(cores, int(MEMORY_SHARE * machine.memory_bytes() // memory)), 1)


def _budget_bytes(config: JobConfig, workers: int) -> int:
    if config.memory is not None:
        return int(config.memory)
    if config.scheduler is not None:
        return REMOTE_WORKER_BYTES
    return int(MEMORY_SHARE * machine.memory_bytes() / workers)
