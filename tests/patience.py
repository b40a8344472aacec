"""Waiting in tests: long enough on a busy machine, where a process takes many times as long as on a quiet one."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

FLOOR = 4.0
"""Times the quiet duration that is always granted: the load is an average of the last minute and tells nothing of the next."""


def seconds(quiet: float) -> float:
    """Return how long to wait for something that takes ``quiet`` seconds on a quiet machine.

    It grows with the processes that wait for each core, measured now.
    """
    return quiet * FLOOR * max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)


def wait_until(condition: Callable[[], object], quiet: float, process: subprocess.Popen[str] | None = None) -> None:
    """Wait until a condition holds, and fail after `seconds`, or when a process that should bring it about has ended."""
    started = time.monotonic()
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        # The load is looked at again and again: it may have come up after the start.
        assert time.monotonic() - started < seconds(quiet), "it did not happen in time"
        time.sleep(0.05)


def outcome(process: subprocess.Popen[str], quiet: float) -> tuple[str, str]:
    """Wait for the end of a process, and return what it has written to standard output and standard error.

    A process that does not end within `seconds` is killed.
    """
    try:
        printed, said = process.communicate(timeout=seconds(quiet))
    finally:
        process.kill()
    return printed, said
