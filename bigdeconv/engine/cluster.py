"""A client of a Dask cluster: one of our own on this machine, or one that runs already."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
from distributed import Client, Nanny, Scheduler, SchedulerPlugin, SpecCluster, WorkerPlugin

from bigdeconv.engine import tasks
from bigdeconv.errors import BudgetError, ClusterLostError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Worker

    from bigdeconv.engine.recipe import Recipe

LOOPBACK = "127.0.0.1"
DASHBOARD_PORT = 8787
THREADS_PER_WORKER = 2
"""One restores a block while the other reads the next or writes the last."""
_SETTINGS: dict[str, Any] = {
    # Blocks keep their data in unmanaged memory that the planner has bounded: Dask must neither spill nor kill for it.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    # A block may hold the GIL or the CPU for minutes, and a preempted worker must not condemn what was waiting on it.
    "distributed.scheduler.worker-ttl": None,
    "distributed.scheduler.allowed-failures": 10,
    "distributed.comm.timeouts.connect": "120s",
    "distributed.comm.timeouts.tcp": "120s",
    "distributed.admin.tick.limit": "1h",
    # Dask's own variables make malloc give every array back to the kernel at once.
    "distributed.nanny.pre-spawn-environ": {},
}


@dataclass(frozen=True, slots=True)
class LocalWorkers:
    """The workers of a cluster on this machine."""

    count: int
    threads: int
    """Threads that each may use for FFTs and convolutions."""
    cuda: bool = False
    """Whether worker i gets GPU i to itself."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A cluster to work on."""

    client: Client
    dashboard: str
    """What to tell the user about the dashboard."""
    is_local: bool
    """Whether the cluster is our own, on this machine."""
    slots: int
    """Blocks that are read, restored or written at the same time."""


@contextmanager
def connect(scheduler: str | None, local: LocalWorkers) -> Iterator[Connection]:
    """Start a local cluster, or join the one at an address or in a scheduler file.

    Raises
    ------
    ClusterLostError
        If there is no scheduler, or it has no workers within a minute.
    """
    with dask.config.set(_SETTINGS):
        if scheduler is None:
            with _local_cluster(local) as cluster, Client(cluster, set_as_default=False) as client:
                client.wait_for_workers(local.count, timeout=120)
                yield _connection(client, is_local=True)
        else:
            with _join(scheduler) as client:
                yield _connection(client, is_local=False)


def require_memory(connection: Connection, needed_bytes: int) -> None:
    """Check that every worker that has a memory limit may take what a block needs.

    Raises
    ------
    BudgetError
        If one may not: Dask would stop or kill it in mid-block.
    """
    limits = [limit for worker in _workers(connection.client) if (limit := worker["memory_limit"])]
    if limits and min(limits) < needed_bytes:
        raise BudgetError(
            f"memory: a block needs {needed_bytes / 2**30:.2f} GiB per worker, a worker of the cluster is limited to "
            f"{min(limits) / 2**30:.2f} GiB; lower --memory to that, or start the workers with a larger --memory-limit."
        )


def install(client: Client, recipes: tuple[Recipe, ...]) -> None:
    """Send the recipes of a job's volumes to all workers, those that join later too; before the first task."""
    workers = Counter(worker["host"] for worker in _workers(client))
    client.register_plugin(_RecipePlugin(recipes, workers), name=_plugin_name(recipes))


def uninstall(client: Client, recipes: tuple[Recipe, ...]) -> None:
    """Take the recipes from all workers."""
    client.unregister_worker_plugin(_plugin_name(recipes))


def _plugin_name(recipes: tuple[Recipe, ...]) -> str:
    return f"bigdeconv-{recipes[0].token}"


class _ShortMemory(SchedulerPlugin):
    """Keeps the scheduler from growing with the number of blocks.

    Dask's spans note every submission, and every group of tasks that there ever was: where a merge ends before the next begins,
    one for each.  Nothing here reads that.  On a scheduler that serves others too it stays after the run, and keeps what is noted
    of their tasks as short.
    """

    name = "bigdeconv-short-memory"
    idempotent = True

    def update_graph(self, scheduler: Scheduler, *, tasks: list[Any], **_: Any) -> None:
        spans = getattr(scheduler.extensions.get("spans"), "spans", {})
        for span_id in {scheduler.tasks[key].group.span_id for key in tasks}:
            if (span := spans.get(span_id)) is None:
                continue
            if span.metadata is not None:
                span.metadata["collections"].clear()
            span.groups.intersection_update(scheduler.task_groups.values())


