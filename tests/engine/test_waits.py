"""No wait is without an end: lost results, silent schedulers, dead workers, full disks and damaged slabs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from distributed import Client, Security

from bigdeconv.engine import schedule
from bigdeconv.engine.clusters import address
from bigdeconv.engine.clusters.connection import connect
from bigdeconv.errors import ClusterLostError, DiskFullError
from bigdeconv.planning.planner import PlanRequest, make_plan
from bigdeconv.planning.resources import Resources
from bigdeconv.storage.journal_summary import JournalSummary
from bigdeconv.storage.overlaps import drop_overlap, has_overlap, read_overlap, write_overlap
from tests.patience import seconds, wait_until

pytestmark = pytest.mark.cluster

PLAN = make_plan(PlanRequest((96, 32, 32), (5, 5, 5), (1.0,) * 3, block_shape=(16, 16, 16), halo=(4, 4, 4)))


def recipe(scratch):
    return SimpleNamespace(token="0123456789ab", plan=PLAN, scratch=str(scratch))


def slow_solve(token, task):
    time.sleep(0.2)
    return np.ones(10)


def quick_merge(token, task, solved, overlaps):
    assert solved.sum() == 10
    return {"block": task.index}


def run_all(connection, scratch, journal=None, on_finished=lambda *_: None):
    journal = journal or JournalSummary(PLAN.n_blocks)
    return schedule.run_blocks(connection, (recipe(scratch),), None, journal, on_finished)


def test_results_that_were_lost_with_their_workers_are_computed_again(monkeypatch, tmp_path):
    """The driver pauses while all workers die with finished tasks: nothing fails, and nobody waits for ever."""
    monkeypatch.setattr(schedule.tasks, "solve", slow_solve)
    monkeypatch.setattr(schedule.tasks, "merge", quick_merge)
    killed = []
    with connect(None, Resources(workers=2)) as connection:

        def kill_workers(record, progress):
            if progress.blocks_finished in (3, 9) and progress.blocks_finished not in killed:
                killed.append(progress.blocks_finished)
                time.sleep(1)  # tasks end meanwhile
                pids = connection.client.run(os.getpid).values()
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(1)

        progress = run_all(connection, tmp_path, on_finished=kill_workers)
    assert killed == [3, 9]
    assert progress.errors == []
    assert progress.blocks_finished == PLAN.n_blocks


def test_a_local_worker_that_dies_for_good_is_replaced(monkeypatch, tmp_path):
    """A nanny gives up where its worker dies while it starts: here it is told to."""
    monkeypatch.setattr(schedule.tasks, "solve", slow_solve)
    monkeypatch.setattr(schedule.tasks, "merge", quick_merge)

    async def close(dask_worker):
        await dask_worker.nanny_close() if hasattr(dask_worker, "nanny_close") else None

    with connect(None, Resources(workers=2)) as connection:
        cluster = connection.client.cluster
        nannies = list(cluster.workers.values())
        for nanny in nannies:
            connection.client.sync(nanny.close)
        wait_until(lambda: not connection.client.scheduler_info()["workers"], 10)
        progress = run_all(connection, tmp_path)
        assert progress.blocks_finished == PLAN.n_blocks
        assert len(connection.client.scheduler_info()["workers"]) == 2


def test_a_damaged_slab_is_made_again_by_its_block(monkeypatch, tmp_path):
    """Damaged behind the driver's back, between the solution of a block and the merge of its neighbour."""
    solved_file = tmp_path / "solved"

    def solve(token, task):
        with solved_file.open("a") as file:
            file.write(f"{task.index}\n")
        for direction in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)):
            write_overlap(tmp_path, task.index, direction, np.full((1, 1, 1), task.index, np.float32))
        if task.index == 2 and solved_file.read_text().split().count("2") == 1:
            for file in tmp_path.rglob("2-*.slab"):
                file.write_bytes(b"torn")
        return task.index

    def merge(token, task, solved, overlaps):
        assert solved == task.index
        for direction, index in overlaps.items():
            assert read_overlap(tmp_path, index, direction).item() == index
        return {"block": task.index}

    monkeypatch.setattr(schedule.tasks, "solve", solve)
    monkeypatch.setattr(schedule.tasks, "merge", merge)
    with connect(None, Resources(workers=2)) as connection:
        progress = run_all(connection, tmp_path)
    assert progress.errors == []
    assert progress.blocks_finished == PLAN.n_blocks
    times = [solved_file.read_text().split().count(str(index)) for index in range(PLAN.n_blocks)]
    assert times[2] >= 2
    assert sum(times) - times[2] == PLAN.n_blocks - 1


def test_a_full_disk_stops_the_run_at_once(monkeypatch, tmp_path):
    """Blocks that were begun end; no other is tried."""

    def solve(token, task):
        raise DiskFullError("cannot write array '0' of out.zarr: [Errno 28] No space left on device")

    monkeypatch.setattr(schedule.tasks, "solve", solve)
    with connect(None, Resources(workers=1)) as connection:
        progress = run_all(connection, tmp_path)
        assert 1 <= progress.blocks_failed <= 2 * connection.slots + 2
    assert progress.blocks_finished == 0
    assert all("No space left" in error for error in progress.errors)


