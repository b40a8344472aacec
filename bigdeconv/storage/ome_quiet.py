"""ome-zarr without its log and warnings, which are meant for its own users."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def silent_ome_zarr() -> Iterator[None]:
    """Keep ome-zarr's warnings and log from the user, who gets its verdict in a sentence."""
    logger = logging.getLogger("ome_zarr")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
