"""Another checkout against this one on the same small workloads, in turn and in one run: ratios of time and memory.

python -m tests.benchmarks.compare OLD_TREE OUT [--repeats 3] [--only WORD] [--small]

Every measurement is a fresh process with ``PYTHONPATH=TREE:TREE/cli``; the trees take turns, so that other work on the machine
disturbs both alike, and a first round only fills caches.  Writes ``compare.json`` and ``compare.md`` in OUT.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
SIZES = {
    "full": {"prior": (60, 96, 250), "data": (96, 128, 128), "run": (48, 192, 192), "block": (160, 160, 160), "blocks": 800},
    "small": {"prior": (12, 16, 24), "data": (12, 16, 16), "run": (16, 48, 48), "block": (32, 32, 32), "blocks": 90},
}  # fmt: skip
"""Shapes z, y, x of the gradient, the iteration, the run's volume and a block; blocks of the driver's run."""


def gradient(size: dict[str, Any], folder: Path) -> dict[str, float]:
    """Return the CPU time of the gradient of the compact prior."""
    import torch

    from bigdeconv import models

    wcrr = _first_of("bigdeconv.numerics.priors.wcrr", "bigdeconv.priors.wcrr")
    model = models.resolve("compact")
    prior, x = wcrr.Wcrr(model, sigma=model.sigma_default, mu_max=3.0), torch.from_numpy(_random(size["prior"]))
    with torch.inference_mode():
        return {"cpu_ms": _least_cpu_ms(lambda: prior.gradient(x))}


def iteration(size: dict[str, Any], folder: Path) -> dict[str, float]:
    """Return the CPU time of an iteration of Richardson-Lucy."""
    import torch

    from bigdeconv import psf

    convolution = _first_of("bigdeconv.numerics.convolution", "bigdeconv.physics.convolution")
    solver = _first_of("bigdeconv.numerics.richardson_lucy", "bigdeconv.solvers.richardson_lucy")
    blur = convolution.Blur(torch.from_numpy(psf.gaussian((2.0, 2.0, 2.0))[None]), size["data"])
    with torch.inference_mode():
        problem = solver.Problem(torch.from_numpy(_random(size["data"])[None]), None, 0.02, blur)
        state = solver.init(problem)
        return {"cpu_ms": _least_cpu_ms(lambda: solver.step(problem, state))}


def run(size: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the time of ``bigdeconv run`` from start to end, all its processes together, and a checksum of the voxels."""
    from bigdeconv import psf

    z, y, x = size["run"]
    write_volume = _first_of("bigdeconv.simulation.volumes", "bigdeconv.phantoms").write_volume
    counts = np.random.default_rng(0).poisson(5.0 + 200.0 * _random(size["run"]) ** 8).astype(np.uint16)
    write_volume(folder / "in.zarr", counts, voxel_zyx_um=(0.3, 0.1, 0.1), name="compare")
    np.save(folder / "psf.npy", psf.gaussian((1.5, 2.0, 2.0)))
    options = [
        f"--block-shape={z},{y // 2},{x // 2}",
        "--psf=psf.npy",
        "--method=rl",
        "--iterations=5",
        "--memory=8GiB",
    ]
    command = ["-m", "bigdeconv_cli", "run", "in.zarr", "out.zarr", *options, "--workers=1", "--device=cpu"]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    files = sorted(path for path in (folder / "out.zarr").glob("[0-9]/c/**/*") if path.is_file())
    if done.returncode or not files:
        raise RuntimeError(done.stderr)
    voxels = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_s": cpu_s, "wall_s": seconds, "voxels": voxels[:8]}


def driver(size: dict[str, Any], folder: Path) -> dict[str, float]:
    """Return the CPU time of driver and scheduler per block, the blocks a copy of a tiny array (`scale`)."""
    from bigdeconv.engine import schedule
    from tests.benchmarks import scale

    schedule.tasks.solve, schedule.tasks.merge = scale.solve, scale.merge
    scale.WARM_BLOCKS = size["blocks"] // 4
    found = scale.run(blocks=size["blocks"], workers=1)
    return {"driver_cpu_ms": found.driver_cpu_ms, "scheduler_cpu_ms": found.scheduler_cpu_ms}


