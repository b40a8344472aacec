"""Loaded first by the workers of a local cluster, which live and die with their driver: the terminal is the driver's alone."""

from __future__ import annotations

import logging
import signal

# A Ctrl-C in the terminal is the driver's to answer.
signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_worth_telling(record: logging.LogRecord) -> bool:
    """Tell whether a message is more than a worker's that noticed, with a traceback, that the driver has ended the cluster."""
    return not record.getMessage().startswith("Failed to communicate with scheduler during heartbeat")


logging.getLogger("distributed.worker").addFilter(_is_worth_telling)
