"""Preload of the workers of a local cluster: they leave Ctrl-C and the terminal to their driver."""

from __future__ import annotations

import logging
import signal

# The driver answers a Ctrl-C in the terminal.
signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Filter out the traceback with which a worker notices that the driver has ended the cluster."""
    return not record.getMessage().startswith("Failed to communicate with scheduler during heartbeat")


logging.getLogger("distributed.worker").addFilter(_is_relevant)
