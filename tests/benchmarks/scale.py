"""Driver and scheduler over many blocks: a stored run whose solver is replaced by a copy of a tiny array.

python tests/benchmarks/scale.py [--blocks 100000] [--workers 2]

Scheduler and workers are processes of their own.  Printed: growth of the driver and of the scheduler after the first thousand
blocks, CPU time per block of each, bytes per journal line, and the CPU time of a resume until its first block is computed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bigdeconv import pipeline  # noqa: E402
from bigdeconv.calibration.channel import ChannelCalibration  # noqa: E402
from bigdeconv.calibration.numbers import Findings  # noqa: E402
from bigdeconv.engine import schedule  # noqa: E402
from bigdeconv.engine.block import Solved  # noqa: E402
from bigdeconv.engine.clusters.connection import connect  # noqa: E402
from bigdeconv.engine.recipe import ChannelNumbers  # noqa: E402
from bigdeconv.jobs.job import Job  # noqa: E402
from bigdeconv.jobs.open_run import OpenRun  # noqa: E402
from bigdeconv.jobs.record import record_of  # noqa: E402
from bigdeconv.numerics.camera import DataMask  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bigdeconv.engine.clusters.connection import Connection

WARM_BLOCKS = 1000
"""Blocks after which measuring begins."""
LAST_BLOCKS = 10
"""Blocks that are left to the resume."""
TINY = np.zeros((4, 4, 4), np.float32)
SOLVED = {"read_seconds": 0.123, "solve_seconds": 12.345, "voxels": 64**3}
MERGED = {"max": 1234.5678, "write_seconds": 0.123}
"""Statistics of every block."""


@dataclass(slots=True)
class Measurement:
    """Cost of a run over many blocks."""

    blocks: int = 0
    driver_growth_mb: float = 0.0
    scheduler_growth_mb: float = 0.0
    driver_cpu_ms: float = 0.0
    """Per block."""
    scheduler_cpu_ms: float = 0.0
    """Per block."""
    journal_bytes: float = 0.0
    """Per block."""
    resume_cpu_s: float = 0.0
    """Of the driver, from opening the run until its first block is computed."""
    seconds: float = 0.0
    """Of the run without the resume."""


def solve(token, task):
    """Stand in for solving a block."""
    return Solved(TINY.copy(), SOLVED)


def merge(token, task, solved, overlaps):
    """Stand in for merging and writing a block."""
    return {"block": task.index, **solved.stats, **MERGED}


class Stopped(Exception):
    """Ends a run at a block."""


def run(blocks: int, workers: int) -> Measurement:
    """Do all blocks but a few, then resume and do one of those."""
    result = Measurement(blocks)
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder), workers) as (address, scheduler):
        stored = stored_run(Path(folder) / "output.zarr", blocks)
        with connect(address, stored.record.facts.resources) as connection:
            _run_nearly_all(connection, stored, scheduler, result)
            n_bytes = sum(path.stat().st_size for path in stored.ledger.journal.folder.iterdir())
            result.journal_bytes = n_bytes / stored.journal.blocks_finished
            result.resume_cpu_s = resume(connection, stored.output)
    return result


def stored_run(output: Path, blocks: int) -> OpenRun:
    """Store a run of about as many blocks, in ten layers; no volume exists."""
    edge = 64 * round((blocks / 10) ** 0.5)
    plan = pipeline.plan(
        input="unread.zarr",
        output=str(output),
        tczyx_shape=(1, 1, 640, edge, edge),
        method="rl",
        block_shape=(64, 64, 64),
        memory="1TiB",
        workers=1,
        device="cpu",
    )
    settings = plan.facts.settings.calibrated(tau=0.0, background=5.0, intensity_scale=50.0)
    job = Job(
        plan, {0: ChannelCalibration(ChannelNumbers(settings, DataMask(), 1.0), plan.psfs[0], Findings(), ())}, {}
    )
    return OpenRun.create(output, job, record_of(job))


def _run_nearly_all(connection: Connection, run: OpenRun, scheduler: psutil.Process, result: Measurement) -> None:
    """Run until a few blocks are left; compare memory and CPU time with those after the first blocks."""
    processes = {"driver": psutil.Process(), "scheduler": scheduler}
    before: dict[str, tuple[float, float]] = {}
    counted = run.record.facts.n_blocks - LAST_BLOCKS - WARM_BLOCKS

    def on_finished(record, progress):
        run.append(record)
        if progress.blocks_finished == WARM_BLOCKS:
            before.update({name: _cost(p) for name, p in processes.items()})
        if progress.blocks_finished == WARM_BLOCKS + counted:
            raise Stopped

    started = time.monotonic()
    with run.writing(), suppress(Stopped):
        schedule.run_blocks(connection, run.recipes(threads=1), run.outside(), run.journal, on_finished)
    result.seconds = round(time.monotonic() - started)
    for name, process in processes.items():
        cpu, rss = (b - a for a, b in zip(before[name], _cost(process), strict=True))
        setattr(result, f"{name}_growth_mb", round(rss / 1e6, 1))
        setattr(result, f"{name}_cpu_ms", round(1e3 * cpu / counted, 2))


def resume(connection: Connection, output: Path) -> float:
    """Do the first missing block; return the CPU time from opening the run on."""
    started = time.process_time()

    def on_finished(record, progress):
        raise Stopped

    run = OpenRun.open(output, with_files=True)
    with run.writing(), suppress(Stopped):
        schedule.run_blocks(connection, run.recipes(threads=1), run.outside(), run.journal, on_finished)
    return round(time.process_time() - started, 2)


def _cost(process: psutil.Process) -> tuple[float, float]:
    times = process.cpu_times()
    return times.user + times.system, process.memory_info().rss


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[tuple[str, psutil.Process]]:
    """Start a scheduler and workers, each in a process of its own, on loopback."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")]), "OMP_NUM_THREADS": "1"}
    quiet = {"env": environment, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    file = folder / "scheduler.json"
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    worker = ["worker", "--host", "127.0.0.1", "--nthreads", "2", "--no-dashboard", "--no-nanny"]
    worker += ["--memory-limit", "0", "--scheduler-file", str(file)]
    dask = [sys.executable, "-m", "dask"]
    processes = [subprocess.Popen([*dask, *scheduler], **quiet)]
    try:
        while not file.exists():
            if processes[0].poll() is not None:
                raise RuntimeError("the scheduler did not start")
            time.sleep(0.1)
        processes += [subprocess.Popen([*dask, *worker], **quiet) for _ in range(workers)]
        yield json.loads(file.read_text())["address"], psutil.Process(processes[0].pid)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    install_stubs()
    for name, value in asdict(run(arguments.blocks, arguments.workers)).items():
        print(f"{name:22} {value}")


def install_stubs() -> None:
    """Have blocks solved and merged by the functions above."""
    schedule.tasks.solve, schedule.tasks.merge = _as_importable("solve"), _as_importable("merge")


def _as_importable(name: str):
    """Return a function of this module under a name that workers can import."""
    from importlib import import_module

    return getattr(import_module("tests.benchmarks.scale"), name)


if __name__ == "__main__":
    main()
