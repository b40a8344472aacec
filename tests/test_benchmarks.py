"""The benchmarks still run, and what they print is what they found."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from bigdeconv.numerics.priors import wcrr
from bigdeconv.numerics.priors.filters import SequentialConvolutions
from tests.benchmarks import auto_tau, compare, contestants, curvature_cap, gpu, suite


@pytest.mark.cluster
def test_the_suite_runs(tmp_path, cluster_address):
    results = json.loads(json.dumps(suite.run(tmp_path, suite.SMALL, scheduler=cluster_address)))
    contest = results["contest"]
    assert set(contest) == set(suite.SMALL.names)
    # A loop that keeps its transforms holds several of them at once.
    assert contest["plain torch loop, RL"]["peak_bytes"] > 4 * np.prod(results["fft_shape"])
    assert {row["way"] for row in results["prior"]} == {"plain", "slabs of 2 MiB", "segments"}
    for run in results["io"]["shares"].values():
        assert all(0 <= run[part] <= 1 for part in ("read", "solve", "blend", "write", "wait"))
        assert run["blocks"] == 4
    for row in results["io"]["traffic"]:
        # The codec decodes as many voxels as the plan says, and as many as a worker that keeps none.
        assert row["decoded"] == pytest.approx(row["decoded_planned"])
        assert {kept[0] for kept in row["kept"].values()} == {row["decoded_planned"]}
        assert row["kept"]["1"][-1] == pytest.approx(1)
        # Photon noise on 20 counts has an entropy of 4.2 bits per voxel; the levels add a seventh.
        assert 0.5 < row["bytes_written"] < 2 * (1 + 1 / 8 + 1 / 64 + 1 / 512)
    assert [row["prior"] for row in results["convergence"]] == ["tv", "compact"]
    text = suite.markdown(results)
    for name in suite.SMALL.names:
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert ("not installed" in line) == (contest[name] is None)


def test_our_contestant_is_what_the_loop_computes():
    """Contestants solve one problem: on data with a margin of background, two ways to pad differ little."""
    rng = np.random.default_rng(0)
    data = np.full((24, 24, 24), contestants.BACKGROUND, np.float32)
    data[8:16, 8:16, 8:16] += rng.uniform(0.5, 1.0, (8, 8, 8)).astype(np.float32)
    psf_zyx = np.full((3, 3, 3), 1 / 27, np.float32)
    ours, loop = (make(data, psf_zyx)(4) for make in (contestants.OURS["rl"], contestants.plain_loop))
    inner = (slice(6, 18),) * 3
    # They start the momentum differently.
    assert np.linalg.norm(ours[inner] - loop[inner]) < 0.1 * np.linalg.norm(loop[inner])


def test_the_script_for_gpus_runs_without_one():
    results = gpu.run("cpu", [16], (10, 12, 14), iterations=2, steps=1)
    assert set(results["difference"]) == set(gpu.METHODS)
    assert [row["method"] for row in results["timing"]] == list(gpu.METHODS)
    assert all(math.isfinite(row["ns_per_fft_voxel"]) for row in results["timing"])


def test_the_script_for_gpus_sees_a_device_that_computes_otherwise(monkeypatch):
    restore, devices = gpu.restore, []

    def restored(photons, weights, operator, prior, settings):
        devices.append(settings.device)
        # The first of the two is that of the device.
        return restore(photons, weights, operator, prior, settings) * (1.002 if len(devices) == 1 else 1.0)

    monkeypatch.setattr(gpu, "restore", restored)
    found = gpu.difference("rl", "cpu", (10, 12, 14), iterations=2)
    assert found == pytest.approx(0.002, rel=1e-3)
    assert gpu.failures({"difference": {"rl": found}, "gradient": {}, "tests": 0})
    assert gpu.failures({"difference": {"rl": math.nan}, "gradient": {}, "tests": 0})
    assert gpu.failures({"difference": {"rl": 1e-6}, "gradient": {}, "tests": 1})
    assert not gpu.failures({"difference": {"rl": 1e-6}, "gradient": {}, "tests": 0})


def test_the_script_for_gpus_sees_products_of_ten_bits(monkeypatch):
    def rounded(x):
        return (x.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32)

    class Rounding(SequentialConvolutions):
        def _respond(self, part):
            return super()._respond(rounded(part))

    monkeypatch.setattr(wcrr, "_filters_for", lambda *_: Rounding)
    found = gpu.gradient("garl, compact", "cpu", (8, 9, 10))
    [sentence] = gpu.failures({"difference": {}, "gradient": {"garl, compact": found}, "tests": 0})
    assert "gradient" in sentence


def test_the_script_for_gpus_writes_its_results_before_the_tests(monkeypatch, tmp_path):
    """Tests that take the machine down leave the measurements; and they are the tests for GPUs only."""
    seen = {}

    def died(command, **_):
        seen.update(command=command, results=json.loads((tmp_path / "gpu.json").read_text()))
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "run", lambda *_, **__: {"difference": {"rl": 0.0}, "gradient": {}})
    monkeypatch.setattr(gpu.subprocess, "run", died)
    monkeypatch.setattr("sys.argv", ["gpu", str(tmp_path), "--device", "cpu"])
    with pytest.raises(KeyboardInterrupt):
        gpu.main()
    assert seen["results"] == {"difference": {"rl": 0.0}, "gradient": {}}
    assert [word for word in seen["command"] if word.endswith(".py")] == ["tests/test_cuda.py"]


def test_convolutions_are_counted_by_hand():
    """3×3×3 taps between 1, 4, 8 and 64 channels, a product and a sum each, forward and adjoint."""
    model = suite.prior.models.resolve("large")
    assert gpu.convolution_flop(model) == 2 * 2 * 27 * (1 * 4 + 4 * 8 + 8 * 64)


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


@pytest.mark.cluster
def test_another_checkout_is_measured_by_the_same_workloads(tmp_path):
    """This checkout counts as the other one, in fresh processes that see it and nothing else."""
    for name in ("gradient", "iteration"):
        assert math.isfinite(compare.measure(name, compare.ROOT, "small", tmp_path)["cpu_ms"])
    block = compare.measure("block", compare.ROOT, "small", tmp_path)
    assert 0.5 * block["planned_mib"] < block["peak_mib"] <= block["planned_mib"]
    with pytest.raises(RuntimeError, match=r"(?s)gradient on .*Error"):
        compare.measure("gradient", tmp_path / "empty", "small", tmp_path)


def test_ratios_of_two_checkouts_are_new_over_old():
    found = {
        "iteration cpu_ms": {"old": [4.0, 2.0, 8.0], "new": [3.0, 6.0, 3.0]},
        "run voxels": {"old": ["aa", "aa"], "new": ["aa", "aa"]},
        "other voxels": {"old": ["aa", "aa"], "new": ["aa", "bb"]},
    }
    rows = compare.table(found).splitlines()[2:]
    assert rows == [
        "| iteration cpu_ms | 2 | 3 | 1.500 | 0.750 |",
        "| run voxels | aa | aa | the same | |",
        "| other voxels | aa | aa | **differ** | |",
    ]
