"""The driver's loop: names on the dashboard, and schedulers that remember nothing of ours."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from dask.utils import key_split
from distributed import Client

import bigdeconv
from bigdeconv.config import make_config
from bigdeconv.engine import plugins, schedule
from bigdeconv.engine.clusters.connection import connect
from bigdeconv.planning.planner import PlanRequest, make_plan
from bigdeconv.planning.resources import Resources
from bigdeconv.storage.journal_summary import JournalSummary
from tests import make
from tests.patience import wait_until


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
    window = schedule._Window(SimpleNamespace(client=client), 4)
    for name in ("solve", "merge", "downsample"):
        for block in (0, 17, 123456):
            window.submit(block, print, key=f"{name}-{'0123456789abcdef'[:8]}-{block}")
    assert {key_split(key) for key in client.keys} == {"solve", "merge", "downsample"}


@pytest.mark.cluster
def test_the_scheduler_of_a_cluster_of_our_own_forgets_blocks(monkeypatch, tmp_path):
    """Dask's spans would remember each; here every merge is the last of its group of tasks, too."""

    def solve(token, task):
        time.sleep(0.1)

    def merge(token, task, solved, overlaps):
        return {"block": task.index}

    def remembered(dask_scheduler):
        spans = dask_scheduler.extensions["spans"].spans.values()
        return sum(len(span.groups) + len(span.metadata["collections"]) for span in spans)

    monkeypatch.setattr(schedule.tasks, "solve", solve)
    monkeypatch.setattr(schedule.tasks, "merge", merge)
    plan = make_plan(PlanRequest((96, 32, 32), (1, 1, 1), (1.0,) * 3, block_shape=(16, 16, 16), blend=(0, 0, 0)))
    recipe = SimpleNamespace(token="0123456789ab", plan=plan, scratch=tmp_path)
    with connect(None, Resources()) as connection:
        before = connection.client.run_on_scheduler(remembered)
        journal = JournalSummary(plan.n_blocks)
        progress = schedule.run_blocks(connection, (recipe,), None, journal, lambda *_: None)
        assert progress.blocks_finished == plan.n_blocks == 24
        # The groups of solve and merge.
        assert connection.client.run_on_scheduler(remembered) - before <= 2


def traces(client):
    """Return what a scheduler and its workers keep of anybody: plugins, tasks, clients, recipes."""

    def of_scheduler(dask_scheduler):
        return {
            "scheduler plugins": sorted(dask_scheduler.plugins),
            "worker plugins": sorted(dask_scheduler.worker_plugins),
            "nanny plugins": sorted(dask_scheduler.nanny_plugins),
            "tasks": sorted(str(key) for key in dask_scheduler.tasks),
            "handlers": sorted(dask_scheduler.handlers),
            "clients": len(dask_scheduler.clients),
        }

    def of_worker(dask_worker):
        import sys

        tasks = sys.modules.get("bigdeconv.engine.tasks")
        return {
            "plugins": sorted(dask_worker.plugins),
            "recipes": sorted(tasks.RECIPES) if tasks else [],
            "tasks": sorted(str(key) for key in dask_worker.state.tasks),
            "data": len(dask_worker.data),
        }

    return {"scheduler": client.run_on_scheduler(of_scheduler)} | client.run(of_worker)


@pytest.mark.cluster
class TestSharedScheduler:
    """On a scheduler that serves others too, a run leaves nothing of its own, however it ends."""

    @pytest.fixture
    def other(self, cluster_address):
        """The connection of somebody else, who is there before and afterwards."""
        with Client(cluster_address, set_as_default=False) as client:
            # A worker loads the module of the tasks once, and keeps it.
            client.run(lambda: __import__("bigdeconv.engine.tasks"))
            yield client

    @pytest.fixture
    def job(self, cluster_address, tmp_path):
        image = make.volume(tmp_path / "in.zarr", make.scene(8, 32, 128), chunk=(8, 32, 32))
        return make_config(
            {
                "input": str(image),
                "output": str(tmp_path / "out.zarr"),
                "psf": make.psf_tiff(tmp_path / "psf.tif"),
                "method": "rl",
                "iterations": 3,
                "output_scale": 8,
                "block_shape": (8, 32, 32),
                "scheduler": cluster_address,
            }
        )

    @staticmethod
    def left(before, other):
        """Wait until nothing is left but what was there before: tasks that were cancelled may still go on."""
        wait_until(lambda: traces(other) == before, 30)

    def test_after_a_run_that_ended_well(self, job, other):
        before = traces(other)
        during = []
        events = bigdeconv.Events(progressed=lambda _: during.append(traces(other)))
        assert bigdeconv.run(job, events=events).complete
        # What is looked at is there while the run goes on.
        (name,) = set(during[0]["scheduler"]["worker plugins"]) - set(before["scheduler"]["worker plugins"])
        assert name.startswith("bigdeconv-")
        assert during[0]["scheduler"]["scheduler plugins"] == before["scheduler"]["scheduler plugins"]
        assert any(found["recipes"] for address, found in during[0].items() if address != "scheduler")
        self.left(before, other)

    def test_after_blocks_that_failed(self, job, other, tmp_path):
        make.flip(tmp_path / "in.zarr" / "0" / "c" / "0" / "0" / "1")
        before = traces(other)
        summary = bigdeconv.run(job)
        assert summary.blocks_failed > 0
        self.left(before, other)

    def test_after_an_interrupt(self, job, other):
        def interrupt(_):
            raise KeyboardInterrupt

        before = traces(other)
        with pytest.raises(KeyboardInterrupt):
            bigdeconv.run(job, events=bigdeconv.Events(progressed=interrupt))
        self.left(before, other)

    def test_after_an_error_of_the_driver(self, job, other):
        def fail(_):
            raise OSError(28, "No space left on device")

        before = traces(other)
        with pytest.raises(OSError, match="No space left"):
            bigdeconv.run(job, events=bigdeconv.Events(progressed=fail))
        self.left(before, other)

    def test_after_a_report_with_probes(self, job, other, monkeypatch):
        """Probes of a report run on workers of this machine: the shared scheduler hears nothing of them."""
        bigdeconv.run(job)
        before = traces(other)
        monkeypatch.setattr("bigdeconv.pipeline.run_probes", lambda *_: ([], []))
        bigdeconv.report(job.output, probes_count=1)
        assert traces(other) == before


@pytest.mark.cluster
def test_two_runs_on_one_cluster_keep_their_recipes_apart(cluster_address, tmp_path):
    """Each start has its own token: the end of one does not take away what another works with."""
    recipes = []
    for name in ("one", "two"):
        image = make.volume(tmp_path / name / "in.zarr", make.scene(8, 16, 16))
        config = {"input": str(image), "output": str(tmp_path / name / "out.zarr"), "method": "rl"}
        psf = make.psf_tiff(tmp_path / name / "psf.tif")
        recipes.append(make.start_job(make_config(config | {"psf": psf, "device": "cpu"})))
    tokens = [r[0].token for r in recipes]
    assert len(set(tokens)) == 2

    def known():
        from bigdeconv.engine import tasks

        return sorted(tasks.RECIPES)

    with Client(cluster_address, set_as_default=False) as client:
        with plugins.installed(client, recipes[0]):
            with plugins.installed(client, recipes[1]):
                assert all(set(tokens) <= set(found) for found in client.run(known).values())
            assert all(tokens[0] in found and tokens[1] not in found for found in client.run(known).values())
        assert all(not set(tokens) & set(found) for found in client.run(known).values())
