"""The examples run as they stand; ``tests/test_report.py`` has those of the report."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from bigdeconv import pipeline
from tests import make, patience


@pytest.mark.cluster
def test_the_first_job_gains_against_the_truth(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(make.ROOT)}
    command = [sys.executable, "examples/first_job.py", str(tmp_path / "new"), "12,40,40"]
    done = subprocess.run(
        command,
        cwd=make.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience.seconds(30),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = map(float, re.search(r"before: (\S+) dB, after: (\S+) dB", done.stdout).groups())
    assert after > before + 1
    assert re.search(
        rf"^1 of 1 blocks in \d+ s: {re.escape(str(tmp_path / 'new' / 'output.zarr'))}$", done.stdout, re.M
    )
    assert pipeline.validate(tmp_path / "new" / "output.zarr", deep=True) == []
