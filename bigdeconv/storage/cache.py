"""Small results that are kept between runs, as JSON files in the user's cache folder.

Nothing depends on them: a file that is missing, damaged or cannot be written costs time only.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from platformdirs import user_cache_path

from bigdeconv.storage.atomic import replaced_file

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def cached(
    name: str,
    compute: Callable[[], dict[str, Any]],
    parse: Callable[[dict[str, Any]], T],
    *,
    keep: Callable[[dict[str, Any]], bool] = lambda _: True,
) -> T:
    """Return the result stored under a name, or compute and store it.

    Parameters
    ----------
    name : str
        Digest of everything that the result depends on.
    compute : callable
        Returns the result as plain values.
    parse : callable
        Makes the result from plain values; raises ``ValueError``, ``KeyError`` or ``TypeError`` where they are damaged.
    keep : callable
        Whether a computed result, as plain values, is stored.
    """
    path = user_cache_path("bigdeconv", appauthor=False) / f"{name}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(path.read_text())
        if content["name"] == name:
            return parse(content["result"])
    result = compute()
    if not keep(result):
        return parse(result)
    with suppress(OSError, RuntimeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as building:
            building.write_text(json.dumps({"name": name, "result": result}))
    return parse(result)
