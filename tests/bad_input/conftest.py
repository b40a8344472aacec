"""Runs on arrays, with all that is said on the way."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from bigdeconv import psf
from bigdeconv.storage.ledger import ledger_path
from tests import make
from tests.make import RL, bigdeconv, psf_tiff, volume

GAUSSIAN = psf.gaussian(make.SIGMA_ZYX, truncate=3.0)


@pytest.fixture
def run(tmp_path, cluster_address):
    """Run a job on an array: return the output, the summary, and what was said on the way."""

    def run(data, *flags, kernel=GAUSSIAN, exit_code=0, **image):
        source = volume(tmp_path / "in.zarr", data, **image)
        output = tmp_path / "out.zarr"
        job = (source, output, "--psf", psf_tiff(tmp_path / "psf.tif", kernel), *RL, *flags)
        result = bigdeconv("run", *job, "--scheduler", cluster_address)
        assert result.exit_code == exit_code, result.stderr
        quiet = bigdeconv("run", *job, "--scheduler", cluster_address, "--overwrite", "--json")
        summary = json.loads(quiet.stdout)
        assert bigdeconv("validate", output, "--deep").exit_code == 0
        stored = make.pixels(output)
        assert stored.shape == data.shape
        assert np.isfinite(stored).all()
        return output, summary, result

    return run


@pytest.fixture
def clean(run, tmp_path):
    """Run a job on an array first, to compare with."""

    def clean(data, *flags):
        output, _, _ = run(data, *flags)
        stored = make.pixels(output).astype(float)
        for path in (output, ledger_path(output), tmp_path / "in.zarr"):
            shutil.rmtree(path)
        return stored

    return clean
