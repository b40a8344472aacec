"""Measuring tools of all benchmarks: the cost of a call, the peak of memory, the machine and its rates.

The peers run this file too, with an interpreter that may have nothing but numpy: it imports no more at the top.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, order=True, slots=True)
class Cost:
    """Cost of a call; ordered by processor time, which a busy machine disturbs least."""

    cpu_seconds: float
    seconds: float


def once(call: Callable[[], object]) -> Cost:
    """Call once."""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    call()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    return Cost(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, seconds)


def cheapest(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Cost]:
    """Call each once to warm up, then all in turn, and return the least cost of each."""
    for call in calls.values():
        call()
    found: dict[str, list[Cost]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(once(call))
    return {name: min(costs) for name, costs in found.items()}


def resident_bytes() -> int:
    """Return the resident memory of this process (Linux)."""
    return _status("VmRSS")


def forget_peak() -> None:
    """Begin to count anew for `peak_bytes` (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the largest resident memory of this process since `forget_peak` (Linux)."""
    return _status("VmHWM")


def _status(name: str) -> int:
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def machine() -> dict[str, Any]:
    """Describe the machine."""
    import torch

    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def rates(shape: tuple[int, int, int], edge: int, device: str = "cpu") -> dict[str, float]:
    """Measure the bounds of every method: real transforms there and back, matrix products, copies; the best of a few.

    Parameters
    ----------
    shape : tuple of int
        Extent of the transforms.
    edge : int
        Extent of the matrices.
    device : str
    """
    import torch

    volume = torch.rand(shape, device=device)
    matrix = torch.rand(edge, edge, device=device)
    target = torch.empty_like(volume)
    calls: dict[str, Callable[[], object]] = {
        "transforms": lambda: torch.fft.irfftn(torch.fft.rfftn(volume), s=shape),
        "product": lambda: matrix @ matrix,
        "copy": lambda: target.copy_(volume),
    }
    costs = cheapest({name: finished(call, device) for name, call in calls.items()}, 5)
    n = volume.numel()
    seconds = {name: cost.seconds if device == "cuda" else max(cost.cpu_seconds, 1e-9) for name, cost in costs.items()}
    return {
        # A real transform counts as 5/2 n log2 n operations each way.
        "fft_gflops": 5 * n * float(torch.tensor(n).log2()) / seconds["transforms"] * 1e-9,
        "fft_pair_ns_per_voxel": seconds["transforms"] / n * 1e9,
        "product_gflops": 2 * edge**3 / seconds["product"] * 1e-9,
        "copy_gb_per_s": 8 * n / seconds["copy"] * 1e-9,
    }


def finished(call: Callable[[], object], device: str) -> Callable[[], object]:
    """Return a call that waits until the device is done."""
    if device != "cuda":
        return call
    import torch

    def waiting() -> None:
        call()
        torch.cuda.synchronize()

    return waiting


def random_volume(shape: tuple[int, int, int], device: str = "cpu") -> torch.Tensor:
    """Return a volume between 0 and 1, the same for every run."""
    import torch

    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
