"""Exit codes, and the one sentence that an error is."""

from __future__ import annotations

import json
import sys
import traceback
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

import typer

from bigdeconv.errors import BigdeconvError, ClusterLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Exit(IntEnum):
    """What the shell gets to know."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    INVALID = 3
    INCOMPLETE = 4
    CLUSTER_LOST = 5


@contextmanager
def reported(*, as_json: bool = False, hint: Callable[[], str] = str) -> Iterator[None]:
    """Turn errors into one sentence on standard error (or one JSON object on standard output) and an exit code.

    ``hint`` is asked what to say to somebody who stopped the command.
    """
    try:
        yield
    except typer.Exit:
        raise
    except ClusterLostError as error:
        _fail(str(error), Exit.CLUSTER_LOST, as_json=as_json)
    except BigdeconvError as error:
        _fail(str(error), Exit.INVALID, as_json=as_json)
    except KeyboardInterrupt:
        _fail(f"Stopped. {hint()}".strip(), Exit.INCOMPLETE, as_json=as_json)
    except Exception as error:  # whatever it is, the user gets a sentence, and a developer the trace
        traceback.print_exc()
        _fail(f"Unexpected {type(error).__name__}: {error}", Exit.UNEXPECTED, as_json=as_json)


def _fail(message: str, code: Exit, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": message, "exit_code": int(code)}))
    else:
        print(f"bigdeconv: {message}", file=sys.stderr)
    raise typer.Exit(code)
