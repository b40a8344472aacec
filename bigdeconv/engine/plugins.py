"""Plugins of a Dask cluster: recipes on the workers, and a scheduler that does not grow with the number of blocks."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from distributed import Client, Scheduler, SchedulerPlugin, WorkerPlugin

from bigdeconv.engine import machine, tasks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Worker

    from bigdeconv.engine.recipe import Recipe


LOGGER = logging.getLogger(__name__)


@contextmanager
def installed(client: Client, recipes: tuple[Recipe, ...]) -> Iterator[None]:
    """Send the recipes of a job's volumes to all workers, also to those that join later, and remove them at the end.

    However the block ends, nothing is left on a scheduler that serves others too.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    name = f"bigdeconv-{recipes[0].token}"
    try:
        client.register_plugin(_RecipePlugin(recipes, Counter(worker["host"] for worker in workers)), name=name)
        yield
    finally:
        if client.status == "running":
            try:
                client.unregister_worker_plugin(name)
            except Exception as error:
                # The outcome of the run counts more than a worker that has forgotten the plugin.
                LOGGER.warning("the recipes could not be removed from all workers (%s)", error)


class ShortMemory(SchedulerPlugin):
    """Bounds the memory of the scheduler of a local cluster.

    Dask's spans note every submission and every group of tasks: one for each merge that ends before the next begins.  Nothing
    here reads that.
    """

    name = "bigdeconv-short-memory"
    idempotent = True

    def update_graph(self, scheduler: Scheduler, *, tasks: list[Any], **_: Any) -> None:
        """Forget the notes on submitted tasks, and on groups that the scheduler has forgotten."""
        spans = getattr(scheduler.extensions.get("spans"), "spans", {})
        for span_id in {scheduler.tasks[key].group.span_id for key in tasks}:
            if (span := spans.get(span_id)) is None:
                continue
            if span.metadata is not None:
                span.metadata["collections"].clear()
            span.groups.intersection_update(scheduler.task_groups.values())


class _RecipePlugin(WorkerPlugin):
    """Keeps a job's recipes on a worker, and gives its FFTs and convolutions their threads: a fair share of the host's cores."""

    def __init__(self, recipes: tuple[Recipe, ...], workers_by_host: dict[str, int]) -> None:
        self._recipes = recipes
        self._workers_by_host = workers_by_host

    def setup(self, worker: Worker) -> None:
        import torch

        host = worker.address.rsplit("/", 1)[-1].rsplit(":", 1)[0]
        workers = self._workers_by_host.get(host, 1)
        torch.set_num_threads(self._recipes[0].threads or max(machine.n_cores() // workers, 1))
        tasks.RECIPES[self._recipes[0].token] = self._recipes

    def teardown(self, worker: Worker) -> None:
        tasks.RECIPES.pop(self._recipes[0].token, None)
