"""A Dask cluster of our own on this machine, which lives and dies with its driver."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections import Counter
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from distributed import Nanny, Scheduler, Security, SpecCluster, Status

if TYPE_CHECKING:
    from bigdeconv.planning.resources import Resources

LOGGER = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
MAX_REPLACEMENTS = 20
"""Workers that are started in place of dead ones, in one cluster."""
_REPLACED: Counter[str] = Counter()
"""Replacements so far, by the name of the cluster."""
DASHBOARD_PORT = 8787
THREADS_PER_WORKER = 2
"""One restores a block while the other reads the next or writes the last."""


def local_cluster(resources: Resources, *, serves_dashboard: bool = True) -> SpecCluster:
    """Return a cluster that listens on loopback only, and speaks TLS; start it as a context manager.

    Every user of a node can reach its loopback, and whoever speaks to a Dask worker runs code as its owner.  The certificates are
    made for this cluster, and live in the memory of its processes only.

    Parameters
    ----------
    resources : Resources
    serves_dashboard : bool
        Serve pages that any user of this machine can read.
    """
    _start_quiet_resource_tracker()
    logging.getLogger("distributed.scheduler").setLevel(logging.ERROR)
    security = Security.temporary()
    spoken = {"host": LOOPBACK, "protocol": "tls", "security": security}
    scheduler = {
        "cls": Scheduler,
        "options": {
            **{**spoken, "port": 0, "dashboard": serves_dashboard},
            "dashboard_address": f"{LOOPBACK}:{_free_port(DASHBOARD_PORT) if serves_dashboard else 0}",
        },
    }
    workers = {
        i: {"cls": Nanny, "options": {**spoken, **_nanny_options(i, resources)}} for i in range(resources.workers)
    }
    return SpecCluster(workers=workers, scheduler=scheduler, security=security, silence_logs=False)


def replace_dead_workers(cluster: SpecCluster) -> None:
    """Start new workers in place of those whose nanny has given up: it does so when a worker dies while it starts.

    A worker that dies later is started again by its nanny.  The number of replacements is bounded: where every worker dies, the
    run ends.
    """
    cluster.sync(_replace_dead_workers, cluster)


async def _replace_dead_workers(cluster: SpecCluster) -> None:
    """Do that in the loop of the cluster, which changes the same tables."""
    dead = [
        name
        for name, nanny in cluster.workers.items()
        if nanny.status in (Status.closed, Status.closing, Status.failed)
    ]
    for name in dead:
        if name not in cluster.worker_spec or _REPLACED[cluster.name] >= MAX_REPLACEMENTS:
            continue
        _REPLACED[cluster.name] += 1
        LOGGER.warning("worker %s has died for good; another one is started", name)
        cluster.worker_spec[f"{name}-again-{_REPLACED[cluster.name]}"] = cluster.worker_spec.pop(name)
    if dead:
        cluster.scale(len(cluster.worker_spec))


def _nanny_options(i: int, resources: Resources) -> dict[str, Any]:
    threads = str(resources.threads)
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    environment["BLOSC_NTHREADS"] = "1"
    if resources.device == "cuda":
        # A batch system may have given some devices: worker i gets the i-th of them.
        given = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
        environment["CUDA_VISIBLE_DEVICES"] = given[i] if given else str(i)
    return {
        "nthreads": THREADS_PER_WORKER,
        "env": environment,
        "memory_limit": 0,
        "dashboard": False,
        # What fails a block reaches the driver, and its log, with the traceback.
        "silence_logs": logging.CRITICAL,
        "preload": ["bigdeconv.engine.worker_preload"],
    }


def _free_port(wanted: int) -> int:
    """Return the wanted port, or 0 (any) where another dashboard has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError:
            return 0
    return wanted


def _start_quiet_resource_tracker() -> None:
    """Start the process that removes the semaphores of workers stopped in mid-block, without its warning about them.

    It outlives a hangup of the terminal, as it does an interrupt: a second one would not know what the first has been told.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    in_main = threading.current_thread() is threading.main_thread()
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN) if in_main else None
    try:
        resource_tracker.ensure_running()
    finally:
        if in_main:
            signal.signal(signal.SIGHUP, hangup)
        os.environ.pop("PYTHONWARNINGS")
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before
