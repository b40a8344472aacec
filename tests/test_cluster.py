"""The room that knows Dask: names on the dashboard, who listens where, who gets which threads."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import pytest
from dask.utils import key_split
from distributed import Client, get_worker

from bigdeconv.engine import cluster, schedule
from bigdeconv.errors import ClusterLostError
from bigdeconv.planner import Request, make_plan


class Recorder:
    """Stands for a client and keeps the keys that it is asked to submit."""

    def __init__(self):
        self.keys = []

    def submit(self, *_, key, **__):
        self.keys.append(key)
        return self

    def add_done_callback(self, _):
        pass


def test_tasks_have_readable_names_by_phase():
    """Dask groups tasks by what `key_split` makes of their keys: one group per phase, none per block."""
    client = Recorder()
    window = schedule._Window(client, 4)
    for name in ("solve", "merge", "downsample"):
        for block in (0, 17, 123456):
            window.submit(block, print, key=f"{name}-{'0123456789abcdef'[:8]}-{block}")
    assert {key_split(key) for key in client.keys} == {"solve", "merge", "downsample"}


@pytest.mark.cluster
def test_without_bokeh_a_line_says_how_to_get_it(cluster_address, monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    with cluster.connect(cluster_address, cluster.LocalWorkers(1, 1)) as connection:
        assert "pip install 'bigdeconv[dashboard]'" in connection.dashboard


@pytest.mark.cluster
def test_a_cluster_that_runs_already_shares_its_cores(cluster_address):
    with cluster.connect(cluster_address, cluster.LocalWorkers(1, 1)) as connection:
        assert connection.slots == 2
        assert not connection.is_local


@pytest.mark.cluster
def test_the_scheduler_forgets_blocks(cluster_address, monkeypatch, tmp_path):
    """Dask's spans would remember each; here every merge is the last of its group of tasks, too."""

    def solve(token, task):
        time.sleep(0.1)

    def merge(token, task, solved, rims):
        return {"block": task.index}

    def remembered(dask_scheduler):
        spans = dask_scheduler.extensions["spans"].spans.values()
        return sum(len(span.groups) + len(span.metadata["collections"]) for span in spans)

    monkeypatch.setattr(schedule.tasks, "solve", solve)
    monkeypatch.setattr(schedule.tasks, "merge", merge)
    plan = make_plan(Request((96, 32, 32), (1, 1, 1), (1.0,) * 3, block_shape=(16, 16, 16), blend=(0, 0, 0)))
    recipe = SimpleNamespace(token="0123456789ab", plan=plan, scratch=tmp_path)
    with cluster.connect(cluster_address, cluster.LocalWorkers(1, 1)) as connection:
        before = connection.client.run_on_scheduler(remembered)
        progress = schedule.run_blocks(connection, (recipe,), None, (), lambda *_: None)
        assert progress.blocks_finished == plan.n_blocks == 24
        # The groups of solve and merge.
        assert connection.client.run_on_scheduler(remembered) - before <= 2


@pytest.mark.cluster
def test_a_local_worker_keeps_its_memory_and_leaves_interrupts_to_the_driver(monkeypatch):
    # Dask's own clusters in this process leave their variables in its environment.
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)

    def environment():
        import os
        import signal

        return (
            os.environ.get("MALLOC_TRIM_THRESHOLD_"),
            os.environ["OMP_NUM_THREADS"],
            signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
            get_worker().address.startswith("tcp://127.0.0.1:"),
        )

    with cluster.connect(None, cluster.LocalWorkers(1, 3)) as connection:
        assert connection.is_local
        assert connection.client.submit(environment).result(timeout=60) == (None, "3", True, True)
        assert "127.0.0.1" in connection.dashboard


def test_an_address_where_nobody_answers_is_named(caplog):
    caplog.set_level(logging.CRITICAL)
    with (
        pytest.raises(ClusterLostError, match=r"no Dask cluster .* 'nowhere\.json'"),
        cluster.connect("nowhere.json", cluster.LocalWorkers(1, 1)),
    ):
        raise AssertionError("it connected")


@pytest.mark.cluster
def test_lost_workers_end_a_run(monkeypatch):
    """A cluster without workers counts as lost after a while, not for ever."""
    monkeypatch.setattr(schedule, "LOST_AFTER_SECONDS", 5)
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as empty,
        Client(empty, set_as_default=False) as client,
    ):
        window = schedule._Window(client, 1)
        window.submit(0, print, key="solve-00000000-0")
        with pytest.raises(ClusterLostError, match="go on with `bigdeconv resume`"):
            window.next()
