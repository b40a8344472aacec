"""The driver's loop: a bounded window of futures over the blocks; each is merged as soon as its lower neighbours are solved.

A block is two tasks, ``solve`` and ``merge``.  Tasks are submitted in the plan's order, in which a block comes after its lower
neighbours, so that blocks wait for overlap slabs for a short time only.  The driver keeps a byte per block.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import Counter
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, product
from traceback import format_exception
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdeconv.engine import tasks
from bigdeconv.errors import ClusterLostError, DamagedOverlapError
from bigdeconv.geometry import Box, Grid, Triple, triple
from bigdeconv.numerics.blending import DIRECTIONS
from bigdeconv.planning.blocks import BlockSequence
from bigdeconv.storage.attempts import end_attempts
from bigdeconv.storage.locations import is_disk_full
from bigdeconv.storage.overlaps import drop_overlap, has_overlap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distributed import Future

    from bigdeconv.engine.clusters.connection import Connection
    from bigdeconv.engine.recipe import Recipe
    from bigdeconv.planning.blocks import BlockTask
    from bigdeconv.planning.seam_probes import SeamMeasurement, SeamProbe
    from bigdeconv.storage.journal_summary import JournalSummary
    from bigdeconv.storage.seals import FileMark

LOGGER = logging.getLogger(__name__)
LOST_AFTER_SECONDS = 120
"""Time without workers after which a cluster counts as lost."""
_NUMBERS = count()
"""Of tasks of this process."""
LOOK_SECONDS = 30.0
"""Patience with a scheduler that is asked for its workers."""
POLL_SECONDS = 5.0
"""Interval at which the workers are looked at while nothing ends."""
LOST_POLL_SECONDS = 0.5
"""The same while a lost result is computed again."""
ANSWER_SECONDS = 60
"""Patience with the answer to a question about a task that has ended."""
MAX_LOSSES = 10
"""Times that the result of a task may be lost with its worker."""
MAX_DAMAGED_OVERLAPS = 3
"""Times that a block is merged again because a slab was damaged."""
MAX_CAUSE = 1000
"""Characters of the cause of a failure that are kept."""
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
    on_failed: Callable[[dict[str, Any]], None] = lambda _: None,
    *,
    max_failures: int | None = None,
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
    on_failed : callable
        Called with the block, its place and the cause.
    max_failures : int, optional
        Blocks that may fail before no others are begun.  Default: `HOPELESS`, and more than have succeeded.

    Raises
    ------
    ClusterLostError
        If the scheduler or all workers went away.
    """
    return _BlockRun(connection, recipes, outside, journal, on_finished, on_failed, max_failures).run()


def run_pyramid(connection: Connection, recipe: Recipe, volume: int, level: int) -> tuple[dict[str, Any], list[str]]:
    """Make a level that no core determines alone, one write unit per task.

    Parameters
    ----------
    connection : Connection
    recipe : Recipe
        Of the volume.
    volume, level : int
        Numbers of the volume and of the level.

    Returns
    -------
    record : dict
        Journal record of the level.
    errors : list of str
        One sentence per unit that failed.

    Raises
    ------
    ClusterLostError
        If the scheduler or all workers went away.
    """
    window = _Window(connection, max(2 * connection.slots, 4))
    files: list[FileMark] = []
    errors: list[str] = []

    attempts = 1

    def receive() -> None:
        nonlocal attempts
        ended = window.next()
        if ended.error is None:
            marks, attempt = ended.value
            files.extend(marks)
            attempts = max(attempts, attempt)
        else:
            errors.append(_failure(f"level {level}, part {ended.tag}", ended))

    for number, (timepoint, channel, box) in enumerate(_pyramid_units(recipe, level)):
        if window.is_full:
            receive()
        key = f"downsample-{recipe.token}-{volume}-{level}-{number}"
        window.submit(number, tasks.downsample, recipe.token, volume, level, number, timepoint, channel, box, key=key)
    while window.pending:
        receive()
    record = {"volume": volume, "level": level, "files": files}
    return record | ({"attempt": attempts} if attempts > 1 else {}), errors


