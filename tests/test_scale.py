"""Driver and scheduler stay as they are while blocks go by: a small part of ``tests/benchmarks/scale.py``."""

from __future__ import annotations

import pytest

from bigdeconv.engine import schedule
from tests.benchmarks import scale


@pytest.mark.cluster
def test_driver_and_scheduler_stay_flat(monkeypatch):
    monkeypatch.setattr(schedule.tasks, "solve", scale.solve)
    monkeypatch.setattr(schedule.tasks, "merge", scale.merge)
    measured = scale.run(blocks=2000, workers=1)
    assert measured.driver_growth_mb < 10
    assert measured.scheduler_growth_mb < 10
    assert 0 < measured.journal_bytes < 300
    assert 0 < measured.resume_cpu_s < 5
