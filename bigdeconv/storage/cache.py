"""Small results that are worth keeping between runs, as JSON files in the user's cache folder.

The folder is ``bigdeconv`` below ``$XDG_CACHE_HOME``, or below ``~/.cache``.  Nothing depends on it: a file that is missing,
damaged or cannot be written costs time only.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def remembered(name: str, compute: Callable[[], dict[str, Any]], parse: Callable[[dict[str, Any]], T]) -> T:
    """Return what was stored under a name, or compute and store it.

    Parameters
    ----------
    name
        Names the result for good: a digest of everything that it depends on.
    compute
        Returns plain values.
    parse
        Makes of them what is wanted; raises ``ValueError``, ``KeyError`` or ``TypeError`` where they are damaged.
    """
    path = _folder() / f"{name}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(path.read_text())
        if content["name"] == name:
            return parse(content["result"])
    result = compute()
    with suppress(OSError, RuntimeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        building = path.with_suffix(f".{uuid4().hex}.partial")
        building.write_text(json.dumps({"name": name, "result": result}))
        building.replace(path)
    return parse(result)


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111  (never raises)
    return Path(base) / "bigdeconv"
