"""The locks of a worker: what its threads may do at the same time, what they may not, and that a failure blocks nobody."""

from __future__ import annotations

import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from threading import Event, Lock
from types import SimpleNamespace

import numpy as np
import pytest

from bigdeconv.engine import block
from bigdeconv.geometry import Box
from bigdeconv.numerics.camera import DataMask, VoxelCounts
from tests.patience import seconds, wait_until

WINDOW = Box((0, 0, 0), (1, 1, 1))
SHORT = 0.05
"""Time in which something would happen if nothing kept it from it."""


STAGES = []


class Stage:
    """The work of a worker's threads, replaced by entries in a list; each step can be held up, and can fail."""

    def __init__(self, monkeypatch, device):
        self.events, self._lock = [], Lock()
        self._held, self._failing = {}, set()
        self._settings = SimpleNamespace(device=device)
        STAGES.append(self)
        monkeypatch.setattr(block, "_counts", lambda _, n, *__: (self._step("read", n, np.full((1, 1, 1, 1), n)), {}))
        monkeypatch.setattr(
            block, "prepare_views", lambda c, *_: (self._step("convert", c.item(), c), None, VoxelCounts())
        )
        monkeypatch.setattr(block, "_tools", lambda *_: (None, None))
        monkeypatch.setattr(block, "restore", lambda p, *_: self._step("restore", p.item(), p[0]))
        monkeypatch.setattr(
            block, "read_overlap", lambda _, n, *__: self._step("overlap", n, np.ones((1, 1, 1), np.float32))
        )
        monkeypatch.setattr(block, "_write_levels", lambda _, task, *__: self._step("write", task.index, []))
        monkeypatch.setattr(block, "absent_from_overlap", lambda *_: [])

    def hold(self, step, n):
        """Hold up a step until the event that is returned is set."""
        return self._held.setdefault((step, n), Event())

    def hold_nothing(self):
        """Let go of every step."""
        for event in self._held.values():
            event.set()

    def fail(self, step, n):
        """Let a step fail at its end."""
        self._failing.add((step, n))

    def has(self, *event):
        """Tell whether a step has begun or ended: ``has("read", 1)``, ``has("read", 1, "ended")``."""
        return (*event, "begun")[:3] in self.events

    def solve(self, n):
        """Read and restore window ``n``, as the first task of a block does."""
        return block.restore_window(self._recipe(n), n, 0, WINDOW, WINDOW)

    def merge(self, n):
        """Merge and write block ``n``, as its second task does; it has one lower neighbour, ``n`` too."""
        task = SimpleNamespace(index=n, channel=0)
        solved = block.Solved(np.ones((1, 1, 1), np.float32), {})
        return block.merge_block(self._recipe(n), task, solved, {(0, 0, 1): n})

    def intervals(self, step):
        """Return where in the list of events a step has begun and ended, by number."""
        found = defaultdict(list)
        for place, (name, n, _) in enumerate(self.events):
            if name == step:
                found[n].append(place)
        return dict(found)

    def never_at_once(self, step):
        """Tell whether no two of a step have overlapped."""
        return all(a[1] < b[0] or b[1] < a[0] for a, b in combinations(self.intervals(step).values(), 2))

    def _recipe(self, n):
        channel = SimpleNamespace(settings=self._settings, data_mask=DataMask(), output_scale=1.0, camera=None)
        return SimpleNamespace(channels={0: channel}, scratch="", output_dtype="float32", keep_bits=None, token=str(n))

    def _step(self, name, n, result):
        self._note(name, n, "begun")
        if (gate := self._held.get((name, n))) is not None:
            assert gate.wait(seconds(20))
        self._note(name, n, "ended")
        if (name, n) in self._failing:
            raise RuntimeError(f"{name} {n}")
        return result

    def _note(self, *event):
        with self._lock:
            self.events.append(event)


@pytest.fixture
def stage(monkeypatch):
    return Stage(monkeypatch, "cpu")


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as pool:
        yield pool
        for one in STAGES:  # else a test that fails would wait for threads that wait
            one.hold_nothing()
        STAGES.clear()


@pytest.fixture(autouse=True)
def _all_is_free_before_and_afterwards():
    assert all_is_free()
    yield
    assert all_is_free()


def all_is_free():
    """Tell whether two windows, the solver and the writer can be had; nothing is kept."""
    windows = [block._WINDOWS.acquire(blocking=False) for _ in range(3)]
    for got in windows:
        if got:
            block._WINDOWS.release()
    return windows == [True, True, False] and not block._SOLVER.locked() and not block._WRITER.locked()


