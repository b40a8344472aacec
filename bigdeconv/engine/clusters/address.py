"""A Dask cluster that runs already, by its address or scheduler file."""

from __future__ import annotations

import json
from pathlib import Path

from distributed import Client

from bigdeconv.errors import ClusterLostError


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
        client = Client(address, set_as_default=False, timeout=30)
        client.wait_for_workers(1, timeout=60)
    except (OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
        if client is not None:
            client.close()
        raise ClusterLostError(
            f"scheduler: no Dask cluster with workers answers at {scheduler!r} ({error}); "
            "give tcp://HOST:PORT or a scheduler file, and start at least one worker."
        ) from error
    return client


def _address_in(scheduler_file: Path) -> str:
    """Return the address in a scheduler file; Dask itself waits for a missing file for ever."""
    return str(json.loads(scheduler_file.read_text())["address"])
