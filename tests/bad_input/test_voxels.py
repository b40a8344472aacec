"""Voxels without a datum, and volumes without anything in them: no weight, counted, said."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests import make
from tests.make import plan_of, scene

pytestmark = pytest.mark.cluster
ONE_BLOCK = ("--halo", "2,4,4")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_what_is_not_finite_has_no_weight_and_is_counted(value, run, clean):
    data = scene(8, 32, 32, dtype="float32")
    expected = clean(data, *ONE_BLOCK)
    data[3, 10:12, 10:12] = value
    output, summary, result = run(data, *ONE_BLOCK)
    assert summary["counts"] == {"not_finite": 4}
    assert "4 voxels not finite" in result.stdout
    assert make.pixels(output).max() < 1.2 * expected.max()
    # Far from the hole nothing has changed but the estimates of background and scale.
    assert np.allclose(make.pixels(output)[:, 24:, 24:], expected[:, 24:, 24:], rtol=0.2, atol=5)


def test_fill_of_a_mosaic_has_no_weight_and_is_counted(run, clean):
    data = scene(8, 32, 48, background=100)
    expected = clean(data, *ONE_BLOCK, "--dtype", "float32")
    data[:, :, 36:] = 0
    output, summary, result = run(data, *ONE_BLOCK, "--dtype", "float32")
    assert summary["counts"] == {"fill": 8 * 32 * 12}
    assert f"{8 * 32 * 12} voxels fill" in result.stdout
    overlap = np.s_[:, :, 33:36]
    assert make.pixels(output)[overlap].max() < 1.5 * expected[overlap].max() + 20


def test_hot_pixels_have_no_weight_and_are_counted(run, clean):
    data = scene(8, 32, 48)
    expected = clean(data, *ONE_BLOCK, "--dtype", "float32")
    hot = ([2, 4, 6], [5, 20, 26], [40, 9, 30])
    data[hot] = 4000
    output, summary, result = run(data, *ONE_BLOCK, "--dtype", "float32")
    assert summary["counts"] == {"hot": 3}
    assert "3 voxels hot" in result.stdout
    assert make.pixels(output)[hot].max() < 1.2 * expected.max()


def test_a_voxel_in_the_halo_of_another_block_is_counted_once(run):
    data = scene(8, 32, 64, dtype="float32")
    data[4, 16, 31:34] = np.nan
    _, summary, _ = run(data, *ONE_BLOCK, "--block-shape", "8,32,32")
    assert summary["blocks_total"] == 2
    assert summary["counts"] == {"not_finite": 3}


def test_without_a_mask_fill_and_hot_pixels_are_data(run):
    data = scene(8, 32, 48, background=100)
    data[:, :, 36:] = 0
    data[4, 16, 16] = 4000
    _, summary, _ = run(data, *ONE_BLOCK, "--mask", "none")
    assert summary["counts"] == {}


@pytest.mark.parametrize(("share", "warned"), [(0.05, True), (0.005, False)], ids=["5 %", "0.5 %"])
def test_negative_pixels_count_as_zero_and_many_are_warned_of(share, warned, run):
    data = scene(8, 32, 32) + np.uint16(100)
    below = np.random.default_rng(1).choice(data.size, int(share * data.size), replace=False)
    data.ravel()[below] = 60
    output, summary, result = run(data, *ONE_BLOCK, "--camera-offset", "100")
    assert summary["counts"] == {"negative": len(below)}
    assert f"{len(below)} voxels negative" in result.stdout
    said = [w for w in summary["warnings"] if "below the camera offset" in w]
    assert len(said) == warned  # once
    if warned:
        assert re.search(r"5\.0 % of .* voxels lie below the camera offset; check --camera-offset", said[0])
        assert "--camera-offset" in said[0]
        assert result.stderr.count("below the camera offset") == 1
        assert any("camera offset" in w for w in plan_of(output)["warnings"])


def test_negative_values_of_floating_point_are_counted_too(run):
    data = scene(8, 32, 32, dtype="float32")
    data[:, :2] = -5
    _, summary, _ = run(data, *ONE_BLOCK)
    assert summary["counts"] == {"negative": 8 * 2 * 32}
    assert any("6.2 %" in w for w in summary["warnings"])


@pytest.mark.parametrize(("level", "method"), [(0, "rl"), (0, "garl"), (100, "rl"), (100, "rltv")])
def test_a_volume_without_anything_in_it_is_written_with_a_warning(level, method, run):
    output, summary, result = run(np.full((8, 32, 32), level, np.uint16), "--method", method, "--iterations", "30")
    assert re.search(
        r"^warning: Channel 0: The volume is constant or empty: nothing rises above the background",
        result.stderr,
        re.MULTILINE,
    )
    assert any("constant or empty" in w for w in summary["warnings"])
    assert any("constant or empty" in w for w in plan_of(output)["warnings"])
    assert summary["complete"]
    # What is there is background, save the little that its estimate leaves.
    assert make.pixels(output).max() <= 5 * plan_of(output)["channels"]["0"]["output_scale"]


def test_a_volume_of_nothing_but_nan_is_written_with_a_warning(run):
    output, summary, _ = run(np.full((8, 32, 32), np.nan, np.float32))
    assert any("constant or empty" in w for w in summary["warnings"])
    assert (summary["blocks_skipped"], summary["counts"]) == (1, {"not_finite": 8 * 32 * 32})
    assert not make.pixels(output).any()
