"""Lanes and limits of all tests, and a cache and a cluster of their own."""

from __future__ import annotations

import logging
import os

import pytest

from tests import patience

LANE = os.environ.get("BIGDECONV_TEST_LANE", "")
"""``full`` for all tests."""
QUIET_SECONDS = 75
"""No test with processes takes longer on a quiet machine; `patience.seconds` of it is the limit."""


def pytest_configure():
    """One thread: the volumes are small, and small operations of several threads crawl where another process is busy."""
    import torch

    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Put every test in its lane, so that ``-m quick`` and ``-m "not cluster"`` leave out what they should.

    What needs the shared cluster is ``cluster``, through other fixtures too.  What is in no slower lane is ``quick``.  What is
    ``full`` runs if asked for (`.ci/run --full`, or ``-m full``).
    """
    for item in items:
        if "cluster_address" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)
        if not any(item.get_closest_marker(name) for name in ("cluster", "cuda", "slow", "full")):
            item.add_marker(pytest.mark.quick)
    if LANE != "full" and "full" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Give tests with processes a limit that goes with the load when they begin, unless they have one of their own."""
    if item.get_closest_marker("cluster") and not item.get_closest_marker("timeout"):
        item.add_marker(pytest.mark.timeout(patience.seconds(QUIET_SECONDS)))
    return (yield)


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory):
    """Halos and costs are measured once per session, and shared with nobody else; child processes inherit it.

    Costs are measured on small windows: how near they are to a block's is the business of ``tests/benchmarks/cost.py``.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bigdeconv.calibration.block_cost.WINDOW", (24, 26, 32))
        patch.setattr("bigdeconv.calibration.block_cost.LARGE_WINDOW", (40, 48, 48))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in [n for n in os.environ if n.startswith("BIGDECONV_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def cluster_address():
    """Address of a scheduler with two workers of one thread each, started once: their start costs more than most runs."""
    from distributed import LocalCluster

    cluster = LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        silence_logs=logging.ERROR,
    )
    with cluster:
        yield cluster.scheduler_address


@pytest.fixture
def no_cluster(monkeypatch):
    """Let every attempt to start or join a cluster fail."""

    def connect(*_, **__):
        raise AssertionError("a cluster is not needed for this")

    monkeypatch.setattr("bigdeconv.pipeline.connect", connect)