@pytest.fixture
def silent_address():
    """Address of a server that accepts connections and never says anything."""
    code = "import socket,time; s=socket.create_server(('127.0.0.1',0)); print(s.getsockname()[1],flush=True); time.sleep(600)"
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    yield f"tcp://127.0.0.1:{server.stdout.readline().strip()}"
    server.kill()
    server.wait()


def test_a_scheduler_that_says_nothing_is_given_up(silent_address, monkeypatch):
    monkeypatch.setattr(address, "JOIN_SECONDS", 3.0)
    started = time.monotonic()
    with pytest.raises(ClusterLostError, match="no Dask cluster with workers answers"):
        address.join(silent_address)
    assert time.monotonic() - started < seconds(60)


def test_a_server_of_another_kind_is_no_scheduler(monkeypatch):
    monkeypatch.setattr(address, "JOIN_SECONDS", 10.0)
    code = (
        "import http.server as h; s=h.HTTPServer(('127.0.0.1',0),h.BaseHTTPRequestHandler); "
        "print(s.server_port,flush=True); s.serve_forever()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        with pytest.raises(ClusterLostError, match="no Dask cluster with workers answers"):
            address.join(f"tcp://127.0.0.1:{server.stdout.readline().strip()}")
    finally:
        server.kill()
        server.wait()


def test_nobody_listens(monkeypatch):
    monkeypatch.setattr(address, "JOIN_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ClusterLostError):
        address.join(f"tcp://127.0.0.1:{port}")


def test_slabs_are_looked_for_before_a_neighbour_needs_them(monkeypatch, tmp_path):
    """Finished blocks whose slabs were purged are solved again, once, and not merged again."""
    merged, journal = [], JournalSummary(PLAN.n_blocks)
    for index in range(4):
        journal.add({"block": index})

    def solve(token, task):
        write_overlap(tmp_path, task.index, (1, 0, 0), np.zeros((1, 1, 1), np.float32))
        return np.ones(10)

    monkeypatch.setattr(schedule.tasks, "solve", solve)
    monkeypatch.setattr(schedule.tasks, "merge", quick_merge)
    with connect(None, Resources(workers=1)) as connection:
        progress = run_all(connection, tmp_path, journal, lambda record, _: merged.append(record["block"]))
    assert progress.blocks_finished == PLAN.n_blocks
    assert sorted(merged) == list(range(4, PLAN.n_blocks))
    drop_overlap(tmp_path, 0, (1, 0, 0))
    assert not has_overlap(tmp_path, 0, (1, 0, 0))


def test_only_those_with_its_certificate_reach_a_cluster_of_our_own():
    """Every user of a node reaches its loopback."""
    with connect(None, Resources(workers=1)) as connection:
        scheduler = connection.client.scheduler.address
        workers = list(connection.client.scheduler_info()["workers"])
        assert {a.split("://")[0] for a in (scheduler, *workers)} == {"tls"}
        for spoken in (scheduler, *workers):
            with pytest.raises((OSError, TimeoutError)):
                Client(spoken.replace("tls://", "tcp://"), timeout=3, set_as_default=False)
            others = Security.temporary()
            with pytest.raises((OSError, TimeoutError)):
                Client(spoken, security=others, timeout=3, set_as_default=False)


def test_secrets_in_addresses_are_not_shown(monkeypatch):
    monkeypatch.setattr(address, "JOIN_SECONDS", 3.0)
    with pytest.raises(ClusterLostError) as found:
        address.join("tcp://user:hunter2@127.0.0.1:1?token=hunter2")
    assert "hunter2" not in str(found.value)


def test_a_cluster_is_joined_from_within_an_event_loop(cluster_address):
    """A notebook runs in one."""

    async def cell():
        address.join(cluster_address).close()

    asyncio.run(cell())


def test_a_scheduler_that_stops_answering_is_given_up(monkeypatch, cluster_address):
    monkeypatch.setattr(schedule, "LOOK_SECONDS", 1.0)
    monkeypatch.setattr(schedule, "POLL_SECONDS", 0.5)
    monkeypatch.setattr(schedule, "LOST_AFTER_SECONDS", 3.0)
    with Client(cluster_address, set_as_default=False) as client:
        window = schedule._Window(SimpleNamespace(client=client, replace_dead_workers=lambda: None), 1)

        async def never(**_):
            await asyncio.sleep(600)

        monkeypatch.setattr(client, "scheduler", SimpleNamespace(identity=never))
        started = time.monotonic()
        with pytest.raises(ClusterLostError, match="all workers are gone"):
            window.next()
        assert time.monotonic() - started < seconds(30)
        monkeypatch.undo()
