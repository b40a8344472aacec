"""Every command of the README and of the pages beside it does what it says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec

import pytest
import yaml

from tests import make, patience

README = (make.ROOT / "README.md").read_text()
PAGES = sorted((make.ROOT / "examples").glob("*.md"))
DOCUMENTS = [
    make.ROOT / "README.md",
    make.ROOT / ".github" / "CONTRIBUTING.md",
    *PAGES,
    *sorted((make.ROOT / "bigdeconv").rglob("*.md")),
]


def blocks(text, language):
    """Return the blocks of code of a language in a document."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(block):
    """Return the calls of bigdeconv in a block, as argument lists."""
    return [shlex.split(line)[1:] for line in block.splitlines() if line.startswith("bigdeconv ")]


SHELL = blocks(README, "bash")


def test_the_first_two_commands_install_run_and_test():
    install, tests = SHELL[:2]
    assert install.endswith("bigdeconv demo\n")
    assert tests.endswith("-m pytest -q\n")
    for command in (install, tests):
        assert len(command.splitlines()) == 1
        assert "-c constraints.txt" in command


@pytest.mark.cluster
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
    stdout, stderr = patience.outcome(demo, 60)
    assert demo.returncode == 0, stderr
    before, after = (float(n) for n in re.findall(r"RSNR (?:before|after): +([\d.]+) dB", stdout))
    assert after > before + 3
    assert "(4 blocks)" in stdout
    assert stderr.count("warning") == 0
    assert (tmp_path / "bigdeconv-demo" / "before-after.png").stat().st_size > 10_000
    again = make.bigdeconv("demo", "--output", tmp_path / "bigdeconv-demo")
    assert again.exit_code == 3
    assert "exists" in again.stderr


@pytest.fixture
def user(tmp_path, cluster_address, monkeypatch):
    """A folder with the files that the pages speak of, which the user stands in."""
    monkeypatch.chdir(tmp_path)
    make.volume(tmp_path / "embryo.zarr", make.scene(16, 48, 48))
    make.psf_tiff(tmp_path / "psf.tif")
    for name in ("one.zarr", "two.zarr"):
        make.volume(tmp_path / "data" / name, make.scene(8, 32, 32))
    (tmp_path / "list.txt").write_text("data/one.zarr  # the first\ndata/two.zarr\n")
    make.plate(tmp_path / "plate.zarr", "0.5", {"A/1/0": make.scene(8, 32, 32)})
    (tmp_path / "scheduler.json").write_text(json.dumps({"address": cluster_address}))
    return tmp_path


@pytest.mark.cluster
@pytest.mark.parametrize("page", [make.ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_the_commands_of_a_page(page, user, cluster_address):
    seen = set()
    for arguments in (a for block in blocks(page.read_text(), "bash") for a in commands(block)):
        shared = [str(user / "scheduler.json") if a == "/shared/scheduler.json" else a for a in arguments]
        # Another number of iterations and a cluster that is there already make it quick; both are settings like any other.
        result = make.bigdeconv(*shared, iterations=3, scheduler=cluster_address)
        assert result.exit_code == 0, (arguments, result.stdout, result.stderr)
        seen.add(arguments[0])
    if page.name == "README.md":
        assert seen >= {"plan", "tune", "run", "status", "report", "validate", "resume", "simulate"}
    else:
        assert seen >= {"plan", "run"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(make.ROOT)))
def test_scripts_and_links_lead_somewhere(document):
    text = document.read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in target or (document.parent / target).exists(), target
    scripts = re.findall(r"^python (?:-m (\S+)|(\S+\.py))", "".join(blocks(text, "bash")), re.MULTILINE)
    for module, path in scripts:
        assert (find_spec(module) is not None) if module else (make.ROOT / path).is_file(), module or path


def test_the_python_example(capsys):
    (code,) = blocks(README, "python")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "(16, 32, 32)\n"


@pytest.mark.cluster
def test_options_named_in_the_texts_exist():
    shown = "".join(
        subprocess.run(
            [sys.executable, "-m", "bigdeconv_cli", *command, "--help"],
            cwd=make.ROOT / "cli",
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(make.ROOT), "COLUMNS": "200"},
        ).stdout
        for command in (
            ["run"], ["plan"], ["resume"], ["report"], ["validate"], ["model", "show"], ["train"],
            ["simulate", "tubes"], ["simulate", "acquire"],
        )
    )  # fmt: skip
    for document in (make.ROOT / "README.md", *PAGES):
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", document.read_text()))
        assert named
        assert {n for n in named if n not in shown} == set(), document


def test_settings_may_stand_in_a_file(tmp_path):
    make.volume(tmp_path / "in.zarr", make.scene(8, 32, 32))
    make.psf_tiff(tmp_path / "psf.tif")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"psf": str(tmp_path / "psf.tif"), "iterations": 7}))
    result = make.bigdeconv("plan", tmp_path / "in.zarr", "--config", tmp_path / "job.yaml", "--json")
    assert json.loads(result.stdout)["iterations"] == 7