def block(size: dict[str, Any], folder: Path) -> dict[str, float]:
    """Return the peak memory of a process that handles a block as a worker does (`memory`)."""
    from tests.benchmarks import memory

    planned, peak = memory.work(memory.Case(size["block"], (2.0, 2.0, 2.0), "rl"), folder)
    return {"peak_mib": peak / 2**20, "planned_mib": planned / 2**20}


WORKLOADS = {call.__name__: call for call in (gradient, iteration, run, driver, block)}


def compare(old: Path, size: str, repeats: int, caches: Path, only: str = "") -> dict[str, dict[str, list[Any]]]:
    """Return the measurements of both trees, ``{"workload metric": {"old": [...], "new": [...]}}``."""
    trees = {"old": old.resolve(), "new": ROOT}
    found: dict[str, dict[str, list[Any]]] = {}
    for name in (name for name in WORKLOADS if only in name):
        for turn in range(repeats + 1):
            for tree in sorted(trees, reverse=turn % 2 == 1):
                values = measure(name, trees[tree], size, caches / tree)
                for metric, value in values.items() if turn else ():
                    found.setdefault(f"{name} {metric}", {"old": [], "new": []})[tree].append(value)
    return found


def measure(name: str, tree: Path, size: str, cache: Path) -> dict[str, Any]:
    """Run a workload on a tree in a fresh process."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("BIGDECONV_", "MALLOC_"))} | {
        "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "cli")]),
        "OMP_NUM_THREADS": "1",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # as the workers have it
        "XDG_CACHE_HOME": str(cache),
    }
    # -P: this file's folder, where modules have names such as io, stays off the path.
    command = [sys.executable, "-P", __file__, str(tree), "-", "--work", name, "--size", size]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} on {tree}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def table(found: dict[str, dict[str, list[Any]]]) -> str:
    """Return the measurements in Markdown; the unit is the end of a name."""
    lines = ["| Workload | old, min | new, min | new/old, min | new/old, median |", "| --- | --- | --- | --- | --- |"]
    for name, values in found.items():
        old, new = values["old"], values["new"]
        if isinstance(old[0], str):
            same = "the same" if len({*old, *new}) == 1 else "**differ**"
            lines.append(f"| {name} | {old[0]} | {new[0]} | {same} | |")
            continue
        ratios = " | ".join(f"{f(new) / f(old):.3f}" if f(old) else "" for f in (min, statistics.median))
        lines.append(f"| {name} | {min(old):.4g} | {min(new):.4g} | {ratios} |")
    return "\n".join(lines)


def _first_of(new: str, old: str) -> Any:
    """Return the module of one name or the other, whichever a tree has."""
    try:
        return import_module(new)
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("bigdeconv"):
            raise
        return import_module(old)


def _random(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=shape).astype(np.float32)


def _least_cpu_ms(call: Callable[[], object], repeats: int = 5) -> float:
    """Return the least CPU time of a call in ms, after one that warms up."""
    clock = [time.process_time()]
    for _ in range(repeats + 1):
        call()
        clock.append(time.process_time())
    return 1e3 * min(stop - start for start, stop in pairwise(clock[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="the other checkout")
    parser.add_argument("output", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="part of a workload's name")
    parser.add_argument("--small", dest="size", action="store_const", const="small", default="full")
    parser.add_argument("--size", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        import bigdeconv

        assert Path(bigdeconv.__file__).is_relative_to(given.old), bigdeconv.__file__
        print(json.dumps(WORKLOADS[given.work](SIZES[given.size], Path.cwd())))
        return
    given.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as caches:
        found = compare(given.old, given.size, given.repeats, Path(caches), given.only)
    (given.output / "compare.json").write_text(json.dumps(found, indent=1))
    (given.output / "compare.md").write_text(table(found) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
