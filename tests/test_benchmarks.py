"""The benchmarks still run, and what they print is what they found."""

from __future__ import annotations

import json
import math

import pytest

from tests.benchmarks import auto_tau, curvature_cap, gpu, suite


@pytest.mark.cluster
def test_the_suite_runs(tmp_path, cluster_address):
    results = json.loads(json.dumps(suite.run(tmp_path, suite.SMALL, scheduler=cluster_address)))
    contest = results["contest"]
    assert set(contest) == set(suite.SMALL.names)
    assert all(contest[name]["peak_bytes"] > 0 for name in ("rl", "plain torch loop, RL"))
    assert {row["way"] for row in results["prior"]} == {"plain", "slabs of 2 MiB", "segments"}
    for run in results["io"]["shares"].values():
        assert all(0 <= run[part] <= 1 for part in ("read", "solve", "blend", "write", "wait"))
    for row in results["io"]["traffic"]:
        # What is counted at the codec is what the plan says, and what a worker decodes that keeps nothing.
        assert row["decoded"] == pytest.approx(row["decoded_planned"])
        assert {kept[0] for kept in row["kept"].values()} == {row["decoded_planned"]}
        assert row["kept"]["1"][-1] == pytest.approx(1)
        assert 0 < row["bytes_written"] < 2 * (1 + 1 / 8 + 1 / 64 + 1 / 512)
    assert [row["prior"] for row in results["convergence"]] == ["tv", "compact"]
    text = suite.markdown(results)
    for name in suite.SMALL.names:
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert ("not installed" in line) == (contest[name] is None)


def test_the_script_for_gpus_runs_without_one():
    results = gpu.run("cpu", [16], (10, 12, 14), iterations=2, steps=1)
    assert results["apart"] == dict.fromkeys(gpu.METHODS, 0.0)
    assert [row["method"] for row in results["timing"]] == list(gpu.METHODS)
    assert all(math.isfinite(row["ns_per_fft_voxel"]) for row in results["timing"])


def test_the_chain_is_counted_by_hand():
    """3×3×3 taps between 1, 4, 8 and 64 channels, a product and a sum each, there and back."""
    model = suite.prior.models.resolve("large")
    assert gpu.chain_flop(model) == 2 * 2 * 27 * (1 * 4 + 4 * 8 + 8 * 64)


def test_the_trials_behind_the_constants_run(monkeypatch, capsys):
    for name, value in {"SHAPE": (8, 12, 12), "MARKS": (1, 2), "STRENGTHS": (10.0,)}.items():
        monkeypatch.setattr(curvature_cap, name, value)
    curvature_cap.compare(11, 10.0)
    assert capsys.readouterr().out.count("μ ≤") == 4
    for name, value in {"SHAPE": (8, 16, 16), "PHOTONS": (30,), "FACTORS": (1.0,)}.items():
        monkeypatch.setattr(auto_tau, name, value)
    monkeypatch.setattr("sys.argv", ["auto_tau"])
    auto_tau.main()
    assert "auto less best: +0.00 dB" in capsys.readouterr().out
