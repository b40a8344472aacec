"""What a plan promises, a real process keeps: a part of ``tests/benchmarks/memory.py``."""

from __future__ import annotations

import pytest

from tests.benchmarks.memory import GIB, Case, measure

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    "case",
    [
        Case((96,) * 3, (1.0,) * 3, "rl"),
        Case((64,) * 3, (2.0,) * 3, "garl", views=4),
        Case((16, 768, 768), (1.0, 1.0, 1.0), "rl", holes=True),
    ],
    ids=str,
)
def test_the_promise_is_kept_and_no_waste(case):
    promised, peak = measure(case)
    assert peak <= promised
    assert promised < GIB or peak >= 0.7 * promised
