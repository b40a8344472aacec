"""A Dask cluster of our own on this machine, which lives and dies with its driver."""

from __future__ import annotations

import logging
import os
import socket
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from distributed import Nanny, Scheduler, SpecCluster

if TYPE_CHECKING:
    from bigdeconv.planning.resources import Resources

LOOPBACK = "127.0.0.1"
DASHBOARD_PORT = 8787
THREADS_PER_WORKER = 2
"""One restores a block while the other reads the next or writes the last."""


def local_cluster(resources: Resources) -> SpecCluster:
    """Return a cluster that listens on loopback only; start it as a context manager."""
    _start_quiet_resource_tracker()
    logging.getLogger("distributed.scheduler").setLevel(logging.ERROR)
    scheduler = {
        "cls": Scheduler,
        "options": {"host": LOOPBACK, "port": 0, "dashboard_address": f"{LOOPBACK}:{_free_port(DASHBOARD_PORT)}"},
    }
    workers = {i: {"cls": Nanny, "options": _nanny_options(i, resources)} for i in range(resources.workers)}
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.ERROR)


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
        "host": LOOPBACK,
        "env": environment,
        "memory_limit": 0,
        "dashboard": False,
        "silence_logs": logging.ERROR,
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
    """Start the process that removes the semaphores of workers stopped in mid-block, without its warning about them."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    try:
        resource_tracker.ensure_running()
    finally:
        os.environ.pop("PYTHONWARNINGS")
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before