def run_probes(connection: Connection, token: str, seams: list[SeamProbe]) -> tuple[list[SeamMeasurement], list[str]]:
    """Solve parts of seams again; return what was measured, and one sentence per probe that failed.

    Raises
    ------
    ClusterLostError
        If the scheduler or all workers went away.
    """
    window = _Window(connection, len(seams))
    for number, seam in enumerate(seams):
        window.submit(number, tasks.probe, token, seam, key=f"probe-{token}-{number}")
    measured: dict[int, SeamMeasurement] = {}
    errors: list[str] = []
    while window.pending:
        ended = window.next()
        if ended.error is None:
            measured[ended.tag] = ended.value
        else:
            errors.append(_failure(f"seam probe {ended.tag}", ended))
    return [measured[number] for number in sorted(measured)], errors


def _pyramid_units(recipe: Recipe, level: int) -> Iterator[tuple[int, int, Box]]:
    plan = recipe.plan
    grid = Grid(plan.levels[level].shape, plan.levels[level].write_shape)
    for timepoint, channel in product(range(len(plan.timepoints)), range(len(plan.channels))):
        for position in grid.positions():
            yield timepoint, channel, grid.core(position)


def _failure(task: str, ended: _Ended) -> str:
    """Return one sentence about a task that failed; the worker's traceback goes to the log."""
    error = ended.error
    trace = "" if error is None else "".join(format_exception(error)).rstrip()
    LOGGER.error("%s failed\n%s", task, trace)
    return f"{task}: {error}"


