"""Preload of workers that do not look for absent files, to be compared with those that do."""

from __future__ import annotations

from bigdeconv.engine import block
from bigdeconv.storage.arrays import read_box

block.read_and_look = lambda info, window, **place: (read_box(info, window, **place), [])