def test_the_next_window_is_read_while_one_is_restored_and_no_other(stage, threads):
    gate = stage.hold("restore", 0)
    first = threads.submit(stage.solve, 0)
    wait_until(lambda: stage.has("restore", 0), 5)
    second = threads.submit(stage.solve, 1)
    wait_until(lambda: stage.has("read", 1, "ended"), 5)
    third = threads.submit(stage.solve, 2)
    time.sleep(SHORT)
    # On a CPU the conversion would compete for the cores; a third window would take memory that is not planned for.
    assert not stage.has("convert", 1)
    assert not stage.has("read", 2)
    gate.set()
    for future in (first, second, third):
        future.result(seconds(5))
    assert stage.never_at_once("restore")
    assert stage.never_at_once("convert")
    read, restored = stage.intervals("read"), stage.intervals("restore")
    assert restored[0][1] < read[2][0]
    # Which of the others comes next is not promised.
    assert restored[0][1] < min(restored[1][0], restored[2][0])


def test_the_host_of_a_gpu_converts_the_next_window_while_one_is_restored(monkeypatch, threads):
    stage = Stage(monkeypatch, "cuda")
    gate = stage.hold("restore", 0)
    first = threads.submit(stage.solve, 0)
    wait_until(lambda: stage.has("restore", 0), 5)
    second = threads.submit(stage.solve, 1)
    wait_until(lambda: stage.has("convert", 1, "ended"), 5)
    time.sleep(SHORT)
    assert not stage.has("restore", 1)
    gate.set()
    for future in (first, second):
        future.result(seconds(5))
    assert stage.never_at_once("restore")


def test_a_block_is_written_while_the_next_is_restored_and_no_other(stage, threads):
    writing, restoring = stage.hold("write", 0), stage.hold("restore", 1)
    merged = threads.submit(stage.merge, 0)
    wait_until(lambda: stage.has("write", 0), 5)
    solved = threads.submit(stage.solve, 1)
    wait_until(lambda: stage.has("restore", 1), 5)
    other = threads.submit(stage.merge, 2)
    time.sleep(SHORT)
    assert not stage.has("overlap", 2)
    restoring.set()
    solved.result(seconds(5))  # it has not waited for the writer
    assert not stage.has("write", 0, "ended")
    writing.set()
    assert merged.result(seconds(5))["block"] == 0
    assert other.result(seconds(5))["block"] == 2
    assert stage.intervals("write")[0][1] < stage.intervals("overlap")[2][0]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("step", ["read", "convert", "restore"])
def test_a_window_that_fails_lets_those_go_on_that_wait(step, device, monkeypatch, threads):
    stage = Stage(monkeypatch, device)
    gate = stage.hold(step, 0)
    stage.fail(step, 0)
    failing = threads.submit(stage.solve, 0)
    wait_until(lambda: stage.has(step, 0), 5)
    waiting = [threads.submit(stage.solve, n) for n in (1, 2)]
    # Where the one that fails has a window and no more, another goes on beside it.
    beside = step == "read" or (step == "convert" and device == "cuda")
    wait_until(lambda: stage.has("restore", 1, "ended") if beside else stage.has("read", 1, "ended"), 5)
    gate.set()
    with pytest.raises(RuntimeError, match=f"{step} 0"):
        failing.result(seconds(5))
    for n, future in enumerate(waiting, 1):
        estimate, _, _ = future.result(seconds(5))
        assert estimate.item() == n
    assert stage.never_at_once("restore")


@pytest.mark.parametrize("step", ["overlap", "write"])
def test_a_merge_that_fails_lets_the_next_one_write(step, stage, threads):
    gate = stage.hold(step, 0)
    stage.fail(step, 0)
    failing = threads.submit(stage.merge, 0)
    wait_until(lambda: stage.has(step, 0), 5)
    waiting = threads.submit(stage.merge, 1)
    time.sleep(SHORT)
    assert not stage.has("overlap", 1)
    gate.set()
    with pytest.raises(RuntimeError, match=f"{step} 0"):
        failing.result(seconds(5))
    assert waiting.result(seconds(5))["block"] == 1
    assert stage.has("write", 1, "ended")


def test_windows_without_data_keep_nothing(stage, monkeypatch):
    monkeypatch.setattr(block, "prepare_views", lambda c, *_: (c, np.zeros(c.shape), VoxelCounts()))
    for n in range(4):
        estimate, _, stats = stage.solve(n)
        assert estimate is None
        assert stats["skipped"]
    assert stage.intervals("restore") == {}


def test_two_threads_of_a_worker_read_restore_and_write_in_turns(stage, threads):
    """One at a time of each kind of work, two blocks in memory at most; failures in between."""
    remaining, failing = iter(range(12)), {3, 7}
    for n in failing:
        stage.fail("restore", n)
    turn = Lock()

    def work():
        while True:
            with turn:
                n = next(remaining, None)
            if n is None:
                return
            try:
                stage.solve(n)
            except RuntimeError:
                assert n in failing
            else:
                stage.merge(n)

    for future in [threads.submit(work) for _ in range(4)]:
        future.result(seconds(10))
    for step in ("convert", "restore", "write"):
        assert stage.never_at_once(step), step
    assert sorted(stage.intervals("write")) == sorted(set(range(12)) - failing)
    read, restored = stage.intervals("read"), stage.intervals("restore")
    for place in range(len(stage.events)):
        assert sum(read[n][0] <= place <= restored[n][1] for n in read) <= 2
