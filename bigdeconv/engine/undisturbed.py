"""Loaded first by the workers of a local cluster: a Ctrl-C in the terminal is the driver's to answer, not theirs."""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
