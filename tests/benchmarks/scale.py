"""Driver and scheduler over many blocks, with the solver replaced by a copy of a tiny array; everything else is the real thing.

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
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import psutil

from bigdeconv.engine import cluster, schedule
from bigdeconv.engine.block import Solved
from bigdeconv.planner import Request, make_plan
from bigdeconv.storage.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
WARM_BLOCKS = 1000
TINY = np.zeros((4, 4, 4), np.float32)


@dataclass(slots=True)
class Measured:
    """What a run over many blocks cost."""

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
    """Of the driver, until the first block of a resumed run is computed."""
    seconds: float = 0.0
    """Of the run, all but the resume."""


def solve(token, task):
    """Stand in for solving a block."""
    return Solved(TINY.copy(), {"read_seconds": 0.123, "solve_seconds": 12.345, "voxels": task.core.size})


def merge(token, task, solved, rims):
    """Stand in for merging and writing a block."""
    return {"block": task.index, **solved.stats, "max": 1234.5678, "write_seconds": 0.123}


class Stopped(Exception):
    """Ends a run at its first block."""


def run(blocks: int, workers: int) -> Measured:
    """Do all blocks but a few, then resume and do those."""
    result = Measured(blocks)
    with tempfile.TemporaryDirectory() as folder, _cluster(Path(folder), workers) as (address, scheduler):
        plan = make_plan(_request(blocks))
        ledger = Ledger.create(Path(folder) / "output.zarr", {}, {})
        recipe = SimpleNamespace(token="scale", plan=plan, scratch=str(ledger.path / "scratch"))
        with cluster.connect(address, cluster.LocalWorkers(1, 1)) as connection:
            _run_nearly_all(connection, recipe, ledger, scheduler, result)
            result.journal_bytes = (ledger.path / "journal.jsonl").stat().st_size / sum(1 for _ in ledger.records())
            recipe.token = "resumed"
            result.resume_cpu_s = _resume(connection, recipe, ledger)
    return result


def _run_nearly_all(connection, recipe, ledger, scheduler, result) -> None:
    """Run until ten blocks are left; compare memory and CPU time with those at the first thousand."""
    processes = {"driver": psutil.Process(), "scheduler": scheduler}
    before: dict[str, tuple[float, float]] = {}
    counted = recipe.plan.n_blocks - 10 - WARM_BLOCKS

    def on_finished(record, progress):
        ledger.append(record)
        if progress.blocks_finished == WARM_BLOCKS:
            before.update({name: _cost(p) for name, p in processes.items()})
        if progress.blocks_finished == WARM_BLOCKS + counted:
            raise Stopped

    started = time.monotonic()
    with ledger.writing(), suppress(Stopped):
        schedule.run_blocks(connection, (recipe,), None, (), on_finished)
    result.seconds = round(time.monotonic() - started)
    for name, process in processes.items():
        cpu, rss = (b - a for a, b in zip(before[name], _cost(process), strict=True))
        setattr(result, f"{name}_growth_mb", round(rss / 1e6, 1))
        setattr(result, f"{name}_cpu_ms", round(1e3 * cpu / counted, 2))


def _resume(connection, recipe, ledger) -> float:
    started = time.process_time()

    def on_finished(record, progress):
        raise Stopped

    ledger = Ledger.open(str(ledger.path).removesuffix(".bigdeconv"))
    with ledger.writing():
        for _ in ledger.records():  # the tally of a resumed run
            pass
        with suppress(Stopped):
            finished = (r for r in ledger.records() if "block" in r)
            schedule.run_blocks(connection, (recipe,), None, finished, on_finished)
    return round(time.process_time() - started, 2)


def _request(blocks: int) -> Request:
    """Return a request for about as many blocks, in ten layers."""
    edge = round((blocks / 10) ** 0.5)
    return Request((640, 64 * edge, 64 * edge), (9, 9, 9), (1.0, 1.0, 1.0), block_shape=(64,) * 3)


def _cost(process: psutil.Process) -> tuple[float, float]:
    times = process.cpu_times()
    return times.user + times.system, process.memory_info().rss


@contextmanager
def _cluster(folder: Path, workers: int) -> Iterator[tuple[str, psutil.Process]]:
    """Start a scheduler and workers, each in a process of its own, on loopback."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")]), "OMP_NUM_THREADS": "1"}
    quiet = {"env": environment, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    file = folder / "scheduler.json"
    scheduler = [sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    worker = [
        sys.executable,
        "-m",
        "dask",
        "worker",
        "--host",
        "127.0.0.1",
        "--nthreads",
        "2",
        "--no-dashboard",
        "--no-nanny",
    ]
    processes = [subprocess.Popen([*scheduler, "--scheduler-file", str(file)], **quiet)]
    try:
        while not file.exists():
            time.sleep(0.1)
        memory = ["--memory-limit", "0", "--scheduler-file", str(file)]
        processes += [subprocess.Popen([*worker, *memory], **quiet) for _ in range(workers)]
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
    schedule.tasks.solve, schedule.tasks.merge = _as_importable("solve"), _as_importable("merge")
    for name, value in asdict(run(arguments.blocks, arguments.workers)).items():
        print(f"{name:22} {value}")


def _as_importable(name: str):
    """Return a function of this module under a name that workers can import."""
    from importlib import import_module

    return getattr(import_module("tests.benchmarks.scale"), name)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
