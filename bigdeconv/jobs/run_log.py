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
_SOURCES = {"bigdeconv": logging.INFO, "distributed": logging.WARNING}
"""Loggers that are written to the log, from which level on."""


class _RunLog(logging.FileHandler):
    """A log whose failure does not stop the run: a full disk fails a block first, and that is reported."""

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
    loggers = {logging.getLogger(name): level for name, level in _SOURCES.items()}
    before = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.addHandler(handler)
        logger.setLevel(min(level, logger.level or level))
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.setLevel(before[logger])
        handler.close()
