"""The log of a run: a file beside its ledger."""

from __future__ import annotations

import logging
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_TIME = "%Y-%m-%dT%H:%M:%S%z"
_SILOS = ("distributed.client", "distributed.scheduler", "distributed.worker", "distributed.nanny")


class _RunLog(logging.FileHandler):
    """A log whose failure does not stop the run: a full disk fails a block first, and that is reported."""

    def setLevel(self, level: int | str) -> None:
        """Keep the level: each of Dask's nannies that starts silences all handlers that write to a stream."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; the first one opens the file."""
        with suppress(OSError):
            super().emit(record)

    def close(self) -> None:
        """Close the file; records that are still in memory are lost where the disk is full."""
        with suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop a record that cannot be written."""


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Append the messages of bigdeconv, and Dask's warnings, to a file."""
    handler = _RunLog(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(_FORMAT, _TIME))
    handler.addFilter(_is_relevant)
    # Some of Dask's loggers hand nothing on to those above them.
    names = [
        "bigdeconv",
        "distributed",
        "asyncio",
        "tornado.application",
        *(n for n in _SILOS if not logging.getLogger(n).propagate),
    ]
    loggers = [logging.getLogger(name) for name in names]
    own, level = loggers[0], loggers[0].level
    own.setLevel(min(logging.INFO, level or logging.INFO))
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        own.setLevel(level)
        handler.close()


def _is_relevant(record: logging.LogRecord) -> bool:
    return record.name.startswith("bigdeconv") or record.levelno >= logging.WARNING
