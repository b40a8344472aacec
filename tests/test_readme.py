"""Every command of the README does what it says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from tests import make

README = (make.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = [text for language, text in BLOCKS if language == "bash"]


def commands(block):
    """Return the calls of bigdeconv in a block, as argument lists."""
    return [shlex.split(line)[1:] for line in block.splitlines() if line.startswith("bigdeconv ")]


def test_the_first_two_commands_install_run_and_test():
    install, tests = SHELL[:2]
    assert install.endswith("bigdeconv demo\n")
    assert tests.endswith("-m pytest -q\n")
    for command in (install, tests):
        assert len(command.splitlines()) == 1
        assert "-c constraints.txt" in command


def test_ci_runs_the_second_command():
    script = (make.ROOT / ".ci" / "run").read_text()
    printed = subprocess.run(
        ["bash", "-c", re.search(r"^command=\$\((.*)\)$", script, re.MULTILINE)[1]],
        cwd=make.ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert printed == SHELL[1]


@pytest.mark.cluster
def test_the_demo_gains_and_draws(tmp_path):
    demo = make.start("demo", cwd=tmp_path)
    stdout, stderr = demo.communicate(timeout=240)
    assert demo.returncode == 0, stderr
    before, after = (float(n) for n in re.findall(r"RSNR (?:before|after): +([\d.]+) dB", stdout))
    assert after > before + 3
    assert "(4 blocks)" in stdout
    assert stderr.count("warning") == 0
    assert (tmp_path / "bigdeconv-demo" / "before-after.png").stat().st_size > 10_000
    again = make.bigdeconv("demo", "--output", tmp_path / "bigdeconv-demo")
    assert again.exit_code == 3
    assert "exists" in again.stderr


@pytest.mark.cluster
def test_the_first_real_job(tmp_path, cluster_address, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make.volume(tmp_path / "embryo.zarr", make.scene(16, 48, 48))
    make.psf_tiff(tmp_path / "psf.tif")
    for name in ("one.zarr", "two.zarr"):
        make.volume(tmp_path / "data" / name, make.scene(8, 32, 32))
    (tmp_path / "list.txt").write_text("data/one.zarr  # the first\ndata/two.zarr\n")
    make.plate(tmp_path / "plate.zarr", "0.5", {"A/1/0": make.scene(8, 32, 32)})
    scheduler_file = tmp_path / "scheduler.json"
    scheduler_file.write_text(json.dumps({"address": cluster_address}))
    seen = set()
    for arguments in (a for block in SHELL[2:] for a in commands(block)):
        shared = [str(scheduler_file) if a == "/shared/scheduler.json" else a for a in arguments]
        # Another number of iterations and a cluster that is there already make it quick; both are settings like any other.
        result = make.bigdeconv(*shared, iterations=3, scheduler=cluster_address)
        assert result.exit_code == 0, (arguments, result.stdout, result.stderr)
        seen.add(arguments[0])
    assert seen >= {"plan", "run", "status", "validate", "resume", "simulate"}


def test_the_python_example(capsys):
    (code,) = (text for language, text in BLOCKS if language == "python")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "(16, 32, 32)\n"


def test_options_named_in_the_text_exist():
    shown = "".join(
        subprocess.run(
            [sys.executable, "-m", "bigdeconv_cli", *command, "--help"],
            cwd=make.ROOT / "cli",
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(make.ROOT), "COLUMNS": "200"},
        ).stdout
        for command in (["run"], ["validate"], ["simulate", "tubes"], ["simulate", "acquire"])
    )  # fmt: skip
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert named
    assert {n for n in named if n not in shown} == set()


def test_settings_may_stand_in_a_file(tmp_path):
    make.volume(tmp_path / "in.zarr", make.scene(8, 32, 32))
    make.psf_tiff(tmp_path / "psf.tif")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"psf": str(tmp_path / "psf.tif"), "iterations": 7}))
    result = make.bigdeconv("plan", tmp_path / "in.zarr", "--config", tmp_path / "job.yaml", "--json")
    assert json.loads(result.stdout)["iterations"] == 7
