"""The driver's loop: a bounded window of futures over the blocks; each is merged as soon as its lower neighbours are solved.

A block is two tasks, ``solve`` and ``merge``.  Tasks are submitted in the plan's order, in which a block comes after its lower
neighbours, so that blocks wait for overlap slabs for a short time only.  The driver keeps a byte per block.
"""

from __future__ import annotations

import logging
import queue
from dataclasses import dataclass, field
from itertools import product
from traceback import format_exception
from typing import TYPE_CHECKING, Any

from bigdeconv.engine import tasks
from bigdeconv.errors import ClusterLostError
from bigdeconv.geometry import Box, Grid, Triple, triple
from bigdeconv.numerics.blending import DIRECTIONS
from bigdeconv.planning.blocks import BlockSequence
from bigdeconv.storage.overlaps import drop_overlap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from distributed import Client, Future

    from bigdeconv.engine.clusters.connection import Connection
    from bigdeconv.engine.recipe import Recipe
    from bigdeconv.planning.blocks import BlockTask
    from bigdeconv.planning.seam_probes import SeamMeasurement, SeamProbe
    from bigdeconv.storage.ledger import JournalSummary

LOGGER = logging.getLogger(__name__)
RETRIES = 2
"""Repetitions of a task that raised an error."""
LOST_AFTER_SECONDS = 120
"""Time without workers after which a cluster counts as lost."""
HOPELESS = 10
"""Number of failed blocks from which on a run is given up, if more have failed than finished."""

SOLVED, FINISHED, FAILED, OUTSIDE = 1, 2, 4, 8


@dataclass(slots=True)
class Progress:
    """State of a run."""

    blocks_total: int
    blocks_finished: int = 0
    blocks_skipped: int = 0
    blocks_failed: int = 0
    errors: list[str] = field(default_factory=list)


def run_blocks(
    connection: Connection,
    recipes: tuple[Recipe, ...],
    outside: np.ndarray | None,
    journal: JournalSummary,
    on_finished: Callable[[dict[str, Any], Progress], None],
) -> Progress:
    """Compute every block that is not finished.

    Parameters
    ----------
    connection : Connection
    recipes : tuple of Recipe
        One for each volume.
    outside : ndarray of bool or None
        Whether a block lies outside the mask, by its index: it is treated as absent, and counts as finished.
    journal : JournalSummary
        Blocks that earlier runs finished.
    on_finished : callable
        Called with each new journal record before its overlap slabs are dropped: when it returns, the block counts as finished.

    Raises
    ------
    ClusterLostError
        If the scheduler or all workers went away.
    """
    return _BlockRun(connection, recipes, outside, journal, on_finished).run()


def run_pyramid(connection: Connection, recipe: Recipe, volume: int, level: int) -> list[str]:
    """Make a level that no core determines alone, one write unit per task; return one sentence per unit that failed.

    Parameters
    ----------
    connection : Connection
    recipe : Recipe
        Of the volume.
    volume, level : int
        Numbers of the volume and of the level.

    Raises
    ------
    ClusterLostError
        If the scheduler or all workers went away.
    """
    window = _Window(connection.client, max(2 * connection.slots, 4))
    errors: list[str] = []

    def receive() -> None:
        number, future = window.next()
        if future.status != "finished":
            errors.append(_failure(f"level {level}, part {number}", future))

    for number, (timepoint, channel, box) in enumerate(_pyramid_units(recipe, level)):
        if window.is_full:
            receive()
        key = f"downsample-{recipe.token}-{volume}-{level}-{number}"
        window.submit(number, tasks.downsample, recipe.token, volume, level, timepoint, channel, box, key=key)
    while window.pending:
        receive()
    return errors


