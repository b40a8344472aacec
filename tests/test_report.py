"""The example that reproduces the report, at a size of seconds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.make import ROOT
from tests.patience import seconds

pytestmark = [pytest.mark.cluster, pytest.mark.full]
pytest.importorskip("matplotlib", reason="the example needs the extra `plot`")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Folder of one small run of the command."""
    folder = tmp_path_factory.mktemp("report")
    run(folder, "run.py", "--small", "--seed", "0", "--output", str(folder))
    return folder


def run(folder, script, *arguments):
    """Run a script of the example and return what it prints; matplotlib keeps its own files in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(folder / "mpl")}
    command = [sys.executable, f"examples/report/{script}", *arguments]
    limit = seconds(60)
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def rsnr_db(report):
    return json.loads((report / "table1.json").read_text())["rsnr_db"]


def test_every_figure_is_a_picture(report):
    for number in (1, 2, 3, 6, 7, 8):
        picture = (report / f"figure{number}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 10_000


def test_the_table_is_readable(report):
    lines = (report / "table1.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:] == [
        "RL",
        "TV",
        "GARL",
        "GARL, auto",
    ]


def test_rl_is_best_near_20_iterations_and_then_amplifies_noise(rsnr_db):
    """The report has 10.24, 10.06 and 8.13 dB; measured here: 14.87, 14.51 and 11.75."""
    rl = rsnr_db["RL"]
    assert rl["20"] > 14
    assert rl["20"] > rl["30"] > rl["50"]
    assert rl["20"] - rl["50"] > 1.5


@pytest.mark.parametrize("method", ["GARL", "GARL, auto"])
def test_the_learned_prior_lets_the_iterations_go_on(rsnr_db, method):
    """With the model that is used by default, tuned on another phantom or by the data; the report gains 2.07 dB."""
    garl = rsnr_db[method]
    assert garl["50"] > max(rsnr_db["RL"].values()) + 1
    assert garl["50"] > max(rsnr_db["TV"].values()) + 0.5
    assert garl["50"] > garl["30"] - 0.1


def test_tv_keeps_the_noise_down(rsnr_db):
    assert max(rsnr_db["TV"].values()) > max(rsnr_db["RL"].values()) - 0.1
    assert rsnr_db["TV"]["50"] > rsnr_db["RL"]["50"] + 0.1


def test_seeds_are_compared_by_their_rows(tmp_path):
    """The gain is the difference of the printed rows."""
    arguments = ("--small", "--seeds", "0", "--models", "compact", "--given", "finite-differences,5,100")
    printed = run(tmp_path, "seeds.py", *arguments)
    rows = {}
    for line in printed.splitlines():
        if found := re.match(r" +0  ([\w-]+) ?(.*?)  +\d+: ", line):
            numbers = [float(value) for value in re.findall(r"\d+: (-?[\d.]+)", line)]
            rows.setdefault(found[1], []).append(numbers)
    last = rows["GARL"][0][-1]
    for other in ("RL", "TV", "finite-differences"):
        (gain,) = re.findall(rf"compact over {'given' if '-' in other else other}: .* ([+-][\d.]+) dB", printed)
        assert float(gain) == pytest.approx(last - max(map(max, rows[other])), abs=0.011)
