"""What many tests share."""

from __future__ import annotations

import logging
import os

import pytest


def pytest_configure():
    """One thread: the volumes are small, and small operations of several threads crawl where another process is busy."""
    import torch

    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what needs the shared cluster, through other fixtures too, so that ``-m "not cluster"`` leaves it out."""
    for item in items:
        if "cluster_address" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory):
    """Halos and costs are measured once per session, and shared with nobody else; child processes inherit it.

    Costs are measured on small windows: how near they are to a block's is the business of ``tests/benchmarks/cost.py``.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bigdeconv.trial.WINDOW", (24, 26, 32))
        patch.setattr("bigdeconv.trial.LARGE_WINDOW", (40, 48, 48))
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
