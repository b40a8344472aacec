"""Workers of a job, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Resources:
    """Number of workers, and what each of them gets."""

    workers: int = 1
    threads: int = 1
    """Cores of a worker."""
    budget_bytes: int = 8 * 2**30
    """Memory of a worker."""
    device: Literal["cpu", "cuda"] = "cpu"
    device_budget_bytes: int | None = None
    """Memory of a worker's GPU; None where blocks are computed on CPUs, or on GPUs of other machines."""