class _RecipePlugin(WorkerPlugin):
    """Keeps a job's recipes on a worker and gives its FFTs and convolutions their threads: a fair share of the host's cores."""

    def __init__(self, recipes: tuple[Recipe, ...], workers_by_host: dict[str, int]) -> None:
        self._recipes = recipes
        self._workers_by_host = workers_by_host

    def setup(self, worker: Worker) -> None:
        import torch

        host = worker.address.rsplit("/", 1)[-1].rsplit(":", 1)[0]
        workers = self._workers_by_host.get(host, 1)
        # Products in TF32 carry 10 bits of mantissa: blocks from a GPU would differ from others' at the seam.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.set_num_threads(self._recipes[0].threads or max(len(os.sched_getaffinity(0)) // workers, 1))
        tasks.RECIPES[self._recipes[0].token] = self._recipes

    def teardown(self, worker: Worker) -> None:
        tasks.RECIPES.pop(self._recipes[0].token, None)


def _start_quiet_resource_tracker() -> None:
    """Start what removes the semaphores of workers that were stopped in mid-block, but warns of nothing when it does."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    try:
        resource_tracker.ensure_running()
    finally:
        os.environ.pop("PYTHONWARNINGS")
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


def _local_cluster(local: LocalWorkers) -> SpecCluster:
    _start_quiet_resource_tracker()
    logging.getLogger("distributed.scheduler").setLevel(logging.ERROR)
    scheduler = {
        "cls": Scheduler,
        "options": {"host": LOOPBACK, "port": 0, "dashboard_address": f"{LOOPBACK}:{_free_port(DASHBOARD_PORT)}"},
    }
    workers = {i: {"cls": Nanny, "options": _nanny_options(i, local)} for i in range(local.count)}
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.ERROR)


def _nanny_options(i: int, local: LocalWorkers) -> dict[str, Any]:
    environment = {name: str(local.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment["BLOSC_NTHREADS"] = "1"
    environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # huge pages: 512 times fewer faults for large arrays
    if local.cuda:
        # What a batch system gave counts: the i-th of its devices.
        given = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
        environment["CUDA_VISIBLE_DEVICES"] = given[i] if given else str(i)
    return {
        "nthreads": THREADS_PER_WORKER,
        "host": LOOPBACK,
        "env": environment,
        "memory_limit": 0,
        "dashboard": False,
        "silence_logs": logging.ERROR,
        "preload": ["bigdeconv.engine.undisturbed"],
    }


def _free_port(wanted: int) -> int:
    """Return the wanted port, or 0 (any) where another dashboard has it."""
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError:
            return 0
    return wanted


def _join(scheduler: str) -> Client:
    try:
        address = scheduler if "://" in scheduler else _address_in(Path(scheduler))
        client = Client(address, set_as_default=False, timeout=30)
        client.wait_for_workers(1, timeout=60)
    except (OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
        raise ClusterLostError(
            f"scheduler: no Dask cluster with workers answers at {scheduler!r} ({error}); "
            "give tcp://HOST:PORT or a scheduler file, and start at least one worker."
        ) from error
    return client


def _address_in(scheduler_file: Path) -> str:
    """Return the address in a scheduler file; Dask itself waits for a missing one for ever."""
    return str(json.loads(scheduler_file.read_text())["address"])


def _connection(client: Client, *, is_local: bool) -> Connection:
    client.register_plugin(_ShortMemory())
    slots = sum(min(worker["nthreads"], THREADS_PER_WORKER) for worker in _workers(client))
    without_bokeh = "needs bokeh: pip install 'bigdeconv[dashboard]'"
    dashboard = client.dashboard_link if find_spec("bokeh") else without_bokeh
    return Connection(client, dashboard, is_local, max(slots, 1))


def _workers(client: Client) -> list[dict[str, Any]]:
    return list(client.scheduler_info(n_workers=-1)["workers"].values())
