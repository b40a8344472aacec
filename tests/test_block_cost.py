"""The trial that measures the cost of a block; ``tests/benchmarks/cost.py`` compares it with real blocks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bigdeconv import models
from bigdeconv.calibration import block_cost
from bigdeconv.numerics.richardson_lucy import prior_window

WINDOW, LARGE_WINDOW = (10, 12, 16), (20, 24, 24)
TRANSFORM, OTF, PRIOR, PREPARE, FINISH, DECODE, ENCODE = 3e-10, 5e-10, 7e-9, 2e-8, 4e-9, 1e-9, 6e-9
"""Seconds per unit of work, see `Costs` and `Rates`; of finishing, decoding and encoding a voxel."""


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(block_cost, "WINDOW", WINDOW)
    monkeypatch.setattr(block_cost, "LARGE_WINDOW", LARGE_WINDOW)


@pytest.fixture
def steady_machine(monkeypatch):
    """A machine on which each unit of work takes a known time, by a clock that nothing else moves."""
    now = [0.0]

    def takes(name, seconds_of, module=block_cost):
        real = getattr(module, name)

        def timed(*arguments, **options):
            result = real(*arguments, **options)
            now[0] += seconds_of(result, *arguments)
            return result

        monkeypatch.setattr(module, name, timed)

    def restoring(result, photons, weights, operator, prior, settings):
        n_fft = math.prod(operator.fft_shape)
        transforms = (settings.iterations + 1) * (len(photons) + 1) * n_fft * math.log2(n_fft)
        acted_on = math.prod(s.stop - s.start for s in prior_window(operator))
        return TRANSFORM * transforms + (PRIOR * settings.iterations * acted_on if prior else 0.0)

    monkeypatch.setattr(block_cost, "_clock", lambda device: lambda: now[0])
    monkeypatch.setattr(block_cost.codecs, "seconds_per_voxel", lambda: (DECODE, ENCODE))
    takes("prepare_views", lambda result, counts, *_: PREPARE * counts.size)
    takes("restore", restoring)
    takes("levels_of", lambda result, stored, levels: FINISH * stored.size, block_cost.block)
    takes("operator", lambda made, psf, *_: OTF * psf.n_views * math.prod(made.fft_shape), block_cost.PSF)


@pytest.mark.parametrize(
    ("method", "update", "n_views", "inner_iterations"),
    [
        ("rl", "convergent", 1, None),
        ("rltv", "convergent", 1, 1),
        ("rltv", "reference", 1, 1),
        ("garl", "convergent", 1, 1),
        # Measured with two views and one inner iteration; 16 views take four.
        ("garl", "convergent", 16, 4),
        ("garl", "reference", 16, 1),
    ],
)
def test_costs_are_times_over_work(steady_machine, method, update, n_views, inner_iterations):
    subject = block_cost.Subject(method, update, n_views, model="some", device="cpu", threads=1)
    found = block_cost.measure(subject, models.resolve("finite-differences") if method == "garl" else None)
    for rates in (found.small, found.large):
        assert rates.transform == pytest.approx(TRANSFORM)
        assert rates.otf == pytest.approx(OTF)
        assert rates.prior == pytest.approx(PRIOR * inner_iterations if inner_iterations else 0.0)
    assert found.prepare == pytest.approx(PREPARE)
    assert found.decode == DECODE
    assert found.write == pytest.approx(ENCODE + FINISH)


@pytest.mark.parametrize("method", ["rl", "rltv", "garl"])
@pytest.mark.parametrize("update", ["convergent", "reference"])
def test_measured_costs_are_cached(monkeypatch, method, update):
    subject = block_cost.Subject(method, update, n_views=3, model="some", device="cpu", threads=1)
    model = models.resolve("finite-differences") if method == "garl" else None
    measured = block_cost.measure(subject, model)
    monkeypatch.setattr(block_cost, "_measure", lambda *_: pytest.fail("measured again"))
    assert block_cost.measure(subject, model) == measured


def test_a_gpu_is_warm_before_it_is_timed_and_larger_windows_fill_it(monkeypatch):
    """By a stand-in that computes on the CPU: loading libraries took longer than the work that was timed."""
    monkeypatch.setattr(block_cost, "GPU_WINDOW", WINDOW)
    monkeypatch.setattr(block_cost, "GPU_LARGE_WINDOW", LARGE_WINDOW)
    events = []
    real = block_cost.restore

    def restoring(*arguments):
        events.append("restore")
        return real(*arguments)

    def clock():
        events.append("time")
        return 0.0

    monkeypatch.setattr(block_cost, "restore", restoring)
    monkeypatch.setattr(block_cost, "_clock", lambda device: clock)
    monkeypatch.setattr(block_cost.machine, "release_gpu_memory", lambda: events.append("empty"))
    monkeypatch.setattr(
        block_cost, "_settings", lambda subject, n, of=block_cost._settings: replace(of(subject, n), device="cpu")
    )
    block_cost.measure(block_cost.Subject("rl", "convergent", 1, model="", device="cuda", threads=1), None)
    times = [i for i, event in enumerate(events) if event == "time"]
    restorations = [i for i, event in enumerate(events) if event == "restore"]
    # Four times belong to preparing and finishing; then a restoration that no two times enclose.
    assert restorations[0] > times[3]
    assert events[restorations[0] + 1] == "time"
    assert events[-1] == "empty"


@pytest.mark.parametrize("name", [None, "NVIDIA H200"])
def test_costs_are_kept_apart_by_the_card(monkeypatch, name):
    monkeypatch.setattr(block_cost.torch.cuda, "is_available", lambda: name is not None)
    monkeypatch.setattr(block_cost.torch.cuda, "get_device_name", lambda: name)
    assert block_cost._machine()[-1] == name
