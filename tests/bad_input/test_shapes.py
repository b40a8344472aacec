"""Flat and thin volumes, voxel sizes given by hand, and values too bright to store."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bigdeconv import psf
from tests import make
from tests.make import plan_of, scene

pytestmark = pytest.mark.cluster
GAUSSIAN = psf.gaussian(make.SIGMA_ZYX, truncate=3.0)
ONE_BLOCK = ("--halo", "2,4,4")


@pytest.mark.parametrize(
    ("shape", "kernel", "method"),
    {
        "2-D": ((48, 40), GAUSSIAN[3], "rl"),
        "2-D, learned": ((48, 40), GAUSSIAN[3], "garl"),
        "2-D with a 3-D PSF": ((48, 40), GAUSSIAN, "rltv"),
        "one plane": ((1, 48, 40), GAUSSIAN, "rl"),
        "thinner than the PSF": ((3, 48, 40), GAUSSIAN, "rl"),
        "thinner, learned": ((3, 48, 40), GAUSSIAN, "garl"),
    }.values(),
    ids=["2-D", "2-D, learned", "2-D with a 3-D PSF", "one plane", "thinner than the PSF", "thinner, learned"],
)
def test_flat_and_thin_volumes_work(shape, kernel, method, run):
    data = scene(*shape)
    output, summary, _ = run(data, "--method", method, kernel=kernel)
    assert summary["complete"]
    scale = plan_of(output)["channels"]["0"]["output_scale"]
    stored = make.pixels(output) / scale
    # It has become sharper, and holds the light above the background.
    assert stored.max() > data.max() - 20
    assert stored.sum() == pytest.approx((data - 20.0).clip(0).sum(), rel=0.5)


def test_a_voxel_size_given_by_hand_is_taken_and_written(run):
    output, _, _ = run(scene(8, 32, 32), "--voxel-um", "0.5,0.2,0.2", units=False)
    image = json.loads((output / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    assert image["datasets"][0]["coordinateTransformations"][0]["scale"] == [0.5, 0.2, 0.2]
    assert {a["unit"] for a in image["axes"]} == {"micrometer"}


def test_voxels_that_are_clipped_are_counted_and_warned_of(run):
    output, summary, result = run(scene(8, 32, 32), *ONE_BLOCK, "--output-scale", "500")
    clipped = summary["counts"]["clipped"]
    assert clipped == np.count_nonzero(make.pixels(output) == 65535) > 0
    assert any(f"{clipped} voxels" in w and "--output-scale" in w for w in summary["warnings"])
    assert f"{clipped} voxels clipped" in result.stdout
    assert "lower --output-scale" in result.stderr
