"""Promised against measured memory: a fresh process takes a block through the steps of a worker, over a grid of jobs.

python tests/benchmarks/memory.py [--only WORD]

A row per job: the peak that the plan promises, the peak that the kernel has counted, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.measure import peak_bytes  # noqa: E402

if TYPE_CHECKING:
    from bigdeconv.engine.recipe import Recipe

GIB = 2**30
VOXEL_UM = (0.3, 0.15, 0.15)


@dataclass(frozen=True, slots=True)
class Case:
    """One job."""

    core: tuple[int, int, int]
    sigma: tuple[float, float, float]
    """Of a Gaussian PSF, in voxels."""
    method: str = "garl"
    views: int = 1
    dtype: str = "uint16"
    output: str = "uint16"
    model: str = "compact"
    holes: bool = False
    """Whether some voxels are not valid, so that there are voxel weights."""

    def __str__(self) -> str:
        core = "x".join(str(n) for n in self.core)
        sigma = "x".join(f"{s:g}" for s in self.sigma)
        model = f" {self.model}" if self.method == "garl" else ""
        holes = ", holes" if self.holes else ""
        return f"{self.method}{model} {core}, sigma {sigma}, {self.views} views, {self.dtype} to {self.output}{holes}"


GRID = (
    Case((96,) * 3, (1.0,) * 3, "rl"),
    Case((192,) * 3, (2.0,) * 3, "rl"),
    Case((192,) * 3, (2.0,) * 3, "rltv"),
    Case((192,) * 3, (2.0,) * 3, "garl"),
    Case((192,) * 3, (2.0,) * 3, "garl", model="large"),
    Case((192,) * 3, (2.0,) * 3, "rl", output="float32"),
    Case((192,) * 3, (2.0,) * 3, "rl", dtype="uint8"),
    Case((192,) * 3, (2.0,) * 3, "rl", dtype="float32", output="float32", holes=True),
    Case((192,) * 3, (2.0,) * 3, "garl", dtype="float64", output="float32"),
    Case((256,) * 3, (0.0,) * 3, "garl"),
    Case((256,) * 3, (0.0,) * 3, "rltv"),
    Case((320,) * 3, (1.0,) * 3, "rl"),
    Case((64, 512, 512), (2.0, 1.0, 1.0), "garl"),
    Case((16, 1024, 1024), (1.0, 2.0, 2.0), "rl"),
    Case((1, 2048, 2048), (0.0, 2.0, 2.0), "rl"),
    Case((512, 64, 64), (4.0, 4.0, 4.0), "rltv"),
    Case((64,) * 3, (4.0,) * 3, "garl", views=4),
    Case((128,) * 3, (2.0,) * 3, "garl", views=8),
    Case((96,) * 3, (2.0,) * 3, "rl", views=32),
    Case((96,) * 3, (2.0,) * 3, "garl", views=32, holes=True),
)


def measure(case: Case) -> tuple[int, int]:
    """Return the promised and the measured peak in bytes of a fresh process."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")]),
        "OMP_NUM_THREADS": "1",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # as the workers have it
    }
    # Dask puts it into the environment of a process that starts a worker; our workers run without.
    environment.pop("MALLOC_TRIM_THRESHOLD_", None)
    command = [sys.executable, "-m", "tests.benchmarks.memory", "--measure", json.dumps(asdict(case))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    promised, peak = json.loads(done.stdout)
    return promised, peak


def work(case: Case, folder: Path) -> tuple[int, int]:
    """Restore a block, then the next one while another is read and the first is merged; return promise and peak."""
    import distributed  # noqa: F401  a worker has it in memory
    import torch

    from bigdeconv.engine.block import merge_block, solve_block
    from bigdeconv.storage.arrays import read_box

    torch.set_num_threads(1)
    recipe = make_recipe(case, folder)
    task = max(recipe.plan.tasks(), key=lambda t: t.read.size)
    first = solve_block(recipe, task)
    with ThreadPoolExecutor(2) as threads:
        second = threads.submit(solve_block, recipe, task)
        following = threads.submit(
            read_box,
            recipe.volume,
            task.read,
            timepoint=task.timepoint,
            channel=task.channel,
            view_axis=recipe.view_axis,
        )
        # Again and again, so that it meets the peak of the restoration.
        while not (second.done() and following.done()):
            merge_block(recipe, task, first, {})
        second.result()
        following.result()
    return recipe.plan.peak_bytes_per_worker, peak_bytes()


def make_recipe(case: Case, folder: Path, iterations: int = 2) -> Recipe:
    """Write the input, store a job with two blocks, and return its recipe."""
    from bigdeconv.calibration import block_cost, halo
    from bigdeconv.calibration.channel import ChannelCalibration
    from bigdeconv.calibration.numbers import Findings
    from bigdeconv.config import make_config
    from bigdeconv.engine.recipe import ChannelNumbers
    from bigdeconv.jobs.job import Job, plan_job
    from bigdeconv.jobs.open_run import OpenRun
    from bigdeconv.jobs.output_metadata import output_specs
    from bigdeconv.jobs.record import record_of
    from bigdeconv.numerics.camera import DataMask
    from bigdeconv.planning import planner
    from bigdeconv.planning.cost import Costs
    from bigdeconv.storage.collection import create_outputs

    _write_input(case, folder)
    # The driver's work, not the worker's: without a calibrated halo a plan takes twice the PSF's radius.
    with (
        mock.patch.object(block_cost, "measure", return_value=Costs()),
        mock.patch.object(halo, "make_plan", lambda request, *_: planner.make_plan(request)),
    ):
        plan = plan_job(
            make_config(
                {
                    "input": str(folder / "in.zarr"), "output": str(folder / "out.zarr"), "psf": str(folder / "psf.npy"),
                    "method": case.method, "model": case.model, "views_axis": "v", "iterations": iterations, "sigma": 5 / 255,
                    "block_shape": case.core, "dtype": case.output, "memory": "1TiB", "workers": 1, "device": "cpu",
                }
            )
        )  # fmt: skip
    settings = plan.facts.settings.calibrated(tau=0.01, background=5.0, intensity_scale=50.0, saturation=65535.0)
    numbers = ChannelNumbers(settings, DataMask(0.0 if case.holes else None, 10.0, 5.0, 50.0), output_scale=8.0)
    job = Job(plan, {0: ChannelCalibration(numbers, plan.psfs[0], Findings(), ())}, {})
    run = OpenRun.create(folder / "out.zarr", job, record_of(job))
    create_outputs(run.output, plan.facts.images, output_specs(run.record))
    (recipe,) = run.recipes(threads=1)
    return recipe


def _write_input(case: Case, folder: Path) -> None:
    """Write a volume of two blocks and more, a few planes at a time, and its PSFs."""
    from bigdeconv import psf
    from bigdeconv.storage.arrays import write_region
    from bigdeconv.storage.output import LevelSpec, OutputSpec, create_output

    z, y, x = case.core
    shape = (case.views, 2 * z if z > 1 else 1, y, x if z > 1 else 2 * x)
    axes, chunk = ("v", "z", "y", "x"), (1, *(min(64, n) for n in shape[1:]))
    level = LevelSpec(shape, chunk, None, (1.0, *VOXEL_UM), (0.0,) * 4)
    spec = OutputSpec(axes, (None, *("micrometer",) * 3), case.dtype, (level,), "0.5", "memory", (), {})
    create_output(folder / "in.zarr", spec)
    planes = np.random.default_rng(0).poisson(20, (chunk[1], *shape[2:])).astype(case.dtype)
    if case.holes:
        planes[:, :8, :8] = 0
    for v in range(shape[0]):
        for start in range(0, shape[1], chunk[1]):
            stop = min(start + chunk[1], shape[1])
            index = (v, slice(start, stop), slice(0, shape[2]), slice(0, shape[3]))
            write_region(folder / "in.zarr", "0", index, planes[: stop - start])
    np.save(folder / "psf.npy", np.stack([psf.gaussian(case.sigma, truncate=4.0)] * case.views))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a row's name")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        values = json.loads(arguments.measure)
        case = Case(**values | {name: tuple(values[name]) for name in ("core", "sigma")})
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(work(case, Path(folder))))
        return
    print("promised measured  ratio")
    for case in GRID:
        if arguments.only in str(case):
            promised, peak = measure(case)
            print(f"{promised / GIB:8.2f} {peak / GIB:8.2f} {peak / promised:6.2f}  {case}", flush=True)


if __name__ == "__main__":
    main()
