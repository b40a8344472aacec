"""The benchmarks still run, and what they print is what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests import make
from tests.benchmarks import suite


@pytest.mark.cluster
def test_the_suite_runs(tmp_path, cluster_address):
    results = suite.run(tmp_path, suite.SMALL, scheduler=cluster_address)
    results = json.loads(json.dumps(results))
    contest = results["contest"]
    assert set(contest) == set(suite.SMALL.names)
    assert all(contest[name]["peak_bytes"] > 0 for name in ("rl", "plain torch loop, RL"))
    assert {row["way"] for row in results["prior"]} == {"plain", "slabs of 2 MiB", "rows"}
    shares = [results["run"][part] for part in ("read", "solve", "blend", "write", "wait")]
    assert sum(shares) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in shares)
    assert [row["prior"] for row in results["convergence"]] == ["tv", "compact"]
    text = suite.markdown(results)
    for name in suite.SMALL.names:
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert ("not installed" in line) == (contest[name] is None)
