"""Promised and peak memory of the driver while it plans and calibrates: ``python -m tests.benchmarks.driver_memory``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests import make

CASES = (("rl", 1, "uint16"), ("garl", 1, "uint16"), ("rltv", 8, "uint16"), ("rl", 1, "float64"))
"""Method, views, and type of the input."""
SHAPE, VIEW_SHAPE = (200, 256, 256), (128, 160, 160)


def write_inputs(folder: Path, views: int, dtype: str) -> None:
    """Write a volume of noise and its PSF; in a process of its own, because this takes more memory than the driver."""
    from bigdeconv import psf

    shape, axes = ((views, *VIEW_SHAPE), "vzyx") if views > 1 else (SHAPE, "zyx")
    chunk = (64,) * 3 if views == 1 else (1, 64, 64, 64)
    make.volume(folder / "in.zarr", np.random.default_rng(0).poisson(30, shape).astype(dtype), axes=axes, chunk=chunk)
    view = psf.gaussian((2.0, 2.0, 2.0))
    make.psf_tiff(folder / "psf.tif", view if views == 1 else np.stack([view] * views))


def measure_here(folder: Path, method: str, views: int) -> dict[str, int]:
    """Plan and calibrate a job in this process; return the promised and the peak bytes."""
    from bigdeconv.config import make_config
    from bigdeconv.jobs.job import calibrate_job, plan_job

    settings = {"method": method, "iterations": 10, "block_shape": (64, 64, 64), "memory": "16GiB", "workers": 2}
    places = {"input": str(folder / "in.zarr"), "output": str(folder / "out.zarr"), "psf": str(folder / "psf.tif")}
    plan = plan_job(make_config(settings | places | ({"views_axis": "v"} if views > 1 else {})))
    calibrate_job(plan)
    # Not getrusage, whose peak a process inherits from the one that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024
    return {"promised": sum(size for _, size in plan.driver_memory), "peak": peak}


def measure(method: str, views: int, dtype: str) -> dict[str, int]:
    """Measure a case in processes of their own, with an empty cache, so that costs and halos are measured too."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"XDG_CACHE_HOME": folder}
        for step in ("inputs", "driver"):
            command = [sys.executable, "-m", "tests.benchmarks.driver_memory", step, folder, method, str(views), dtype]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=make.ROOT)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print a row for each case, or do one step of one."""
    if len(sys.argv) > 1:
        step, folder, method, views, dtype = sys.argv[1:]
        if step == "inputs":
            write_inputs(Path(folder), int(views), dtype)
        else:
            print(json.dumps(measure_here(Path(folder), method, int(views))))
        return
    print("| case | promised MiB | peak MiB | share |\n| --- | --- | --- | --- |")
    for case in CASES:
        found = measure(*case)
        promised, peak = (found[name] / 2**20 for name in ("promised", "peak"))
        print(f"| {' '.join(map(str, case))} | {promised:.0f} | {peak:.0f} | {peak / promised:.2f} |", flush=True)


if __name__ == "__main__":
    main()
