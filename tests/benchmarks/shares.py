"""What the workers' time of a real run goes into.

A worker reads and writes while it computes: what it waits is the time in which it computes nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import bigdeconv
from bigdeconv.pipeline import Events
from bigdeconv.storage.ledger import Ledger
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
    events = Events(
        phase=lambda phase: times.append(time.perf_counter()) if phase == "blocks" else None,
        progressed=lambda _: times.append(time.perf_counter()),
    )
    summary = bigdeconv.run(bigdeconv.make_config(settings), events=events)
    assert summary.complete, summary.errors
    whole = workers * (times[-1] - times[0])
    blocks = [record for record in Ledger.open(settings["output"]).records() if "block" in record]
    shares = {part: sum(record.get(f"{part}_seconds", 0.0) for record in blocks) / whole for part in PARTS}
    return {**shares, "wait": 1 - shares["solve"], "blocks": len(blocks), "seconds": times[-1] - times[0]}
