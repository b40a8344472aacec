"""Cores, memory and GPUs of this machine, or the share of it that a container or a batch job has."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from dask.system import cpu_count
from distributed.system import memory_limit

from bigdeconv.planning.tuned import CUDA_BUILD_BYTES, PROCESS_BYTES

_UNLIMITED_BYTES = 2**60
"""Limits from here on are those of control groups without one."""


def n_cores() -> int:
    """Return the cores that this process may use: affinity and quotas count."""
    return int(cpu_count())


def memory_bytes() -> int:
    """Return the memory that this process may use: that of the machine, its container, or its step of a batch job."""
    return min(int(memory_limit()), cgroup_memory_bytes() or _UNLIMITED_BYTES)


def cgroup_memory_bytes(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the smallest memory limit of this process's control group and those above it; None without one.

    Dask looks at the outermost group only, while a batch system limits a nested one for each step of a job.

    Parameters
    ----------
    membership : Path
        File that names the control groups of the process.
    root : Path
        Mount point of the control groups.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    limits: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            limits += _limits(root, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits(root / "memory", path, "memory.limit_in_bytes")
    return min(limits, default=None)


def _limits(root: Path, path: str, name: str) -> list[int]:
    """Return the limits of a control group and of those above it."""
    group = root / path.lstrip("/")
    folders = [group, *group.parents]
    found = []
    for folder in folders[: folders.index(root) + 1]:
        try:
            limit = int((folder / name).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if limit < _UNLIMITED_BYTES:
            found.append(limit)
    return found


def process_bytes() -> int:
    """Return the resident memory of a process with the libraries that are installed here, before any block."""
    return PROCESS_BYTES + (CUDA_BUILD_BYTES if torch.version.cuda else 0)


def n_cuda_devices() -> int:
    """Return the number of CUDA devices that this process sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_here(device: Literal["cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Return a device if this process has it, else the CPU: a driver may run beside workers with GPUs without one of its own."""
    return "cuda" if device == "cuda" and n_cuda_devices() else "cpu"


def cuda_memory_bytes() -> int:
    """Return the memory of the CUDA device of this process that has least."""
    return min(int(torch.cuda.get_device_properties(i).total_memory) for i in range(n_cuda_devices()))


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU on which a process computes."""

    name: str
    identity: str
    """The same for all processes that compute on it."""
    free_bytes: int
    """Memory that no other process has taken."""


def gpu() -> Gpu | None:
    """Return the GPU on which this process computes, the first that it sees; None without one."""
    if not n_cuda_devices():
        return None
    properties = torch.cuda.get_device_properties(0)
    identity = (
        f"{getattr(properties, 'uuid', os.environ.get('CUDA_VISIBLE_DEVICES', 'the first'))} of {platform.node()}"
    )
    # What this process keeps is released before it restores another window.
    free = torch.cuda.mem_get_info(0)[0] + torch.cuda.memory_reserved(0)
    return Gpu(properties.name, identity, int(free))


def release_gpu_memory() -> None:
    """Give back what torch keeps of a GPU's memory: a worker on this machine needs it next."""
    if n_cuda_devices():
        torch.cuda.empty_cache()
