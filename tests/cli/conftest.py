"""Volumes, and runs of them that ended well: never written to, copied before they are changed."""

from __future__ import annotations

import pytest

from tests import make
from tests.cli.jobs import LONG, TWO_BLOCKS


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A volume and its PSF."""
    folder = tmp_path_factory.mktemp("source")
    return make.volume(folder / "in.zarr", make.scene(8, 32, 64)), make.psf_tiff(folder / "psf.tif")


@pytest.fixture(scope="session")
def long_source(tmp_path_factory):
    """A volume of eight blocks; chunk 2 lies between the regions that are sampled before the first block."""
    folder = tmp_path_factory.mktemp("long")
    image = make.volume(folder / "in.zarr", make.scene(8, 32, 256), chunk=(8, 32, 32))
    return image, make.psf_tiff(folder / "psf.tif")


@pytest.fixture(scope="session")
def finished(source, cluster_address, tmp_path_factory):
    """The output of a run of `TWO_BLOCKS` on `source`."""
    image, psf = source
    output = tmp_path_factory.mktemp("finished") / "out.zarr"
    result = make.bigdeconv("run", image, output, "--psf", psf, *TWO_BLOCKS, "--scheduler", cluster_address)
    assert result.exit_code == 0, result.stderr
    return output


@pytest.fixture(scope="session")
def uninterrupted(long_source, cluster_address, tmp_path_factory):
    """Checksums of what a run of `LONG` on `long_source` writes when nothing stops it."""
    image, psf = long_source
    output = tmp_path_factory.mktemp("uninterrupted") / "out.zarr"
    result = make.bigdeconv("run", image, output, "--psf", psf, *LONG, "--scheduler", cluster_address)
    assert result.exit_code == 0, result.stderr
    return make.snapshot(output)
