"""The log of a run: what happened, with the tracebacks of the workers, which the terminal does not show."""

from __future__ import annotations

import logging
import re
import shutil

import pytest

from bigdeconv.storage.ledger import ledger_path
from tests import make
from tests.cli.jobs import TWO_BLOCKS
from tests.make import RL, bigdeconv

LINE = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} "
"""Date and time, with the offset to UTC: logs of several machines can be laid side by side."""


@pytest.fixture
def job(source, cluster_address, tmp_path):
    """A run of two blocks, and its output."""
    output = tmp_path / "out.zarr"
    return (source[0], output, "--psf", source[1], *TWO_BLOCKS, "--scheduler", cluster_address), output


def found(pattern, output):
    """Tell whether a line of a run's log begins with a date and goes on like a pattern."""
    return re.search(LINE + pattern, make.log_of(output), re.MULTILINE)


def test_a_run_that_ended_well(job):
    job, output = job
    result = bigdeconv("run", *job, "--halo", "0,0,0")
    assert result.exit_code == 0
    assert found(r"INFO bigdeconv\.pipeline: 2 of 2 blocks to do with rl, 3 iterations, on \S+", output)
    said = re.findall(r"^warning: (.*leave --halo out.*)$", result.stderr, re.MULTILINE)
    assert said
    for warning in said:
        assert found(rf"WARNING bigdeconv\.pipeline: {re.escape(warning)}$", output)
    assert found(r"INFO bigdeconv\.pipeline: 2 of 2 blocks done, 0 failed$", output)
    assert "Traceback" not in make.log_of(output)
    assert re.match(LINE, make.log_of(output))


def test_a_block_that_failed_leaves_its_traceback_in_the_log_and_one_sentence_on_the_terminal(
    long_source, cluster_address, tmp_path
):
    image, output = shutil.copytree(long_source[0], tmp_path / "in.zarr"), tmp_path / "out.zarr"
    chunk = image / "0" / "c" / "0" / "0" / "2"
    make.flip(chunk)
    options = ("--psf", long_source[1], *RL, "--block-shape", "8,32,32", "--output-scale", "8")
    result = bigdeconv("run", image, output, *options, "--scheduler", cluster_address)
    assert result.exit_code == 4
    (sentence,) = re.findall(r"^bigdeconv: (block 2 \(z 0:8, y 0:32, x 64:96\): .*)$", result.stderr, re.MULTILINE)
    assert "Traceback" not in result.stderr + result.stdout
    assert found(r"ERROR bigdeconv\.engine\.schedule: block 2 \(z 0:8, y 0:32, x 64:96\) failed$", output)
    (trace,) = re.findall(r"block 2 \(.*\) failed\n(Traceback .*?)(?=\n\d{4}-)", make.log_of(output), re.DOTALL)
    # From the worker's task down to where the chunk was read, and last what the terminal has said.
    for place in ("in solve\n", "in solve_block\n", "in read_box\n"):
        assert place in trace
    assert trace.splitlines()[-1].endswith(sentence.partition("): ")[2])
    assert found(r"INFO bigdeconv\.pipeline: \d of 8 blocks done, \d failed$", output)
    # What goes on is appended.
    before = make.log_of(output)
    make.flip(chunk)
    assert bigdeconv("resume", output, "--scheduler", cluster_address).exit_code == 0
    assert make.log_of(output).startswith(before)
    assert "Traceback" not in make.log_of(output).removeprefix(before)
    assert found(r"INFO bigdeconv\.pipeline: [1-7] of 8 blocks to do", output)
    assert found(r"INFO bigdeconv\.pipeline: 8 of 8 blocks done, 0 failed$", output)


@pytest.fixture
def interrupted(job):
    """The output of that run, stopped after its first block."""
    job, output = job

    def progressed(self, progress):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bigdeconv_cli.progress.Reporter.progressed", progressed)
        assert bigdeconv("run", *job).exit_code == 4
    return output


def test_a_run_that_was_interrupted(interrupted):
    assert found(r"WARNING bigdeconv\.pipeline: interrupted$", interrupted)
    assert "blocks done" not in make.log_of(interrupted)
    assert "Traceback" not in make.log_of(interrupted)


def test_an_end_that_nobody_foresaw_leaves_its_traceback(job, monkeypatch):
    job, output = job

    def fail(*_, **__):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("bigdeconv.pipeline.run_blocks", fail)
    assert bigdeconv("run", *job).exit_code == 1
    assert found(r"ERROR bigdeconv\.pipeline: ended early$", output)
    assert make.log_of(output).endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("ending", ["well", "early"])
def test_nothing_is_left_on_the_loggers(ending, job, monkeypatch):
    """A second run in the same process must not write into the first one's log, nor louder than before."""
    job, output = job
    loggers = [logging.getLogger(name) for name in ("bigdeconv", "distributed")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    if ending == "early":
        monkeypatch.setattr("bigdeconv.pipeline.run_blocks", lambda *_: {}["nothing"])
    assert bigdeconv("run", *job).exit_code == (0 if ending == "well" else 1)
    assert [(logger.level, list(logger.handlers)) for logger in loggers] == before
    first = make.log_of(output)
    assert bigdeconv("run", *job, "--overwrite", "--iterations", "4").exit_code == (0 if ending == "well" else 1)
    logging.getLogger("bigdeconv.pipeline").error("not of this run")
    assert "not of this run" not in make.log_of(output)
    assert "3 iterations" in first
    assert "4 iterations" in make.log_of(output)


@pytest.mark.parametrize("fault", ["full disk", "no file"])
def test_a_log_that_cannot_be_written_stops_nothing(fault, interrupted, finished, cluster_address):
    log = ledger_path(interrupted) / "run.log"
    log.unlink()
    if fault == "full disk":
        log.symlink_to("/dev/full")
    else:
        log.mkdir()
    result = bigdeconv("resume", interrupted, "--scheduler", cluster_address)
    assert result.exit_code == 0, result.stderr
    assert "No space left" not in result.stderr
    assert make.snapshot(interrupted) == make.snapshot(finished)


def test_a_report_that_solves_seams_again_is_logged_too(finished, tmp_path, monkeypatch):
    """Its own failures are: the run's record stays as it is."""
    output = make.copied(finished, tmp_path)
    journal = make.journal_of(output)
    monkeypatch.setattr(
        "bigdeconv.pipeline.run_probes", lambda *_: logging.getLogger("bigdeconv").error("a probe") or ([], [])
    )
    assert bigdeconv("report", output, "--seam-probes", "1").exit_code == 0
    assert found(r"ERROR bigdeconv: a probe$", output)
    assert make.journal_of(output) == journal
