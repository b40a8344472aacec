"""Clusters: who listens where, who gets which threads and memory, and what a worker loads."""

from __future__ import annotations

import logging
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
from distributed import Client, get_worker

import bigdeconv
from bigdeconv import pipeline
from bigdeconv.engine import schedule
from bigdeconv.engine.clusters import connection as connections
from bigdeconv.engine.clusters.connection import Connection, connect
from bigdeconv.engine.machine import Gpu
from bigdeconv.errors import BudgetError, ClusterLostError, InvalidInputError
from bigdeconv.jobs import preconditions
from bigdeconv.planning.resources import Resources
from tests import make
from tests.patience import seconds, wait_until


@pytest.fixture(scope="module")
def own():
    """A connection to a cluster of our own, with one worker of three threads."""
    with pytest.MonkeyPatch.context() as patch:
        # Dask's own clusters in this process leave their variables in its environment.
        patch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
        with connect(None, Resources(1, 3)) as connection:
            yield connection


@pytest.mark.cluster
def triton_without_compiler():
    return "no C compiler"


class TestRunning:
    """A cluster that runs already."""

    def test_without_bokeh_a_line_says_how_to_get_it(self, cluster_address, monkeypatch):
        monkeypatch.setattr(connections, "find_spec", lambda _: None)
        with connect(cluster_address, Resources()) as connection:
            assert "pip install 'bigdeconv[dashboard]'" in connection.dashboard

    def test_it_shares_its_cores(self, cluster_address):
        with connect(cluster_address, Resources()) as connection:
            assert connection.slots == 2
            assert not connection.is_local

    def test_a_worker_with_too_little_memory_is_refused(self, cluster_address, monkeypatch):
        with connect(cluster_address, Resources()) as connection:
            assert connections.memory_limits(connection) == []
            limited = [worker | {"memory_limit": 2**30} for worker in connections._workers(connection.client)]
            monkeypatch.setattr(connections, "_workers", lambda _: limited)
            limits = connections.memory_limits(connection)
        preconditions.require_memory([], 2**50)
        preconditions.require_memory(limits, 2**30)
        with pytest.raises(BudgetError, match=r"needs 1\.50 GiB per worker, .* limited to 1\.00 GiB; lower --memory"):
            preconditions.require_memory(limits, 3 * 2**29)

    def test_devices_of_the_workers_are_known(self, cluster_address):
        with connect(cluster_address, Resources()) as connection:
            assert len(connections.cuda_devices(connection)) == len(connections.gpus(connection)) == 2
        card = Gpu("a card", "one", 8 * 2**30)
        other = replace(card, identity="other", free_bytes=2**30)
        with pytest.raises(InvalidInputError, match=r"1 of 2 workers have no CUDA device .*tcp://b.*--device cpu"):
            preconditions.require_gpus({"tcp://a": card, "tcp://b": None}, 1)
        with pytest.raises(InvalidInputError, match=r"2 workers compute on one GPU \(one\).*CUDA_VISIBLE_DEVICES"):
            preconditions.require_gpus({"tcp://a": card, "tcp://b": card}, 1)
        with pytest.raises(
            BudgetError, match=r"needs 2\.00 GiB of GPU memory, but a card of tcp://b has 1\.00 GiB free"
        ):
            preconditions.require_gpus({"tcp://a": card, "tcp://b": other}, 2**31)
        preconditions.require_gpus({"tcp://a": card, "tcp://b": other}, 2**30)
        assert preconditions.idle_gpus({"tcp://a": 0}) == []
        assert preconditions.idle_gpus({"tcp://a": 2, "tcp://b": 0}) == [
            "1 of 2 workers have a GPU that is not used; add --device cuda."
        ]

    def test_slow_kernels_of_the_prior_are_told(self, cluster_address, monkeypatch):
        """A worker's own log reaches nobody."""
        monkeypatch.setattr(connections, "fused_filters_problem", triton_without_compiler)
        with connect(cluster_address, Resources()) as connection:
            found = connections.kernel_problems(connection)
        assert list(found.values()) == ["no C compiler"] * 2
        [sentence] = preconditions.kernel_warnings(found | {"tcp://good": None})
        assert sentence.startswith("2 of 3 workers cannot use the fast kernels")
        assert "no C compiler" in sentence
        assert preconditions.kernel_warnings({"tcp://good": None}) == []

    def test_lost_workers_end_a_run(self, monkeypatch):
        """A cluster without workers counts as lost after a while, not for ever."""
        monkeypatch.setattr(schedule, "LOST_AFTER_SECONDS", 5)
        from distributed import LocalCluster

        with (
            LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as empty,
            Client(empty, set_as_default=False) as client,
        ):
            window = schedule._Window(Connection(client, "", is_local=False, slots=1), 1)
            window.submit(0, print, key="solve-00000000-0")
            with pytest.raises(ClusterLostError, match="continue with `bigdeconv resume`"):
                window.next()


