"""The trial of what a block costs here, on windows so small that it says little; ``tests/benchmarks/cost.py`` has real ones."""

from __future__ import annotations

import pytest

from bigdeconv import models, trial


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trial, "WINDOW", (10, 12, 16))
    monkeypatch.setattr(trial, "LARGE_WINDOW", (20, 24, 24))


@pytest.mark.parametrize("method", ["rl", "rltv", "garl"])
@pytest.mark.parametrize("update", ["convergent", "reference"])
def test_what_is_measured_is_remembered(monkeypatch, method, update):
    subject = trial.Subject(method, update, n_views=3, model="some", device="cpu", threads=1)
    model = models.resolve("standin") if method == "garl" else None
    measured = trial.measure(subject, model)
    assert min(measured.small.transform, measured.large.transform, measured.large.otf, measured.prepare) > 0
    assert method != "rl" or measured.small.prior == measured.large.prior == 0

    monkeypatch.setattr(trial, "_measure", lambda *_: pytest.fail("measured again"))
    assert trial.measure(subject, model) == measured