def run_probes(connection: Connection, token: str, seams: list[SeamProbe]) -> tuple[list[SeamMeasurement], list[str]]:
    """Solve parts of seams again; return what was measured, and one sentence per probe that failed.

    Raises
    ------
    ClusterLostError
        If the scheduler or all workers went away.
    """
    window = _Window(connection.client, len(seams))
    for number, seam in enumerate(seams):
        window.submit(number, tasks.probe, token, seam, key=f"probe-{token}-{number}")
    measured: dict[int, SeamMeasurement] = {}
    errors: list[str] = []
    while window.pending:
        number, future = window.next()
        if future.status == "finished":
            measured[number] = future.result()
        else:
            errors.append(_failure(f"seam probe {number}", future))
    return [measured[number] for number in sorted(measured)], errors


def _pyramid_units(recipe: Recipe, level: int) -> Iterator[tuple[int, int, Box]]:
    plan = recipe.plan
    grid = Grid(plan.levels[level].shape, plan.levels[level].write_shape)
    for timepoint, channel in product(range(len(plan.timepoints)), range(len(plan.channels))):
        for position in grid.positions():
            yield timepoint, channel, grid.core(position)


def _failure(task: str, future: Future[Any]) -> str:
    """Return one sentence about a task that failed; the worker's traceback goes to the log."""
    error = future.exception()
    LOGGER.error("%s failed\n%s", task, "".join(format_exception(error.__class__, error, future.traceback())).rstrip())
    return f"{task}: {error}"


class _Window:
    """A bounded number of futures, returned as they finish."""

    def __init__(self, client: Client, size: int) -> None:
        self._client = client
        self._size = size
        self._done: queue.SimpleQueue[tuple[int, Future[Any]]] = queue.SimpleQueue()
        self.pending = 0

    @property
    def is_full(self) -> bool:
        return self.pending >= self._size

    def submit(
        self, tag: int, function: Callable[..., Any], *arguments: Any, key: str, priority: int = 0
    ) -> Future[Any]:
        future = self._client.submit(
            function, *arguments, key=key, pure=False, retries=RETRIES, priority=priority
        )  # fmt: skip
        future.add_done_callback(lambda f: self._done.put((tag, f)))
        self.pending += 1
        return future

    def next(self) -> tuple[int, Future[Any]]:
        waited = 0
        while True:
            try:
                item = self._done.get(timeout=5)
            except queue.Empty:
                waited = 0 if self._has_workers() else waited + 5
                if waited >= LOST_AFTER_SECONDS:
                    raise ClusterLostError("cluster: all workers are gone; continue with `bigdeconv resume`.") from None
                continue
            self.pending -= 1
            if item[1].status == "cancelled":
                raise ClusterLostError(
                    "cluster: the scheduler closed the connection; continue with `bigdeconv resume`."
                )
            return item

    def _has_workers(self) -> bool:
        try:
            return self._client.status == "running" and bool(self._client.scheduler_info(n_workers=1)["workers"])
        except (OSError, TimeoutError):
            return False


