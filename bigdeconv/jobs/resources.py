"""Workers of a job: their number, and the share of the machine's memory, cores and GPUs that each of them gets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from bigdeconv.engine import machine
from bigdeconv.errors import InvalidInputError
from bigdeconv.planning.resources import Resources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bigdeconv.config import JobConfig

MEMORY_SHARE = 0.7
"""Part of the machine's memory that local workers may plan with."""
DEVICE_SHARE = 0.85
"""Part of a GPU's memory that blocks may take."""
MIN_WORKER_BYTES = 3 * 2**30
REMOTE_WORKER_BYTES = 8 * 2**30
"""Assumed memory of a worker of a running cluster where --memory is not given."""


def find_resources(config: JobConfig, gpus: Sequence[machine.Gpu | None] | None = None) -> Resources:
    """Return one worker per GPU, or one per core as memory allows, unless the settings say otherwise.

    Parameters
    ----------
    config : JobConfig
    gpus : sequence of Gpu or None, optional
        GPU of each worker of a running cluster, which decide instead of those of this machine; none for workers with CPUs.

    Raises
    ------
    InvalidInputError
        If a GPU is asked for on a machine without one.
    """
    if gpus is not None:
        found = [gpu for gpu in gpus if gpu is not None]
        device = config.device or ("cuda" if found and len(found) == len(gpus) else "cpu")
        gpu_bytes = min((gpu.free_bytes for gpu in found), default=None) if device == "cuda" else None
        return _resources(config, 0, device, gpu_bytes)
    here = 0 if config.device == "cpu" else machine.n_cuda_devices()
    if config.device == "cuda" and here == 0 and config.scheduler is None:
        raise InvalidInputError("device: got cuda, but torch finds no CUDA device here; use --device cpu or auto.")
    device = "cuda" if here or config.device == "cuda" else "cpu"
    return _resources(config, here, device, machine.cuda_memory_bytes() if here else None)


def local_workers(planned: Resources) -> Resources:
    """Return planned workers as this machine can start them: a run may be resumed where there are fewer GPUs.

    Raises
    ------
    InvalidInputError
        If the run was planned for GPUs and this machine has none.
    """
    if planned.device == "cpu":
        return planned
    if not (gpus := machine.n_cuda_devices()):
        raise InvalidInputError(
            "device: the run was planned for GPUs, and torch finds no CUDA device here; continue it on a machine with one, or "
            "with --scheduler on workers with GPUs, or begin anew with --device cpu."
        )
    return replace(planned, workers=min(planned.workers, gpus))


def _resources(config: JobConfig, gpus: int, device: Literal["cpu", "cuda"], gpu_bytes: int | None) -> Resources:
    cores = machine.n_cores()
    workers = min(config.workers or gpus, gpus) if gpus else config.workers or _workers_that_fit(config, cores)
    return Resources(
        workers,
        threads=max(cores // workers, 1),
        budget_bytes=_budget_bytes(config, workers),
        device=device,
        device_budget_bytes=None if gpu_bytes is None else int(DEVICE_SHARE * gpu_bytes),
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
