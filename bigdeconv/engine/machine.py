"""Cores, memory and GPUs of this machine, or the share of it that a container or a batch job has."""

from __future__ import annotations

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
    """Return the memory of the first CUDA device."""
    return int(torch.cuda.get_device_properties(0).total_memory)
