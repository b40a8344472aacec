"""Exit codes, and errors as one sentence."""

from __future__ import annotations

import json
import sys
import traceback
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, NoReturn

import typer

from bigdeconv.errors import BigdeconvError, ClusterLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


MAX_CHARACTERS = 1200
"""Of a message."""


class Exit(IntEnum):
    """Exit codes of the command."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    INVALID = 3
    INCOMPLETE = 4
    CLUSTER_LOST = 5


@contextmanager
def reported(*, as_json: bool = False, hint: Callable[[], str] = str) -> Iterator[None]:
    """Turn errors into one sentence on standard error (or one JSON object on standard output) and an exit code.

    Parameters
    ----------
    as_json : bool
    hint : callable
        Returns advice for the user who has stopped the command.
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
    except MemoryError as error:
        _fail(f"There is not enough memory ({str(error) or 'none left'}).", Exit.INVALID, as_json=as_json)
    except Exception as error:  # the user gets a sentence, a developer the traceback
        traceback.print_exc()
        _fail(f"Unexpected {type(error).__name__}: {error}", Exit.UNEXPECTED, as_json=as_json)


def usage_error(message: str, *, as_json: bool = False) -> NoReturn:
    """Print what is wrong with the arguments, and exit."""
    _fail(message, Exit.USAGE, as_json=as_json)


def shortened(message: str) -> str:
    """Return a message with its middle left out where it is long: a value from a file may have any length."""
    if len(message) <= MAX_CHARACTERS:
        return message
    return f"{message[: MAX_CHARACTERS - 200]} … {message[-200:]}"


def _fail(message: str, code: Exit, *, as_json: bool) -> NoReturn:
    message = shortened(message)
    if as_json:
        print(json.dumps({"error": message, "exit_code": int(code)}))
    else:
        print(f"bigdeconv: {message}", file=sys.stderr)
    raise typer.Exit(code)
