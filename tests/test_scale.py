"""Driver and scheduler stay as they are while blocks go by: a small part of ``tests/benchmarks/scale.py``."""

from __future__ import annotations

import json

import pytest

from bigdeconv.engine import schedule
from tests.benchmarks import scale


@pytest.mark.cluster
@pytest.mark.full
def test_driver_and_scheduler_stay_flat(monkeypatch):
    monkeypatch.setattr(schedule.tasks, "solve", scale.solve)
    monkeypatch.setattr(schedule.tasks, "merge", scale.merge)
    measured = scale.run(blocks=2000, workers=1)
    assert measured.driver_growth_mb < 10
    assert measured.scheduler_growth_mb < 10
    # A line per block and nothing else; indices have up to four digits.
    longest = len(json.dumps({"block": 9999, **scale.SOLVED, **scale.MERGED})) + 1
    assert longest - 3 <= measured.journal_bytes <= longest
    # Measured 0.03 s; it grows with the journal, not with its square.
    assert measured.resume_cpu_s < 1
