"""A journal of many blocks: what it takes to look at the run, to go on with it, and to compare its files.

python -m tests.benchmarks.journal [--blocks 10000000] [--files 1000000] [--keep FOLDER]

The journal is written by the driver's own functions, without a sync per line; no block is computed and no voxel stored.
Printed: seconds and peak memory of `bigdeconv status`, of a resume from its beginning until the first block is computed (a stub
solves it), and of `bigdeconv validate`; then the seconds in which as many files as given are compared with a journal by name and
length.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

from bigdeconv.jobs.open_run import OpenRun
from bigdeconv.jobs.output_metadata import output_specs
from bigdeconv.storage.collection import create_outputs
from bigdeconv.storage.written_files import WrittenFiles
from tests.benchmarks import scale

STATISTICS = {"read_seconds": 0.123, "solve_seconds": 12.345, "voxels": 64**3, "max": 1234.5678, "write_seconds": 0.123}


@dataclass(slots=True)
class Measurement:
    """Costs of a journal."""

    blocks: int = 0
    journal_bytes_per_block: float = 0.0
    append_us_per_block: float = 0.0
    """CPU time of the driver without the sync."""
    status_seconds: float = 0.0
    status_mb: float = 0.0
    resume_seconds: float = 0.0
    resume_mb: float = 0.0
    validate_seconds: float = 0.0
    files_compared: int = 0
    compare_seconds: float = 0.0


def write(output: Path, blocks: int, result: Measurement) -> OpenRun:
    """Write the journal of a run that lacks its last blocks."""
    run = scale.stored_run(output, blocks)
    create_outputs(output, run.record.facts.images, output_specs(run.record))
    plan = run.record.facts.plans[0]
    n_blocks = run.record.facts.n_blocks
    with mock.patch("os.fsync", _nothing), run.writing():
        started = time.process_time()
        for index in range(n_blocks - scale.LAST_BLOCKS):
            place = plan.task(index).position
            name = f"0/c/0/0/{'/'.join(map(str, place))}"
            run.append({"block": index, **STATISTICS, "files": [[name, 123_456, index]]})
        result.append_us_per_block = round(1e6 * (time.process_time() - started) / n_blocks, 1)
    result.blocks = run.journal.blocks_finished
    n_bytes = sum(path.stat().st_size for path in run.ledger.journal.folder.glob("*.jsonl"))
    result.journal_bytes_per_block = round(n_bytes / result.blocks)
    return run


def _nothing(_: int) -> None:
    """Stand in for a sync; a mock would keep all calls."""


def measured(*command: str) -> tuple[float, float]:
    """Return seconds and peak memory in MB of a process of its own."""
    code = "import sys,time,resource,subprocess as s; t=time.monotonic(); r=s.run(sys.argv[1:], stdout=s.DEVNULL).returncode; "
    code += "print(time.monotonic()-t, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/1e3, r)"
    found = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    seconds, megabytes, _ = found.stdout.split()
    return round(float(seconds), 2), round(float(megabytes))


def resume(output: Path) -> None:
    """Do the first missing block, on a cluster of its own."""
    from bigdeconv.engine.clusters.connection import connect

    scale.install_stubs()
    with tempfile.TemporaryDirectory() as folder, scale.cluster(Path(folder), 1) as (address, _):
        facts = OpenRun.open(output).record.facts
        with connect(address, facts.resources) as connection:
            started = time.monotonic()
            scale.resume(connection, output)
            print(time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def compare(folder: Path, n_files: int, result: Measurement) -> None:
    """Compare that many empty files with what is known of them."""
    edge = round((n_files / 100) ** 0.5)
    written = WrittenFiles([[(100, edge, edge)]], "c/")
    for z in range(100):
        for y in range(edge):
            row = folder / "0" / "c" / str(z) / str(y)
            row.mkdir(parents=True)
            for x in range(edge):
                os.close(os.open(row / str(x), os.O_CREAT | os.O_WRONLY))
    written.writer[:] = 2
    started = time.monotonic()
    assert not len(written.compare([folder], reads=False, since_ns=2**62).damaged)
    result.compare_seconds = round(time.monotonic() - started, 2)
    result.files_compared = len(written.writer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=10_000_000)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.resume:
        resume(arguments.resume)
        return
    result = Measurement()
    with nullcontext(arguments.keep) if arguments.keep else tempfile.TemporaryDirectory() as place:
        output = Path(place) / "output.zarr"
        write(output, arguments.blocks, result)
        cli = [sys.executable, "-m", "bigdeconv_cli"]
        result.status_seconds, result.status_mb = measured(*cli, "status", str(output))
        command = [sys.executable, "-m", "tests.benchmarks.journal", "--resume", str(output)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        result.resume_seconds, result.resume_mb = round(float(found[0]), 2), round(float(found[1]))
        result.validate_seconds, _ = measured(*cli, "validate", str(output))
        compare(Path(place) / "files", arguments.files, result)
    for name, value in asdict(result).items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
