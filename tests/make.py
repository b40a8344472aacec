"""Small volumes, PSF files and outputs to test with, and ways to look at what became of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
import zarr
from scipy import ndimage
from typer.testing import CliRunner

from bigdeconv import psf
from bigdeconv.jobs.job import calibrate_job, plan_job
from bigdeconv.jobs.open_run import OpenRun
from bigdeconv.jobs.output_metadata import output_specs
from bigdeconv.jobs.record import record_of
from bigdeconv.storage.arrays import read_region, write_region
from bigdeconv.storage.collection import create_outputs
from bigdeconv.storage.ledger import ledger_path
from bigdeconv.storage.output import LevelSpec, OutputSpec, create_output
from bigdeconv.storage.seals import unsealed

ROOT = Path(__file__).parents[1]
VOXEL_UM = {"z": 0.3, "y": 0.1, "x": 0.1}
SIGMA_ZYX = (1.0, 1.2, 1.2)
"""Of the PSF that `psf_tiff` writes, in voxels."""
RL = ("--method", "rl", "--iterations", "3", "--device", "cpu")
"""A job that costs little."""


def scene(*shape, seed=0, background=20.0, signal=400.0, dtype="uint16"):
    """Blurred points with Poisson noise on a background; any number of axes, the last ones are z y x."""
    rng = np.random.default_rng(seed)
    points = np.where(rng.random(shape) < 0.01, rng.uniform(0.5, 1.0, shape), 0.0)
    sigma = (0.0,) * max(len(shape) - 3, 0) + SIGMA_ZYX[-min(len(shape), 3) :]
    blurred = ndimage.gaussian_filter(points, sigma, mode="constant")
    return rng.poisson(background + signal * blurred / blurred.max()).astype(dtype)


def volume(path, data, *, axes=None, chunk=None, shard=None, units=True, version="0.5"):
    """Write an OME-Zarr image of one level and return its path; ``chunk`` is for all axes, the whole array if not given."""
    axes = axes or "tczyx"[-data.ndim :]
    scale = tuple(VOXEL_UM.get(a, 1.0) for a in axes)
    level = LevelSpec(data.shape, chunk or data.shape, shard, scale, (0.0,) * data.ndim)
    named = tuple("micrometer" if units and a in VOXEL_UM else None for a in axes)
    create_output(path, OutputSpec(tuple(axes), named, data.dtype.str, (level,), version, "image", (), {}))
    write_region(path, "0", tuple(slice(0, n) for n in data.shape), data)
    return path


def plate(path, version, fields):
    """Write a plate of one-level images, ``fields`` by ``row/column/field``, and return its path."""
    zarr_format = 3 if version == "0.5" else 2
    wells = list(dict.fromkeys(name.rsplit("/", 1)[0] for name in fields))
    rows, columns = (list(dict.fromkeys(well.split("/")[i] for well in wells)) for i in (0, 1))
    described = {
        "version": version,
        "name": "screen 7",
        "rows": [{"name": r} for r in rows],
        "columns": [{"name": c} for c in columns],
        "wells": [
            {"path": w, "rowIndex": rows.index(w.split("/")[0]), "columnIndex": columns.index(w.split("/")[1])}
            for w in wells
        ],
        "field_count": 2,
        "acquisitions": [{"id": 3, "name": "overnight"}],
    }

    def group(where, ome):
        nested = {"ome": {"version": version, **ome}} if ome and version == "0.5" else ome
        zarr.create_group(path / where, zarr_format=zarr_format, attributes=nested)

    group("", {"plate": described})
    for row in rows:
        group(row, {})
    for well in wells:
        images = [{"path": name.rsplit("/", 1)[1], "acquisition": 3} for name in fields if name.startswith(f"{well}/")]
        group(well, {"well": {"version": version, "images": images}})
    for name, data in fields.items():
        volume(path / name, data, version=version, chunk=(8, 16, 16))
    return path


def start_job(config):
    """Begin a job as a run does, all but its blocks; return the recipes, for one thread per block."""
    job = calibrate_job(plan_job(config))
    run = OpenRun.create(Path(config.output).absolute(), job, record_of(job))
    create_outputs(run.output, run.record.facts.images, output_specs(run.record))
    return run.recipes(threads=1)


def psf_tiff(path, kernel=None):
    """Write a PSF (a Gaussian if none is given) and return its path."""
    kernel = psf.gaussian(SIGMA_ZYX, truncate=3.0) if kernel is None else kernel
    tifffile.imwrite(path, kernel, photometric="minisblack")
    return path


def pixels(path, level="0"):
    """Return all voxels of a level."""
    shape = json.loads((Path(path) / level / "zarr.json").read_text())["shape"]
    return read_region(path, level, tuple(slice(0, n) for n in shape))


def snapshot(folder):
    """Return every path below a folder, the hidden ones too, with a checksum of what is in it."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(Path(folder).rglob("*"))
    }


@contextmanager
def unchanged(folder):
    """Check that nothing below a folder changes meanwhile."""
    before = snapshot(folder)
    yield
    assert snapshot(folder) == before


def copied(output, folder):
    """Copy an output and its ledger into a folder; the copy resumes as the output that it is."""
    target = folder / output.name
    shutil.copytree(output, target)
    shutil.copytree(ledger_path(output), ledger_path(target))
    return target


def plan_of(output):
    """Return the plan that a run has stored."""
    return json.loads((ledger_path(output) / "plan.json").read_text())


def log_of(output):
    """Return the log of a run."""
    return (ledger_path(output) / "run.log").read_text()


def journal_of(output):
    """Return the lines of a run's journal, none if there is no ledger yet."""
    journal = ledger_path(output) / "journal" / "000000.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    return [unsealed(line) for line in lines if line.endswith(b"\n")]


def forget_last_block(output):
    """Cut the journal back to the first block, as if the driver had died then."""
    journal = ledger_path(output) / "journal" / "000000.jsonl"
    journal.write_text(journal.read_text().splitlines(keepends=True)[0])


def flip(file):
    """Damage one byte in the middle of a file; doing it twice repairs it."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(bytes(content))


def one_object(text):
    """Return the JSON object that is all of a text: one line and nothing else."""
    assert text.endswith("\n")
    assert text.count("\n") == 1
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


class Touch:
    """Something that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def bigdeconv(*arguments, **environment):
    """Run the command line in this process; the result has ``exit_code``, ``stdout`` and ``stderr``."""
    from bigdeconv_cli.main import app

    variables = {f"BIGDECONV_{name.upper()}": str(value) for name, value in environment.items()}
    return CliRunner().invoke(app, [str(a) for a in arguments], env=variables)


def start(*arguments, cwd, own_group=False):
    """Start the command line in a process of its own, with no terminal."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BIGDECONV_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "cli")])
    if own_group:
        # A job in a shell's background ignores interrupts, and so would what it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, "-m", "bigdeconv_cli", *(str(a) for a in arguments)],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=own_group,
    )
