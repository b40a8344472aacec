"""Shares of the workers' time in a real run.

A worker reads and writes while it computes: waiting is the time in which it computes nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import bigdeconv
from bigdeconv.jobs.open_run import OpenRun
from tests import make

if TYPE_CHECKING:
    from pathlib import Path

PARTS = ("read", "solve", "blend", "write")


def measure(
    folder: Path,
    shape: tuple[int, int, int],
    *,
    core: tuple[int, int, int],
    workers: int,
    scheduler: str | None = None,
    method: str = "garl",
    iterations: int | None = None,
) -> dict[str, float]:
    """Deconvolve a volume in a folder and return the parts' shares of the workers' time from the first block to the last."""
    source = make.volume(folder / "in.zarr", make.scene(*shape), chunk=tuple(min(64, n) for n in shape))
    settings = {
        "input": str(source),
        "output": str(folder / "out.zarr"),
        "psf": [str(make.psf_tiff(folder / "psf.tif"))],
        "method": method,
        "block_shape": core,
        "workers": workers,
        "scheduler": scheduler,
        "device": "cpu",
        **({"iterations": iterations} if iterations else {}),
    }
    times: list[float] = []
    events = bigdeconv.Events(
        phase=lambda phase: times.append(time.perf_counter()) if phase == "blocks" else None,
        progressed=lambda _: times.append(time.perf_counter()),
    )
    summary = bigdeconv.run(**settings, events=events)
    assert summary.complete, summary.errors
    whole = workers * (times[-1] - times[0])
    journal = OpenRun.open(settings["output"]).journal
    found = {part: journal.seconds[f"{part}_seconds"] / whole for part in PARTS}
    return {**found, "wait": 1 - found["solve"], "blocks": journal.blocks_finished, "seconds": times[-1] - times[0]}
