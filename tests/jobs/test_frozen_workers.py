"""A worker that is stopped is passed over; what it writes when it goes on does not stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import bigdeconv
from bigdeconv import pipeline
from bigdeconv.config import make_config
from bigdeconv.storage.attempts import Attempt, SupersededError, end_attempts
from tests import make
from tests.patience import wait_until

ROOT = Path(__file__).parents[2]


class TestAttempts:
    def test_a_later_attempt_ends_an_earlier_one(self, tmp_path):
        first = Attempt.begin(tmp_path, "merge-7")
        first.require_standing()
        second, other = Attempt.begin(tmp_path, "merge-7"), Attempt.begin(tmp_path, "merge-8")
        assert (first.number, second.number, other.number) == (1, 2, 1)
        for attempt in (second, other):
            attempt.require_standing()
        with pytest.raises(SupersededError, match=r"merge-7.* the place of number 1"):
            first.require_standing()

    def test_none_stands_when_the_task_is_done(self, tmp_path):
        attempt = Attempt.begin(tmp_path, "merge-7")
        for _ in range(2):
            end_attempts(tmp_path, "merge-7")
            with pytest.raises(SupersededError):
                attempt.require_standing()
        assert Attempt.begin(tmp_path, "merge-7").number == 1

    def test_a_damaged_note_of_an_attempt_does_not_stand(self, tmp_path):
        attempt = Attempt.begin(tmp_path, "merge-7")
        attempt.path.write_bytes(b"\xff\x00")
        with pytest.raises(SupersededError):
            attempt.require_standing()
        assert Attempt.begin(tmp_path, "merge-7").number == 1


@contextmanager
def cluster(folder, level, time_to_live):
    """Start a scheduler and two workers that know how to freeze; yield the scheduler file."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")]),
        "OMP_NUM_THREADS": "1",
        "FREEZE_FOLDER": str(folder),
        "FREEZE_LEVEL": level,
        "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": time_to_live,
    }
    file = folder / "scheduler.json"
    where = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
    worker = [
        "worker",
        *where,
        "--nthreads",
        "1",
        "--no-nanny",
        "--preload",
        "tests.jobs.freezing",
        "--memory-limit",
        "0",
    ]
    quiet = {"env": environment, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    dask = [sys.executable, "-m", "dask"]
    processes = [subprocess.Popen([*dask, "scheduler", *where, "--port", "0"], **quiet)]
    try:
        wait_until(file.exists, 20)
        processes += [subprocess.Popen([*dask, *worker], **quiet) for _ in range(2)]
        yield str(file)
    finally:
        for process in processes:
            with suppress(OSError):
                process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@pytest.mark.cluster
@pytest.mark.parametrize("level", ["0", "3"])
def test_bytes_of_a_worker_that_was_stopped_do_not_stay(tmp_path, cluster_address, level):
    """It stops before a file appears, and goes on when the other attempt at the block, or at the coarse level, is noted."""
    settings = {
        "input": str(make.volume(tmp_path / "in.zarr", make.scene(16, 32, 32), chunk=(8, 16, 16))),
        "psf": str(make.psf_tiff(tmp_path / "psf.tif")),
        **{"method": "rl", "iterations": 2, "background": 20, "intensity_scale": 100, "output_scale": 8},
        **{"block_shape": (16, 16, 16), "chunks": (8, 8, 8), "shards": (16, 16, 16), "levels": 4, "device": "cpu"},
        "seam_probes": 0,
    }
    whole = make_config({**settings, "output": str(tmp_path / "whole.zarr"), "scheduler": cluster_address})
    assert bigdeconv.run(whole).complete

    frozen, written = tmp_path / "frozen", tmp_path / "written"
    warnings: list[str] = []
    append = pipeline.OpenRun.append

    def thawing(run, record):
        """Note a record; when the last block, or the level, is noted, let the stopped worker go on."""
        append(run, record)
        is_noted = run.journal.blocks_finished == run.journal.n_blocks if level == "0" else record.get("level") == 3
        if is_noted and not written.exists():
            assert frozen.exists()
            os.kill(int(frozen.read_text()), signal.SIGCONT)
            wait_until(written.exists, 20)

    with cluster(tmp_path, level, "3s") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.OpenRun, "append", thawing)
        config = make_config({**settings, "output": str(tmp_path / "out.zarr"), "scheduler": file})
        summary = bigdeconv.run(config, events=bigdeconv.Events(warned=warnings.append))
    assert summary.complete
    assert written.exists()
    assert any("holds other bytes than were written" in text for text in warnings)
    for name in "0123":
        assert make.snapshot(tmp_path / "out.zarr" / name) == make.snapshot(tmp_path / "whole.zarr" / name)
    assert pipeline.validate(tmp_path / "out.zarr", deep=True) == []
