"""``bigdeconv tune``: files that a run takes, and nothing where it is refused."""

from __future__ import annotations

import json

import pytest
import yaml
from PIL import Image

from tests import make
from tests.make import bigdeconv

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def tuned(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune") / "tuning"
    result = bigdeconv("tune", source[0], folder, "--psf", source[1], "--iterations", "5")
    assert result.exit_code == 0, result.stderr
    return folder, result


def test_it_ends_in_a_sheet_the_numbers_and_a_job(tuned):
    folder, result = tuned
    assert {path.name for path in folder.iterdir()} == {"sheet-c0.png", "scores.json", "job.yaml"}
    with Image.open(folder / "sheet-c0.png") as sheet:
        assert min(sheet.size) > 400
    (channel,) = json.loads((folder / "scores.json").read_text())["channels"]
    assert {c["method"] for c in channel["candidates"]} == {"rl", "rltv", "garl"}
    assert channel["candidates"][0]["nats"] == 0
    assert all(c["iterations"] == 5 for c in channel["candidates"])
    assert "predicts unseen photons best" in result.stdout
    assert f"--config {folder / 'job.yaml'}" in result.stdout


def test_a_run_takes_the_job(tuned, source, cluster_address, tmp_path):
    folder, _ = tuned
    job = yaml.safe_load((folder / "job.yaml").read_text())
    result = bigdeconv(
        "run", source[0], tmp_path / "out.zarr", "--config", folder / "job.yaml", "--scheduler", cluster_address
    )
    assert result.exit_code == 0, result.stderr
    settings = make.plan_of(tmp_path / "out.zarr")["channels"]["0"]["settings"]
    assert settings["method"] == job["method"]
    assert settings["iterations"] == 5


def test_an_existing_folder_is_refused_and_left_alone(source, tmp_path):
    with make.unchanged(tmp_path):
        result = bigdeconv("tune", source[0], tmp_path, "--psf", source[1])
    assert result.exit_code == 3
    assert "exists" in result.stderr


def test_without_matplotlib_it_says_what_to_install(source, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    result = bigdeconv("tune", source[0], tmp_path / "tuning", "--psf", source[1])
    assert result.exit_code == 3
    assert "bigdeconv[plot]" in result.stderr
    assert not (tmp_path / "tuning").exists()
