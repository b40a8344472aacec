"""Another try where a store fails: a mount that comes back, or a server that cut an answer short, needs a moment."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, TypeVar

from bigdeconv.errors import DamagedOverlapError
from bigdeconv.storage.locations import is_disk_full

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSES_SECONDS = (0.5, 2.0, 8.0)
"""Pauses before work is tried again that could not read or write."""
IMPATIENT_SECONDS = 60.0
"""Time after a failure in spite of all pauses in which only the first is made: a store that is broken is not waited for at every
block."""

T = TypeVar("T")


class _Failures:
    """Failures of the store in this process."""

    latest = -math.inf
    """Time of the latest that all pauses did not mend."""


def patiently(work: Callable[[], T]) -> T:
    """Return the result of some work, tried again after pauses where the store fails.

    Raises
    ------
    OSError
        The last failure; a full disk and damaged overlap slabs, which no pause mends, at once.
    """
    is_impatient = time.monotonic() - _Failures.latest < IMPATIENT_SECONDS
    for pause in (*PAUSES_SECONDS[: 1 if is_impatient else None], None):
        try:
            return work()
        except OSError as error:
            if isinstance(error, DamagedOverlapError) or is_disk_full(error):
                raise
            if pause is None:
                _Failures.latest = time.monotonic()
                raise
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")