def test_an_address_where_nobody_answers_is_named(caplog):
    caplog.set_level(logging.CRITICAL)
    with (
        pytest.raises(ClusterLostError, match=r"no Dask cluster .* 'nowhere\.json'"),
        connect("nowhere.json", Resources()),
    ):
        raise AssertionError("it connected")


@pytest.mark.cluster
class TestOwn:
    """A cluster of our own, on this machine."""

    def test_it_listens_on_loopback_only(self, own):
        assert own.is_local
        assert own.slots == 2
        assert "127.0.0.1" in own.dashboard
        assert own.client.submit(lambda: get_worker().address).result(seconds(15)).startswith("tls://127.0.0.1:")

    def test_a_worker_has_its_threads_and_leaves_interrupts_to_the_driver(self, own):
        def found():
            import os
            import signal

            return os.environ["OMP_NUM_THREADS"], signal.getsignal(signal.SIGINT) == signal.SIG_IGN

        assert own.client.submit(found).result(seconds(15)) == ("3", True)

    def test_a_worker_has_huge_pages_from_its_start(self, own):
        """The C library reads its settings when a process begins: what a process has set for itself later does not count."""

        def environment():
            from pathlib import Path

            entries = Path("/proc/self/environ").read_text().split("\0")
            return dict(entry.split("=", 1) for entry in entries if entry)

        (found,) = own.client.run(environment).values()
        assert "glibc.malloc.hugetlb=1" in found["GLIBC_TUNABLES"].split(":")
        # Dask's own would give every array back to the kernel at once.
        assert "MALLOC_TRIM_THRESHOLD_" not in found

    def test_a_worker_loads_neither_ome_zarr_nor_skimage(self, own, tmp_path, monkeypatch):
        """Metadata are the driver's business; what writes them is slow to load, and large."""

        def modules():
            import sys

            return sorted({name.partition(".")[0] for name in sys.modules})

        make.volume(tmp_path / "in.zarr", make.scene(8, 32, 64))
        monkeypatch.setattr(pipeline, "connect", lambda *_, **__: nullcontext(own))
        summary = bigdeconv.run(
            input=str(tmp_path / "in.zarr"),
            output=str(tmp_path / "out.zarr"),
            psf=make.psf_tiff(tmp_path / "psf.tif"),
            method="garl",
            iterations=2,
            block_shape=(8, 32, 32),
            chunks=(8, 16, 16),
            levels=3,
        )
        assert summary.complete
        assert summary.seams is not None
        assert not all(level["in_task"] for level in make.plan_of(tmp_path / "out.zarr")["facts"]["plans"][0]["levels"])
        (found,) = own.client.run(modules).values()
        assert {"bigdeconv", "torch", "zarr"} <= set(found)
        assert set(found) & {"ome_zarr", "skimage", "ome_zarr_models", "matplotlib", "pandas"} == set()


HIDING = """
import sys

class Hider:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "bigdeconv":
            raise ModuleNotFoundError("No module named 'bigdeconv'", name="bigdeconv")

sys.meta_path.insert(0, Hider())
from distributed.cli.dask_scheduler import main
main()
"""


@pytest.mark.cluster
def test_a_scheduler_without_the_package_is_refused(tmp_path):
    file = tmp_path / "scheduler.json"
    where = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
    quiet = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen([sys.executable, "-c", HIDING, *where, "--port", "0"], **quiet)]
    try:
        wait_until(file.exists, 20)
        worker = ["worker", *where, "--no-nanny", "--nthreads", "1"]
        processes.append(subprocess.Popen([sys.executable, "-m", "dask", *worker], **quiet))
        with (
            pytest.raises(ClusterLostError, match="the cluster lacks the package 'bigdeconv'"),
            connect(str(file), Resources()),
        ):
            pytest.fail("it was not refused")
    finally:
        for process in processes:
            process.kill()
            process.wait()
