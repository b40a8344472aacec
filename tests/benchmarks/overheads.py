"""Cost of checksums, of TLS, of --fsync, and of looking for absent files: one job, run in turns with and without each.

python -m tests.benchmarks.overheads [--edge 192] [--block 48] [--rounds 3]

Printed for each variant, as the median over rounds: seconds from the first block to the end, and CPU time of the driver, with its
scheduler, per block.  Variants take turns within a round, so that a busy machine is busy for all of them.  The second table has a
volume of which nine of ten chunks are absent.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import bigdeconv
from bigdeconv.engine.clusters import local
from tests import make

UNCHECKED, UNSOUGHT = "tests.benchmarks.unchecked", "tests.benchmarks.unsought"
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"preload": UNCHECKED, "tls": False},
    "checksums": {"tls": False},
    "checksums, TLS": {},
    "checksums, TLS, fsync": {"fsync": True},
}
SPARSE: dict[str, dict[str, Any]] = {"absent files not looked for": {"preload": UNSOUGHT}, "looked for": {}}


def measure(
    job: dict[str, Any], output: Path, *, preload: str | None = None, tls: bool = True, fsync: bool = False
) -> tuple[float, float]:
    """Return seconds, and CPU seconds of this process, between the start of the first block and the end."""
    clock: dict[str, tuple[float, float]] = {}

    def connected(_: str) -> None:
        clock["start"] = time.monotonic(), time.process_time()

    with ExitStack() as patches:
        if not tls:
            patches.enter_context(mock.patch.object(local.Security, "temporary", local.Security))
        options = local._nanny_options
        open_ = {} if tls else {"protocol": "tcp", "security": None}

        def nanny(*arguments: Any) -> dict[str, Any]:
            found = options(*arguments) | open_
            found["env"] = found["env"] | {"PYTHONPATH": os.environ["PYTHONPATH"]}
            return found | {"preload": [*found["preload"], *([preload] if preload else [])]}

        scheduler = local.Scheduler
        patches.enter_context(mock.patch.object(local, "_nanny_options", nanny))
        patches.enter_context(mock.patch.object(local, "Scheduler", lambda **given: scheduler(**given | open_)))
        events = bigdeconv.Events(connected=connected)
        assert bigdeconv.run(**job, output=str(output), fsync=fsync, overwrite=True, events=events).complete
    return time.monotonic() - clock["start"][0], time.process_time() - clock["start"][1]


def table(job: dict[str, Any], variants: dict[str, dict[str, Any]], folder: Path, rounds: int) -> None:
    """Run a job in all variants, and print what each takes beside the first."""
    n_blocks = bigdeconv.plan(**job).facts.n_blocks
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            found[name].append(measure(job, folder / "out.zarr", **variant))
    first = median(seconds for seconds, _ in next(iter(found.values())))
    print(f"\n| {n_blocks} blocks, with | seconds | ratio | driver, ms of CPU per block |\n|---|---|---|---|")
    for name, values in found.items():
        seconds, cpu = (median(column) for column in zip(*values, strict=True))
        print(f"| {name} | {seconds:.2f} | {seconds / first:.3f} | {1e3 * cpu / n_blocks:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edge", type=int, default=192)
    parser.add_argument("--block", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    folder = Path(tempfile.mkdtemp())
    try:
        job: dict[str, Any] = {
            "input": str(make.volume(folder / "in.zarr", make.scene(*(arguments.edge,) * 3), chunk=(48, 48, 48))),
            "psf": str(make.psf_tiff(folder / "psf.tif")),
            **{"method": "rl", "iterations": 3, "device": "cpu", "workers": 2, "seam_probes": 0, "background": 20},
            **{"intensity_scale": 100, "output_scale": 8, "block_shape": (arguments.block,) * 3},
        }
        table(job, VARIANTS, folder, arguments.rounds)
        for number, chunk in enumerate(sorted(p for p in Path(job["input"], "0", "c").rglob("*") if p.is_file())):
            if number % 10:
                chunk.unlink()
        table(job, SPARSE, folder, arguments.rounds)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
