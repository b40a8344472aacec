"""What a plan promises, a real process keeps: a part of ``tests/benchmarks/memory.py``."""

from __future__ import annotations

import pytest

from tests.benchmarks.memory import GIB, Case, measure

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    "case",
    [
        # Small arrays leave gaps in heaps.
        Case((64,) * 3, (4.0,) * 3, "garl", views=4),
        # Every term in use.
        Case((192,) * 3, (2.0,) * 3, "rl", dtype="float32", output="float32", holes=True),
        # Above 1 GiB, where much in vain is a fault too, with a prior.
        Case((192,) * 3, (2.0,) * 3, "rltv"),
    ],
    ids=str,
)
def test_the_promise_is_kept_and_no_waste(case):
    promised, peak = measure(case)
    assert peak <= promised
    assert promised < GIB or peak >= 0.7 * promised
