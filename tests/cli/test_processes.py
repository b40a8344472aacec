"""Whole processes: signals, workers of their own, standard output, exit codes."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import threading
from contextlib import suppress
from urllib.request import ProxyHandler, build_opener

import psutil
import pytest

from tests import make, patience
from tests.cli.jobs import LONG, TWO_BLOCKS
from tests.make import bigdeconv
from tests.patience import wait_until

pytestmark = pytest.mark.cluster


def lines_of(process):
    """Collect what a process writes to standard error, in the background."""
    lines = []
    # ``extend`` takes them one by one, as they come.
    reader = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
    reader.start()
    return lines, reader


def cpu_seconds_of_children():
    """Return the CPU time of the processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_ctrl_c_on_a_local_cluster_stops_in_order_and_resume_finishes(
    long_source, uninterrupted, cluster_address, tmp_path, monkeypatch
):
    """One run with workers of its own: dashboard, loopback, plain progress lines, an interrupt from the terminal."""
    image, psf = long_source
    output = tmp_path / "out.zarr"
    # A relative output: a later resume may start from another folder.
    job = (image, "out.zarr", "--psf", psf, *LONG, "--workers", "2")
    process = make.start("run", *job, cwd=tmp_path, own_group=True)
    lines, reader = lines_of(process)
    try:
        wait_until(lambda: any(line.startswith("dashboard: ") for line in lines), 30, process)
        address = next(line for line in lines if line.startswith("dashboard: ")).split()[1]
        assert address.startswith("http://127.0.0.1:")
        with build_opener(ProxyHandler({})).open(address, timeout=patience.seconds(5)) as answer:
            assert answer.status == 200
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        listening = [c.laddr.ip for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        assert len(listening) >= 3  # scheduler, dashboard, workers
        assert set(listening) == {"127.0.0.1"}
        # The progress line comes a moment after the journal's.
        wait_until(lambda: any("/8 blocks, " in line for line in lines), 30, process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=patience.seconds(15)) == 4, lines
        _, alive = psutil.wait_procs(family, timeout=patience.seconds(5))
        assert not alive
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    reader.join(timeout=patience.seconds(5))
    text = "".join(lines)
    assert "8 blocks of 8,32,32 voxels, rl, 250 iterations\n" in text
    assert re.search(r"^1/8 blocks, \d+\.\d\d Mvoxel/s, .* left$", text, re.MULTILINE)
    assert "\x1b" not in text
    assert text.rstrip().splitlines()[-1].startswith("bigdeconv: Stopped. Finished blocks are kept; continue with")
    assert "bigdeconv resume out.zarr" in text
    assert process.stdout.read() == ""
    status = json.loads(bigdeconv("status", output, "--json").stdout)
    assert status["state"] == "interrupted"
    assert 1 <= status["blocks_done"] < 8
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    result = bigdeconv("resume", output, "--scheduler", cluster_address)
    assert result.exit_code == 0, result.stderr
    assert make.snapshot(output) == uninterrupted
    assert list(elsewhere.iterdir()) == []
    assert "Traceback" not in text


def test_sigterm_stops_in_order_and_resume_finishes(long_source, uninterrupted, cluster_address, tmp_path):
    """The signal of a batch system before it kills; with ``--json``, and a second driver that wants in meanwhile."""
    image, psf = long_source
    output = tmp_path / "out.zarr"
    job = (image, output, "--psf", psf, *LONG, "--scheduler", cluster_address)
    process = make.start("run", *job, "--json", cwd=tmp_path)
    try:
        wait_until(lambda: make.journal_of(output), 30, process)
        # It holds its lock while it stands still, and has blocks left to do however long the rest takes here.
        process.send_signal(signal.SIGSTOP)
        assert json.loads(bigdeconv("status", output, "--json").stdout)["state"] == "running"
        second = bigdeconv("resume", output, "--scheduler", cluster_address)
        assert second.exit_code == 3
        assert "another run is writing" in second.stderr
        process.terminate()
        process.send_signal(signal.SIGCONT)
        printed, said = patience.outcome(process, 15)
    finally:
        process.kill()
    assert process.returncode == 4
    error = make.one_object(printed)
    assert error["exit_code"] == 4
    assert f"bigdeconv resume {output}" in error["error"]
    assert said == ""
    status = json.loads(bigdeconv("status", output, "--json").stdout)
    assert (status["state"], status["blocks_done"] < 8) == ("interrupted", True)
    result = bigdeconv("run", *job, "--resume", "--json")
    assert result.exit_code == 0, result.stdout
    assert make.one_object(result.stdout)["blocks_done"] == 8
    assert make.snapshot(output) == uninterrupted


def test_standard_output_of_a_run_is_one_json_object(source, finished, cluster_address, tmp_path):
    image, psf = source
    job = (image, tmp_path / "out.zarr", "--psf", psf, *TWO_BLOCKS, "--scheduler", cluster_address)
    process = make.start("run", *job, "--json", cwd=tmp_path)
    printed, said = patience.outcome(process, 30)
    assert process.returncode == 0
    summary = make.one_object(printed)
    assert summary.keys() >= {"output", "blocks_total", "blocks_done", "seconds", "warnings", "errors", "complete"}
    assert (summary["complete"], summary["blocks_done"]) == (True, 2)
    assert said == ""
    assert make.snapshot(tmp_path / "out.zarr") == make.snapshot(finished)


def test_a_process_of_its_own_exits_as_said(tmp_path):
    """Exit codes reach the shell, and errors of use cost no start of torch or Dask."""
    before = cpu_seconds_of_children()
    process = make.start("run", "in.zarr", "out.zarr", "--memory", "lots", cwd=tmp_path)
    printed, said = patience.outcome(process, 15)
    assert process.returncode == 2
    assert printed == ""
    assert said.startswith("bigdeconv: memory: got 'lots'")
    assert cpu_seconds_of_children() - before < 1.5
    process = make.start("plan", "in.zarr", "--json", cwd=tmp_path)
    printed, said = patience.outcome(process, 15)
    assert process.returncode == 3
    assert make.one_object(printed)["exit_code"] == 3
    assert said == ""