class _BlockRun:
    """The state of one run over all blocks."""

    def __init__(
        self,
        connection: Connection,
        recipes: tuple[Recipe, ...],
        outside: np.ndarray | None,
        journal: JournalSummary,
        on_finished: Callable[[dict[str, Any], Progress], None],
    ) -> None:
        self._sequence = BlockSequence(tuple(recipe.plan for recipe in recipes))
        self._token, self._scratch, self._on_finished = recipes[0].token, recipes[0].scratch, on_finished
        self._window = _Window(connection.client, max(2 * connection.slots, connection.slots + 2))
        self._state = bytearray(self._sequence.n_blocks if outside is None else OUTSIDE * outside.astype("uint8"))
        self._solved: dict[int, tuple[BlockTask, Future[Any]]] = {}
        self._merging: dict[int, tuple[BlockTask, Future[Any]]] = {}
        self._n_outside = 0 if outside is None else int(outside.sum())
        for index, finished in enumerate(journal.finished):
            if finished:
                self._state[index] |= FINISHED
        self.progress = Progress(self._sequence.n_blocks, journal.blocks_finished, journal.blocks_skipped)

    def run(self) -> Progress:
        remaining = (i for i in range(self._sequence.n_blocks) if not self._state[i] & (FINISHED | OUTSIDE))
        exhausted = False
        while True:
            while not exhausted and not self._window.is_full and not self._hopeless:
                index = next(remaining, None)
                exhausted = index is None
                if index is not None:
                    self._submit_solve(self._sequence.task(index))
            if not self._window.pending:
                break
            self._receive(*self._window.next())
        return self.progress

    @property
    def _hopeless(self) -> bool:
        p = self.progress
        return p.blocks_failed >= HOPELESS and p.blocks_failed > p.blocks_finished - self._n_outside

    def _receive(self, index: int, future: Future[Any]) -> None:
        if index in self._merging:
            task, _ = self._merging.pop(index)
            if future.status == "finished":
                self._finish(task, self._record(future))
            else:
                self._fail(task, future)
            return
        task, _ = self._solved[index]
        if future.status != "finished":
            del self._solved[index]
            self._fail(task, future)
            return
        self._state[index] |= SOLVED
        for candidate in (index, *self._upper(task).values()):
            self._merge_if_ready(candidate)

    def _submit_solve(self, task: BlockTask) -> None:
        key = f"solve-{self._token}-{task.index}"
        # Earlier blocks first: others then wait for their overlap slabs for a short time only.
        future = self._window.submit(task.index, tasks.solve, self._token, task, key=key, priority=-task.index)
        self._solved[task.index] = (task, future)

    def _merge_if_ready(self, index: int) -> None:
        if index not in self._solved or not self._state[index] & SOLVED:
            return
        task, solved = self._solved[index]
        lower = self._lower(task)
        if any(self._state[n] & FAILED for n in lower.values()):
            del self._solved[index]  # It stays unfinished: a resumed run solves it again with its neighbours.
        elif all(self._state[n] & (SOLVED | FINISHED) for n in lower.values()):
            self._merging[index] = (task, self._submit_merge(task, solved, lower))
            del self._solved[index]

    def _submit_merge(self, task: BlockTask, solved: Future[Any], overlaps: dict[Triple, int]) -> Future[Any]:
        key = f"merge-{self._token}-{task.index}"
        return self._window.submit(
            task.index, tasks.merge, self._token, task, solved, overlaps, key=key, priority=self._sequence.n_blocks
        )

    def _finish(self, task: BlockTask, record: dict[str, Any]) -> None:
        self._state[task.index] |= FINISHED
        self.progress.blocks_finished += 1
        self.progress.blocks_skipped += bool(record.get("skipped"))
        self._on_finished(record, self.progress)
        for direction, index in self._lower(task).items():
            drop_overlap(self._scratch, index, direction)
        for direction, index in self._upper(task).items():
            if self._state[index] & OUTSIDE:  # no block waits for this slab
                drop_overlap(self._scratch, task.index, direction)

    def _record(self, future: Future[Any]) -> dict[str, Any]:
        try:
            record: dict[str, Any] = future.result()
        except OSError as error:
            raise ClusterLostError("cluster: the connection broke; continue with `bigdeconv resume`.") from error
        return record

    def _fail(self, task: BlockTask, future: Future[Any]) -> None:
        self._state[task.index] |= FAILED
        self.progress.blocks_failed += 1
        self.progress.errors.append(_failure(f"block {task.index}", future))
        for neighbour in self._upper(task).values():
            self._merge_if_ready(neighbour)

    def _lower(self, task: BlockTask) -> dict[Triple, int]:
        """Return the lower neighbours whose overlap slabs a block adds, by the direction from them to it."""
        found = self._neighbours(task, -1)
        return {d: n for d, n in found.items() if not self._state[n] & OUTSIDE}

    def _upper(self, task: BlockTask) -> dict[Triple, int]:
        """Return the neighbours for which a block writes overlap slabs, by the direction to them."""
        return self._neighbours(task, 1)

    def _neighbours(self, task: BlockTask, sign: int) -> dict[Triple, int]:
        plan = self._sequence.plans[task.volume]
        if not plan.has_overlaps:
            return {}
        blending = (d for d in DIRECTIONS if all(b for b, i in zip(plan.blend, d, strict=True) if i))
        found = {d: plan.neighbour(task, triple(sign * i for i in d)) for d in blending}
        return {d: n for d, n in found.items() if n is not None}
