"""PSFs that can be repaired: they are, and that is said and recorded; and PSFs wider than blocks."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from bigdeconv import psf
from tests import make
from tests.make import RL, bigdeconv, plan_of, psf_tiff, scene, volume

GAUSSIAN = psf.gaussian(make.SIGMA_ZYX, truncate=3.0)


def shifted(kernel, by):
    return np.roll(np.pad(kernel, 3), by, axis=(0, 1, 2))


def with_negatives(kernel):
    return np.where(kernel < 0.02 * kernel.max(), kernel - 0.02 * kernel.max(), kernel)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("kernel", "flags", "words"),
    {
        "negative": (with_negatives(GAUSSIAN), (), "negative voxels"),
        "off-centre": (shifted(GAUSSIAN, (1, 0, -2)), (), "moved by -1.00,0.00,2.00 voxels"),
        "other voxels": (GAUSSIAN, ("--psf-voxel-um", "0.15,0.1,0.1"), "resampled from voxels of 0.15,0.1,0.1 µm"),
    }.values(),
    ids=["negative", "off-centre", "other voxels"],
)
def test_a_psf_that_can_be_repaired_is_repaired_and_that_is_said_and_recorded(kernel, flags, words, run):
    output, summary, result = run(scene(8, 32, 32), *flags, kernel=kernel)
    assert re.search(rf"^warning: psf psf\.tif: {words}", result.stderr, re.MULTILINE)
    assert any(words in w for w in summary["warnings"])
    assert any(words in w for w in plan_of(output)["warnings"])


@pytest.mark.cluster
def test_a_psf_off_centre_gives_what_the_centred_one_gives(run, clean):
    expected = clean(scene(8, 32, 32), "--output-scale", "8")
    output, _, _ = run(scene(8, 32, 32), "--output-scale", "8", kernel=shifted(GAUSSIAN, (1, 0, -2)))
    assert np.abs(make.pixels(output) - expected).max() <= 1


def test_blocks_grow_with_a_psf_that_is_wider_than_they_would_be(tmp_path):
    """With memory for more, a block is never narrower than the PSF; with too little, the error says how much it takes."""
    data = np.zeros((16, 256, 256), np.uint16)
    image, wide = volume(tmp_path / "in.zarr", data), np.ones((3, 91, 91), np.float32)
    job = ("plan", image, "--psf", psf_tiff(tmp_path / "psf.tif", wide), *RL, "--json")
    plan = json.loads(bigdeconv(*job).stdout)
    assert all(b >= p for b, p in zip(plan["block_shape"], [3, 91, 91], strict=True))
    result = bigdeconv(*job, "--memory", "460MiB")
    assert result.exit_code == 3
    assert re.search(r"needs 0\.\d\d GiB per worker, but its budget is 0\.45 GiB", json.loads(result.stdout)["error"])


@pytest.mark.cluster
def test_a_block_smaller_than_the_psf_runs(run):
    wide = psf.gaussian((1.0, 4.0, 4.0), truncate=3.0)
    output, summary, _ = run(scene(8, 32, 32), "--block-shape", "8,16,16", kernel=wide)
    assert max(plan_of(output)["facts"]["plans"][0]["psf_shape"]) > 16
    assert summary["blocks_total"] == 4
