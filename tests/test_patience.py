"""Waiting: never shorter than on a quiet machine, and longer with the load."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import patience


@pytest.mark.parametrize(("load", "times"), [(0.0, 4), (1.0, 4), (2.0, 4), (10.0, 20), (20.0, 40)])
def test_it_grows_with_the_load_of_each_core(load, times, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert patience.seconds(3) == 3 * times


def test_what_does_not_happen_is_an_error(monkeypatch):
    monkeypatch.setattr(patience, "seconds", lambda quiet: quiet)
    with pytest.raises(AssertionError, match="it did not happen in time"):
        patience.wait_until(lambda: False, 0.1)
    patience.wait_until(iter([False, True]).__next__, 1)


@pytest.mark.cluster
def test_a_process_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(patience, "seconds", lambda quiet: quiet)
    sleeping = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.PIPE, text=True
    )
    with pytest.raises(subprocess.TimeoutExpired):
        patience.outcome(sleeping, 0.1)
    assert sleeping.wait() < 0


@pytest.mark.cluster
def test_a_process_that_has_ended_is_waited_for_no_longer():
    ended = subprocess.Popen([sys.executable, "-c", "print('gone')"], stdout=subprocess.PIPE, text=True)
    with pytest.raises(AssertionError, match="gone"):
        patience.wait_until(lambda: False, 60, ended)
