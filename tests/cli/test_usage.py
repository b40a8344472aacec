"""Arguments, settings files and environment: help, and one sentence for what is wrong in them."""

from __future__ import annotations

import re

import pytest

from tests import make
from tests.make import bigdeconv


def test_help_names_every_command_and_the_order_of_axes():
    result = bigdeconv("--help")
    assert result.exit_code == 0
    for word in (
        "run",
        "plan",
        "resume",
        "status",
        "report",
        "validate",
        "demo",
        "model",
        "simulate",
        "train",
        "z,y,x",
    ):
        assert word in result.stdout


def test_help_of_run_says_units_defaults_and_precedence():
    text = re.sub(r"[\s│]+", " ", bigdeconv("run", "--help").stdout)
    for words in (
        *("µm", "120 for garl", "Z,Y,X", "--resume", "--overwrite"),
        *("Flags override the environment", "the environment overrides the file"),
    ):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    {
        "no such option": (("run", "a", "b", "--nonsense"), ("--nonsense",)),
        "no output": (("run", "a"), ("Missing argument", "OUTPUT")),
        "no such command": (("deconvolve",), ("deconvolve",)),
        "not a method": (("run", "a", "b", "--method", "magic"), ("method", "'magic'", "garl", "rltv")),
        "negative iterations": (("run", "a", "b", "--iterations", "-1"), ("iterations", "-1", "expected 0 or more")),
        "two of three": (("run", "a", "b", "--halo", "4,4"), ("halo", "4", "3")),
        "no volume": (("plan",), ("INPUT", "--shape")),
        "two volumes": (("plan", "a", "--shape", "1,1,8,8,8"), ("INPUT", "--shape")),
        "no shape": (("plan", "--shape", "8,8,8"), ("shape", "'8,8,8'", "T,C,Z,Y,X")),
        "no size": (("plan", "a", "--memory", "lots"), ("memory", "'lots'", "8GiB")),
        "no range": (("plan", "a", "--roi", "0:4"), ("roi", "'0:4'", "z0:z1,y0:y1,x0:x1")),
        "zero voxel": (("plan", "a", "--voxel-um", "0,1,1"), ("voxel-um", "0", "expected more than 0")),
        "no indices": (("plan", "a", "--channels", "red"), ("channels", "'red'")),
        "shards in 0.4": (
            ("plan", "a", "--shards", "8,8,8", "--ome-version", "0.4"),
            ("0.4", "drop --shards", "--ome-version 0.5"),
        ),
        "bits of integers": (("plan", "a", "--keep-bits", "10", "--dtype", "uint16"), ("keep_bits", "--dtype float32")),
        "resume and overwrite": (("run", "a", "b", "--resume", "--overwrite"), ("--resume", "--overwrite")),
    }.values(),
    ids=lambda v: " ".join(v[1:]) if v[0] in ("run", "plan") else None,
)
def test_what_is_typed_wrong_is_a_usage_error_that_names_it(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = bigdeconv(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr
    assert make.snapshot(tmp_path) == {}


def test_a_usage_error_is_one_json_object_too():
    result = bigdeconv("plan", "a", "--tau", "-1", "--json")
    assert result.exit_code == 2
    assert make.one_object(result.stdout)["exit_code"] == 2
    assert "tau: got '-1'" in make.one_object(result.stdout)["error"]


@pytest.mark.parametrize(
    ("content", "words"),
    {
        "method: [": ("job.yaml", "cannot be read as YAML"),
        "- rl": ("job.yaml", "names and values", "got list"),
        "methd: rl": ("methd: no such setting; `bigdeconv run --help` lists them",),
        "schema_version: 2": ("schema-version: got 2",),
        "method: 3": ("method: got 3", "'garl', 'rl' or 'rltv'"),
    }.items(),
)
def test_a_settings_file_at_fault_is_named(content, words, source, tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(content)
    result = bigdeconv("plan", source[0], "--psf", source[1], "--config", file)
    assert result.exit_code == 2
    for word in words:
        assert word in result.stderr
    assert "None" not in result.stderr


def test_a_settings_file_that_is_missing_is_named(source, tmp_path):
    result = bigdeconv("plan", source[0], "--config", tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert "config" in result.stderr
    assert "none.yaml" in result.stderr


def test_an_environment_variable_at_fault_is_named(source):
    result = bigdeconv("plan", source[0], "--psf", source[1], iterations="many")
    assert result.exit_code == 2
    assert "iterations: got 'many'" in result.stderr
