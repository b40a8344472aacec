"""A connection to a Dask cluster, and what its workers have."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import dask
from distributed import Client

from bigdeconv.engine import machine
from bigdeconv.engine.clusters.address import join
from bigdeconv.engine.clusters.local import THREADS_PER_WORKER, local_cluster, replace_dead_workers
from bigdeconv.engine.plugins import ShortMemory
from bigdeconv.errors import ClusterLostError
from bigdeconv.numerics.priors.wcrr import fused_filters_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distributed import SpecCluster

    from bigdeconv.planning.resources import Resources

FROZEN_SECONDS = 600
"""Silence of a worker after which it is passed over; on a cluster that others started, theirs counts (Dask's default: 300)."""
_SETTINGS: dict[str, Any] = {
    # Blocks keep their data in unmanaged memory that the planner has bounded: Dask must neither spill nor kill for it.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    # A block may hold the GIL or the CPU for minutes; after that a worker counts as frozen, and its blocks go to others.
    "distributed.scheduler.worker-ttl": f"{FROZEN_SECONDS}s",
    "distributed.scheduler.allowed-failures": 10,
    "distributed.comm.timeouts.connect": "120s",
    "distributed.comm.timeouts.tcp": "120s",
    "distributed.admin.tick.limit": "1h",
    # It looks into frames of other threads, and nobody reads it here.
    "distributed.worker.profile.enabled": False,
    # Instead of Dask's own variables, which make malloc give every array back to the kernel at once: huge pages, which take 512
    # times fewer faults.  The C library reads this when a process starts, so a worker cannot set it for itself.
    "distributed.nanny.pre-spawn-environ": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
}
_NO_PAGES: dict[str, Any] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
_LOOPS = ("asyncio", "tornado.application")
_LOGGERS = ("distributed", "distributed.client", "distributed.scheduler", "distributed.worker", "distributed.nanny")


@dataclass(frozen=True, slots=True)
class Connection:
    """A cluster to work on."""

    client: Client
    dashboard: str
    """Address of the dashboard, or the reason why there is none."""
    is_local: bool
    """Whether the cluster is our own, on this machine."""
    slots: int
    """Blocks that are read, restored or written at the same time."""
    replace_dead_workers: Callable[[], None] = lambda: None
    """Starts workers in place of own ones that died for good; others are left to those who started them."""

    @property
    def address(self) -> str:
        """Address of the scheduler."""
        return str(getattr(self.client.scheduler, "address", ""))


@contextmanager
def connect(scheduler: str | None, resources: Resources, *, serves_dashboard: bool = True) -> Iterator[Connection]:
    """Start a local cluster, or join the one at an address or in a scheduler file.

    Parameters
    ----------
    scheduler : str or None
        Address or scheduler file; None for a cluster on this machine.
    resources : Resources
        Workers of a local cluster.
    serves_dashboard : bool
        Whether a local cluster serves Dask's pages.

    Raises
    ------
    ClusterLostError
        If there is no scheduler, or it has no workers within a minute.
    """
    with dask.config.set(_SETTINGS), _off_the_terminal():
        if scheduler is None:
            started = _started(resources, serves_dashboard=serves_dashboard)
            with started as cluster, Client(cluster, set_as_default=False) as client:
                client.wait_for_workers(resources.workers, timeout=120)
                client.register_plugin(ShortMemory())
                found = _connection(client, is_local=True)
                yield replace(
                    found,
                    dashboard=found.dashboard if serves_dashboard else "none is served",
                    replace_dead_workers=partial(replace_dead_workers, cluster),
                )
        else:
            with join(scheduler) as client:
                _require_package(client)
                yield _connection(client, is_local=False)


@contextmanager
def _off_the_terminal() -> Iterator[None]:
    """Keep Dask's own messages from the terminal: one sentence of ours says what a user can do, and a run's log has them all."""
    handlers = {h for name in _LOGGERS for h in logging.getLogger(name).handlers if type(h) is logging.StreamHandler}
    levels = {handler: handler.level for handler in handlers}
    for handler in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    # What nobody handles Python prints; a cluster that is stopped in mid-task leaves answers that nobody waits for.
    unheard = logging.NullHandler()
    for name in _LOOPS:
        logging.getLogger(name).addHandler(unheard)
    try:
        yield
    finally:
        for name in _LOOPS:
            logging.getLogger(name).removeHandler(unheard)
        for handler, level in levels.items():
            handler.setLevel(level)


@contextmanager
def _started(resources: Resources, *, serves_dashboard: bool) -> Iterator[SpecCluster]:
    with ExitStack() as stack:
        stack.enter_context(dask.config.set({} if serves_dashboard else _NO_PAGES))
        try:
            cluster = stack.enter_context(local_cluster(resources, serves_dashboard=serves_dashboard))
        except (RuntimeError, OSError) as error:
            raise ClusterLostError(
                f"cluster: workers cannot be started on this machine ({error}); check that DASK_TEMPORARY_DIRECTORY and TMPDIR "
                "are writable, or use --scheduler."
            ) from error
        yield cluster


def memory_limits(connection: Connection) -> list[int]:
    """Return the memory limit of each worker that has one, in bytes: Dask stops or kills a worker that exceeds it."""
    return [limit for worker in _workers(connection.client) if (limit := worker["memory_limit"])]


def cuda_devices(connection: Connection) -> dict[str, int]:
    """Return the number of CUDA devices that each worker sees, by its address."""
    found: dict[str, int] = connection.client.run(machine.n_cuda_devices)
    return found


def gpus(connection: Connection) -> dict[str, machine.Gpu | None]:
    """Return the GPU on which each worker will compute, None for one without, by its address; that takes memory on workers."""
    found: dict[str, machine.Gpu | None] = connection.client.run(machine.gpu)
    return found


def kernel_problems(connection: Connection) -> dict[str, str | None]:
    """Return, by the address of each worker with a GPU, why the learned prior cannot use its own kernels there, or None."""
    found: dict[str, str | None] = connection.client.run(fused_filters_problem)
    return found


def _require_package(client: Client) -> None:
    """Refuse a cluster of which the scheduler or a worker cannot import this package."""
    try:
        client.run_on_scheduler(machine.memory_bytes)
        client.run(machine.memory_bytes)
    except ModuleNotFoundError as error:
        raise ClusterLostError(
            f"scheduler: the cluster lacks the package {error.name!r}; install the same version of bigdeconv for the scheduler "
            "and its workers."
        ) from error


def _workers(client: Client) -> list[dict[str, Any]]:
    """Return what the scheduler knows of each worker."""
    return list(client.scheduler_info(n_workers=-1)["workers"].values())


def _connection(client: Client, *, is_local: bool) -> Connection:
    slots = sum(min(worker["nthreads"], THREADS_PER_WORKER) for worker in _workers(client))
    without_bokeh = "needs bokeh: pip install 'bigdeconv[dashboard]'"
    dashboard = client.dashboard_link if find_spec("bokeh") else without_bokeh
    return Connection(client, dashboard, is_local, max(slots, 1))
