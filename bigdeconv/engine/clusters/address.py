"""A Dask cluster that runs already, by its address or scheduler file."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from distributed import Client, Security
from distributed.core import rpc

from bigdeconv.config import read_text
from bigdeconv.errors import ClusterLostError
from bigdeconv.storage.locations import masked

JOIN_SECONDS = 30.0
"""Patience with a scheduler that accepts a connection and says nothing."""


def join(scheduler: str) -> Client:
    """Return a client of a running cluster.

    Parameters
    ----------
    scheduler : str
        Address such as ``tcp://host:8786``, or path of a scheduler file.

    Raises
    ------
    ClusterLostError
        If no scheduler answers, or it has no worker within a minute.
    """
    client = None
    try:
        address = scheduler if "://" in scheduler else _address_in(Path(scheduler))
        with ThreadPoolExecutor(1) as thread:  # a notebook has a loop of its own in this one
            thread.submit(asyncio.run, _greet(address)).result()
        client = Client(address, set_as_default=False, timeout=30)
        client.wait_for_workers(1, timeout=60)
    # A server of another kind may send what Dask takes for the length of a message.
    except (OSError, TimeoutError, ValueError, KeyError, TypeError, MemoryError, RecursionError) as error:
        if client is not None:
            client.close()
        reason = masked(str(error)) or "it does not answer"
        raise ClusterLostError(
            f"scheduler: no Dask cluster with workers answers at {masked(scheduler)!r} ({reason}); "
            "give tcp://HOST:PORT or a scheduler file, and start at least one worker."
        ) from error
    return client


async def _greet(address: str) -> None:
    """Exchange a greeting with a scheduler; a client would wait for its answer without an end.

    Raises
    ------
    TimeoutError
        If it does not answer.
    """
    async with (
        asyncio.timeout(JOIN_SECONDS),
        rpc(address, connection_args=Security().get_connection_args("client")) as scheduler,
    ):
        await scheduler.identity()


def _address_in(scheduler_file: Path) -> str:
    """Return the address in a scheduler file; Dask itself waits for a missing file for ever."""
    return str(json.loads(read_text(scheduler_file))["address"])
