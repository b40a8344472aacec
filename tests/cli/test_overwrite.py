"""An output that exists already: it is kept, or replaced where that is asked for, and inputs never are."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from bigdeconv.storage.ledger import ledger_path
from tests import make
from tests.cli.jobs import TWO_BLOCKS
from tests.make import bigdeconv


@pytest.mark.cluster
def test_an_existing_output_is_kept_and_both_ways_on_are_named(source, finished, tmp_path, no_cluster):
    output = make.copied(finished, tmp_path)
    job = ("run", source[0], output, "--psf", source[1], *TWO_BLOCKS)
    with make.unchanged(tmp_path):
        result = bigdeconv(*job)
        assert result.exit_code == 3
        for words in (str(output), "--resume", "--overwrite"):
            assert words in result.stderr
        printed = make.one_object(bigdeconv(*job, "--json").stdout)
        assert printed["exit_code"] == 3
        assert "--overwrite" in printed["error"]


def test_a_ledger_alone_also_counts_as_an_output(source, finished, tmp_path, no_cluster):
    output = make.copied(finished, tmp_path)
    shutil.rmtree(output)
    with make.unchanged(tmp_path):
        result = bigdeconv("run", source[0], output, "--psf", source[1], *TWO_BLOCKS)
    assert result.exit_code == 3
    assert str(ledger_path(output)) in result.stderr


@pytest.mark.cluster
def test_overwrite_replaces_what_was_there(source, finished, tmp_path, cluster_address):
    output = make.volume(tmp_path / "out.zarr", np.full((4, 4, 4), 7, np.uint8))
    (output / "old").mkdir()
    job = (source[0], output, "--psf", source[1], *TWO_BLOCKS, "--scheduler", cluster_address)
    result = bigdeconv("run", *job, "--overwrite", "--json")
    assert result.exit_code == 0
    assert make.snapshot(output) == make.snapshot(finished)
    result = bigdeconv("run", *job, "--overwrite", "--iterations", "4")
    assert result.exit_code == 0
    assert make.plan_of(output)["facts"]["config"]["iterations"] == 4
    assert (make.pixels(output) != make.pixels(finished)).any()
    assert {p.name for p in tmp_path.iterdir()} == {"out.zarr", "out.zarr.bigdeconv"}


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file"])
def test_overwrite_refuses_what_is_no_zarr(kind, source, tmp_path, no_cluster):
    output = tmp_path / "precious"
    if kind == "file":
        output.write_text("thesis")
    else:
        output.mkdir()
    if kind == "folder":
        (output / "thesis.tex").write_text("thesis")
    with make.unchanged(tmp_path):
        result = bigdeconv("run", source[0], output, "--psf", source[1], *TWO_BLOCKS, "--overwrite")
    assert result.exit_code == 3
    assert "precious" in result.stderr
    assert "not a zarr group" in result.stderr
    assert "another path" in result.stderr


@pytest.mark.parametrize("relation", ["same", "link", "inside", "above"])
def test_overwrite_never_removes_the_input(relation, tmp_path, no_cluster):
    above = make.volume(tmp_path / "above.zarr", make.scene(4, 8, 8))
    image, psf = make.volume(above / "in.zarr", make.scene(8, 32, 64)), make.psf_tiff(tmp_path / "psf.tif")
    (tmp_path / "link.zarr").symlink_to(image)
    make.volume(image / "inside.zarr", make.scene(4, 8, 8))
    output = {"same": image, "link": tmp_path / "link.zarr", "inside": image / "inside.zarr", "above": above}[relation]
    with make.unchanged(tmp_path):
        result = bigdeconv("run", image, output, "--psf", psf, *TWO_BLOCKS, "--overwrite")
    assert result.exit_code == 3
    assert "input" in result.stderr
    assert "another path" in result.stderr


def test_an_output_below_a_file_is_an_error_that_names_it(source, tmp_path, no_cluster):
    (tmp_path / "file").write_text("")
    with make.unchanged(tmp_path):
        result = bigdeconv("run", source[0], tmp_path / "file" / "out.zarr", "--psf", source[1], *TWO_BLOCKS)
    assert result.exit_code == 3
    assert "output" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_disk_that_is_full_from_the_start_leaves_nothing_behind(source, tmp_path, monkeypatch, cluster_address):
    def save_file(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bigdeconv.storage.ledger.save_file", save_file)
    with make.unchanged(tmp_path):
        result = bigdeconv(
            "run", source[0], tmp_path / "out.zarr", "--psf", source[1], *TWO_BLOCKS, "--scheduler", cluster_address
        )
    assert result.exit_code == 3
    assert "No space left on device" in result.stderr
