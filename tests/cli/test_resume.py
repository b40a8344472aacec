"""Runs that go on where they were stopped, and those that must not."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from bigdeconv.storage.ledger import Ledger, ledger_path
from tests import make
from tests.cli.jobs import TWO_BLOCKS
from tests.make import RL, bigdeconv


@pytest.mark.cluster
@pytest.mark.parametrize("way", ["run --resume", "resume"])
def test_resuming_a_complete_run_does_nothing(way, source, finished, tmp_path, no_cluster):
    job = ("run", source[0], finished, "--psf", source[1], *TWO_BLOCKS, "--resume")
    with make.unchanged(finished.parent):
        result = bigdeconv(*(job if way == "run --resume" else ("resume", finished)))
    assert result.exit_code == 0
    assert result.stdout.startswith("2 of 2 blocks")


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("change", "words"),
    {
        "iterations": (("--iterations", "4"), "iterations (was 3, is 4)"),
        "method": (("--method", "rltv"), "method (was rl, is rltv)"),
        "blocks": (("--block-shape", "8,32,64"), "block_shape (was [8, 32, 32], is [8, 32, 64])"),
    }.values(),
)
def test_resuming_with_other_settings_names_the_difference(change, words, source, finished, no_cluster):
    with make.unchanged(finished.parent):
        job = (source[0], finished, "--psf", source[1], *TWO_BLOCKS, *change)
        result = bigdeconv("run", *job, "--resume")
        printed = make.one_object(bigdeconv("run", *job, "--resume", "--json").stdout)
    assert result.exit_code == printed["exit_code"] == 3
    for said in (result.stderr, printed["error"]):
        assert words in said
        assert "--overwrite" in said


@pytest.mark.cluster
def test_resuming_with_another_psf_or_other_data_names_it(source, finished, tmp_path, no_cluster):
    image, psf = source
    other_psf = make.psf_tiff(tmp_path / "psf.tif", np.ones((3, 3, 3), np.float32))
    other_image = make.volume(tmp_path / "in.zarr", make.scene(8, 32, 64, seed=1))
    with make.unchanged(finished.parent):
        result = bigdeconv("run", image, finished, "--psf", other_psf, *TWO_BLOCKS, "--resume")
        assert result.exit_code == 3
        assert "differs in psf;" in result.stderr
        result = bigdeconv("run", other_image, finished, "--psf", psf, *TWO_BLOCKS, "--resume")
        assert result.exit_code == 3
        assert "differs in input;" in result.stderr


def test_resuming_what_no_run_has_begun_does_not_suggest_to_resume(source, tmp_path, no_cluster):
    output = make.volume(tmp_path / "out.zarr", make.scene(4, 8, 8))
    with make.unchanged(tmp_path):
        result = bigdeconv("run", source[0], output, "--psf", source[1], *TWO_BLOCKS, "--resume")
    assert result.exit_code == 3
    assert "no ledger" in result.stderr
    assert "--overwrite" in result.stderr


@pytest.mark.cluster
def test_an_output_that_was_deleted_is_not_taken_for_done(finished, tmp_path, no_cluster):
    output = make.copied(finished, tmp_path)
    shutil.rmtree(output)
    with make.unchanged(tmp_path):
        result = bigdeconv("resume", output)
    assert result.exit_code == 3
    assert str(output) in result.stderr
    assert "bigdeconv repair" in result.stderr


@pytest.mark.cluster
@pytest.mark.parametrize("change", ["shape", "gone"])
def test_an_input_that_has_changed_is_not_resumed(change, finished, tmp_path, cluster_address):
    image, psf = make.volume(tmp_path / "in.zarr", make.scene(8, 32, 64)), make.psf_tiff(tmp_path / "psf.tif")
    output = tmp_path / "out.zarr"
    job = (image, output, "--psf", psf, *TWO_BLOCKS, "--scheduler", cluster_address)
    assert bigdeconv("run", *job).exit_code == 0
    make.forget_last_block(output)
    shutil.rmtree(image)
    if change == "shape":
        make.volume(image, make.scene(8, 32, 60))
    with make.unchanged(tmp_path):
        result = bigdeconv("resume", output, "--scheduler", cluster_address)
    assert result.exit_code == 3
    assert str(image) in result.stderr
    assert ("shape was (8, 32, 64), is (8, 32, 60)" if change == "shape" else "does not exist") in result.stderr


@pytest.mark.cluster
@pytest.mark.parametrize("blend", ["0,0,0", "0,0,4"], ids=["cropped", "blended"])
def test_an_unreadable_chunk_costs_its_blocks_and_no_more(blend, long_source, cluster_address, tmp_path):
    image = shutil.copytree(long_source[0], tmp_path / "in.zarr")
    job = ("--psf", long_source[1], *RL, "--block-shape", "8,32,32", "--blend", blend, "--output-scale", "8")
    job = (*job, "--scheduler", cluster_address)
    assert bigdeconv("run", image, tmp_path / "whole.zarr", *job).exit_code == 0
    chunk, output = image / "0" / "c" / "0" / "0" / "2", tmp_path / "out.zarr"
    make.flip(chunk)

    result = bigdeconv("run", image, output, *job)
    assert result.exit_code == 4
    assert re.search(
        r"bigdeconv: block 2 \(z 0:8, y 0:32, x 64:96\): .*cannot read array '0' of .*in\.zarr", result.stderr
    )
    assert f"bigdeconv resume {output}" in result.stdout
    status = make.one_object(bigdeconv("status", output, "--json").stdout)
    assert status["state"] == "incomplete"
    assert status["blocks_total"] == 8
    assert status["blocks_failed"] >= 1
    assert 4 <= status["blocks_done"] < 8
    assert re.match(r"incomplete: \d of 8 blocks, \d failed\n", bigdeconv("status", output).stdout)
    # What is finished is already as it will be.
    whole, now = make.pixels(tmp_path / "whole.zarr"), make.pixels(output)
    for block in [r["block"] for r in make.journal_of(output) if "block" in r]:
        core = np.s_[:, :, 32 * block : 32 * block + 32]
        assert np.array_equal(now[core], whole[core])

    still = bigdeconv("resume", output, "--scheduler", cluster_address, "--json")
    assert still.exit_code == 4
    printed = make.one_object(still.stdout)
    assert printed["complete"] is False
    assert any("block 2" in error for error in printed["errors"])

    make.flip(chunk)
    done = bigdeconv("resume", output, "--scheduler", cluster_address, "--json")
    assert done.exit_code == 0
    printed = make.one_object(done.stdout)
    assert (printed["complete"], printed["blocks_done"], printed["blocks_failed"]) == (True, 8, 0)
    assert make.one_object(bigdeconv("status", output, "--json").stdout)["state"] == "complete"
    assert make.snapshot(output) == make.snapshot(tmp_path / "whole.zarr")
    assert not (ledger_path(output) / "scratch").exists()


@pytest.mark.cluster
def test_a_chunk_that_is_cut_short_and_sampled_does_not_stop_the_rest(long_source, cluster_address, tmp_path):
    """Small volumes are sampled whole before the first block: the samples must survive a bad chunk as the blocks do."""
    image = shutil.copytree(long_source[0], tmp_path / "in.zarr")
    chunk = image / "0" / "c" / "0" / "0" / "7"
    chunk.write_bytes(chunk.read_bytes()[:20])
    job = (image, tmp_path / "out.zarr", "--psf", long_source[1], *RL, "--block-shape", "8,32,32")
    result = bigdeconv("run", *job, "--scheduler", cluster_address, "--json")
    assert result.exit_code == 4
    assert make.one_object(result.stdout)["blocks_done"] >= 4


@pytest.mark.cluster
def test_a_second_driver_is_refused_while_the_first_lives(source, finished, tmp_path):
    output = make.copied(finished, tmp_path)
    job = (source[0], output, "--psf", source[1], *TWO_BLOCKS)
    with Ledger(output).writing(), make.unchanged(tmp_path):
        for command in (("resume", output), ("run", *job, "--resume"), ("run", *job, "--overwrite")):
            result = bigdeconv(*command)
            assert result.exit_code == 3
            assert "another run is writing" in result.stderr
            assert "wait for it or stop it" in result.stderr
        assert json.loads(bigdeconv("status", output, "--json").stdout)["state"] == "running"
    assert json.loads(bigdeconv("status", output, "--json").stdout)["state"] == "complete"