class _ResultLostError(Exception):
    """The result of a task was lost with its worker, and is computed again."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """A task that has ended."""

    tag: int
    key: object
    value: Any
    """Its result, where that was wanted."""
    error: BaseException | None


class _Window:
    """A bounded number of futures, returned as they end; no wait is without an end."""

    def __init__(self, connection: Connection, size: int) -> None:
        self._connection = connection
        self._client = connection.client
        self._size = size
        self._done: queue.SimpleQueue[tuple[int, Future[Any]]] = queue.SimpleQueue()
        self._losses: Counter[Any] = Counter()
        """Times that a result was lost, by key."""
        self._lost: list[tuple[int, Future[Any]]] = []
        """Tasks whose results were lost, and are computed again."""
        self._staying: set[Any] = set()
        """Keys of tasks whose results are not fetched."""
        self._looked = time.monotonic()
        self.pending = 0

    @property
    def is_full(self) -> bool:
        return self.pending >= self._size

    def submit(
        self,
        tag: int,
        function: Callable[..., Any],
        *arguments: Any,
        key: str,
        priority: int = 0,
        stays: bool = False,
    ) -> Future[Any]:
        """Submit a task; its result stays on its worker, or is fetched when it ends."""
        # A number of its own: under a key that Dask has not forgotten yet it would return the old result.
        future = self._client.submit(
            function, *arguments, key=f"{key}-{next(_NUMBERS)}", pure=False, priority=priority
        )  # fmt: skip
        if stays:
            self._staying.add(future.key)
        future.add_done_callback(lambda f: self._done.put((tag, f)))
        self.pending += 1
        return future

    def next(self) -> _Ended:
        """Return the next task that has ended.

        A result may be lost with its worker between its end and this look at it.  Dask then computes it again, and the task is
        waited for again.

        Raises
        ------
        ClusterLostError
            If the scheduler or all workers went away.
        """
        while True:
            tag, future = self._next_done()
            value = None
            try:
                error = _error_of(future)
                if error is None and future.key not in self._staying:
                    value = _result_of(future)
            except _ResultLostError:
                self._losses[future.key] += 1
                LOGGER.warning("the result of %s was lost with its worker; it is computed again", future.key)
                if self._losses[future.key] <= MAX_LOSSES:
                    self._lost.append((tag, future))
                    continue
                error = ClusterLostError(f"its result was lost with its worker {MAX_LOSSES} times")
            self._losses.pop(future.key, None)
            self._staying.discard(future.key)
            self.pending -= 1
            return _Ended(tag, future.key, value, error)

    def _next_done(self) -> tuple[int, Future[Any]]:
        alive = time.monotonic()
        while True:
            # Dask's callbacks do not tell of the second end of a task.
            for n, (_, future) in enumerate(self._lost):
                if future.status not in ("lost", "pending"):
                    return self._lost.pop(n)
            if time.monotonic() - self._looked > POLL_SECONDS:
                self._connection.replace_dead_workers()
                self._looked = time.monotonic()
            try:
                return self._done.get(timeout=LOST_POLL_SECONDS if self._lost else POLL_SECONDS)
            except queue.Empty:
                if self._has_workers():
                    alive = time.monotonic()
                elif time.monotonic() - alive >= LOST_AFTER_SECONDS:
                    raise ClusterLostError("cluster: all workers are gone; continue with `bigdeconv resume`.") from None

    def _has_workers(self) -> bool:
        """Ask the scheduler; one that does not answer has none."""
        if self._client.status != "running" or (scheduler := self._client.scheduler) is None:
            return False
        try:
            found = self._client.sync(scheduler.identity, n_workers=1, callback_timeout=LOOK_SECONDS)
        except (OSError, TimeoutError):
            return False
        return bool(found["workers"])


def _result_of(future: Future[Any]) -> Any:
    """Return the result of a task that has ended well.

    Raises
    ------
    _ResultLostError
        If nobody has it any more.
    """
    try:
        return future.result(timeout=ANSWER_SECONDS)
    except Exception as error:  # of the connection, or of the task that was computed again meanwhile
        raise _ResultLostError(future.key) from error


def _error_of(future: Future[Any]) -> BaseException | None:
    """Return the error of a task that has ended, None for one with a result.

    Raises
    ------
    _ResultLostError
        If it has neither any more.
    ClusterLostError
        If the scheduler has closed the connection.
    """
    status = future.status
    if status == "finished":
        return None
    if status == "cancelled":
        raise ClusterLostError("cluster: the scheduler closed the connection; continue with `bigdeconv resume`.")
    if status == "error":
        try:
            error: BaseException | None = future.exception(timeout=ANSWER_SECONDS)
        except (OSError, CancelledError):
            error = None
        if error is not None:
            with suppress(OSError, CancelledError):
                error = error.with_traceback(future.traceback(timeout=ANSWER_SECONDS))
            return error
    raise _ResultLostError(future.key)


class _BlockRun:
    """The state of one run over all blocks."""

    def __init__(
        self,
        connection: Connection,
        recipes: tuple[Recipe, ...],
        outside: np.ndarray | None,
        journal: JournalSummary,
        on_finished: Callable[[dict[str, Any], Progress], None],
        on_failed: Callable[[dict[str, Any]], None],
        max_failures: int | None,
    ) -> None:
        self._sequence = BlockSequence(tuple(recipe.plan for recipe in recipes))
        self._token, self._scratch, self._on_finished = recipes[0].token, recipes[0].scratch, on_finished
        self._on_failed, self._max_failures = on_failed, max_failures
        self._names = [recipe.volume.name for recipe in recipes] if len(recipes) > 1 else [""]
        self._window = _Window(connection, max(2 * connection.slots, connection.slots + 2))
        state = FINISHED * np.frombuffer(journal.finished, np.uint8)
        self._state = bytearray(state if outside is None else state | OUTSIDE * outside.astype(np.uint8))
        self._solved: dict[int, tuple[BlockTask, Future[Any]]] = {}
        self._merging: dict[int, tuple[BlockTask, Future[Any]]] = {}
        """Blocks that are merged, with their solutions: a damaged slab makes them merge again."""
        self._again: dict[int, Future[Any]] = {}
        """Finished blocks that are solved again, for slabs that were lost."""
        self._damaged: Counter[int] = Counter()
        """Merges of a block that met a damaged slab."""
        self._is_disk_full = False
        """No block is begun any more."""
        self._n_outside = 0 if outside is None else int(outside.sum())
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
            self._receive(self._window.next())
        if not exhausted and not self._is_disk_full:
            self.progress.errors.append(f"{self.progress.blocks_failed} blocks failed, and no others were begun.")
        return self.progress

    @property
    def _hopeless(self) -> bool:
        p = self.progress
        if self._is_disk_full:
            return True
        if self._max_failures is not None:
            return p.blocks_failed > self._max_failures
        return p.blocks_failed >= HOPELESS and p.blocks_failed > p.blocks_finished - self._n_outside

    def _receive(self, ended: _Ended) -> None:
        index = ended.tag
        if index in self._again and ended.key == self._again[index].key:
            del self._again[index]
            self._receive_solved(ended, self._sequence.task(index))
        elif index in self._merging:
            self._receive_merged(ended, *self._merging.pop(index))
        else:
            task, _ = self._solved[index]
            if ended.error is not None:
                del self._solved[index]
            self._receive_solved(ended, task)

    def _receive_solved(self, ended: _Ended, task: BlockTask) -> None:
        if ended.error is not None:
            self._fail(task, ended)
            return
        self._state[task.index] |= SOLVED
        for candidate in (task.index, *self._upper(task).values()):
            self._merge_if_ready(candidate)

    def _receive_merged(self, ended: _Ended, task: BlockTask, solved: Future[Any]) -> None:
        if ended.error is None:
            self._finish(task, ended.value)
        elif isinstance(ended.error, DamagedOverlapError) and self._damaged[task.index] < MAX_DAMAGED_OVERLAPS:
            LOGGER.warning("block %d: %s; its block is solved again", task.index, ended.error)
            self._damaged[task.index] += 1
            self._solved[task.index] = (task, solved)
            for index in ended.error.blocks:
                self._solve_again(index)
        else:
            self._fail(task, ended)

    def _submit_solve(self, task: BlockTask) -> None:
        for direction, index in self._lower(task).items():
            # The scratch folder may have been purged since the neighbour was merged.
            if self._state[index] & (FINISHED | SOLVED) == FINISHED and not has_overlap(
                self._scratch, index, direction
            ):
                self._solve_again(index)
        self._solved[task.index] = (task, self._solve(task))

    def _solve_again(self, index: int) -> None:
        """Solve a block for its overlap slabs alone."""
        if index not in self._again:
            self._state[index] &= ~SOLVED
            self._again[index] = self._solve(self._sequence.task(index))

    def _solve(self, task: BlockTask) -> Future[Any]:
        key = f"solve-{self._token}-{task.index}"
        # Earlier blocks first: others then wait for their overlap slabs for a short time only.
        return self._window.submit(
            task.index, tasks.solve, self._token, task, key=key, priority=-task.index, stays=True
        )

    def _merge_if_ready(self, index: int) -> None:
        if index not in self._solved or not self._state[index] & SOLVED:
            return
        task, solved = self._solved[index]
        lower = self._lower(task)
        if any(self._state[n] & FAILED for n in lower.values()):
            del self._solved[index]  # It stays unfinished: a resumed run solves it again with its neighbours.
        elif all(self._state[n] & (SOLVED | FINISHED) and n not in self._again for n in lower.values()):
            self._submit_merge(task, solved, lower)
            self._merging[index] = (task, solved)
            del self._solved[index]

    def _submit_merge(self, task: BlockTask, solved: Future[Any], overlaps: dict[Triple, int]) -> None:
        key = f"merge-{self._token}-{task.index}"
        self._window.submit(
            task.index, tasks.merge, self._token, task, solved, overlaps, key=key, priority=self._sequence.n_blocks
        )

    def _finish(self, task: BlockTask, record: dict[str, Any]) -> None:
        self._state[task.index] |= FINISHED
        self._damaged.pop(task.index, None)
        self.progress.blocks_finished += 1
        self.progress.blocks_skipped += bool(record.get("skipped"))
        self._on_finished(record, self.progress)
        for name in (tasks.solving(task.index), tasks.merging(task.index)):
            end_attempts(self._scratch, name)
        for direction, index in self._lower(task).items():
            drop_overlap(self._scratch, index, direction)
        for direction, index in self._upper(task).items():
            if self._state[index] & OUTSIDE:  # no block waits for this slab
                drop_overlap(self._scratch, task.index, direction)

    def _fail(self, task: BlockTask, ended: _Ended) -> None:
        self._state[task.index] |= FAILED
        self._is_disk_full |= is_disk_full(ended.error)
        self.progress.blocks_failed += 1
        place = self._place(task)
        self.progress.errors.append(_failure(f"block {task.index} ({place})", ended))
        self._on_failed({"block": task.index, "place": place, "cause": str(ended.error)[:MAX_CAUSE]})
        for neighbour in self._upper(task).values():
            self._merge_if_ready(neighbour)

    def _place(self, task: BlockTask) -> str:
        """Return the place of a block in words: voxels of the input, and what tells it from others at the same place."""
        plan = self._sequence.plans[task.volume]
        parts = [f"{axis} {a}:{b}" for axis, a, b in zip("zyx", task.core.start, task.core.stop, strict=True)]
        parts += [f"timepoint {task.timepoint}"] if len(plan.timepoints) > 1 else []
        parts += [f"channel {task.channel}"] if len(plan.channels) > 1 else []
        parts += [self._names[task.volume]] if len(self._sequence.plans) > 1 else []
        return ", ".join(parts)

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
