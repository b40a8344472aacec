"""The options of a job, made from its settings: a name, a help text and a default are written once, in `bigdeconv.config`."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigdeconv.config import JobConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic.fields import FieldInfo


def job_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a job; it gets those that were set as one dictionary, ``settings``."""
    names = [name for name, field in JobConfig.model_fields.items() if field.json_schema_extra]

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        settings = {name: arguments.pop(name) for name in names}
        command(settings=settings, **arguments)

    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
    parameters = own + [_parameter(name, JobConfig.model_fields[name]) for name in names]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    many = name == "psf"
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        help=_help(field),
        metavar=str(extra["metavar"] or _choices(field)),
        rich_help_panel=str(extra["panel"]),
        show_default=False,
    )
    kind: Any = list[str] | None if many else str | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _help(field: FieldInfo) -> str:
    text = str(field.description)
    if "Default" in text or field.default in (None, (), "auto"):
        return text
    return f"{text} Default: {field.default}."


def _choices(field: FieldInfo) -> str:
    return "|".join(str(c) for c in getattr(field.annotation, "__args__", ()) if isinstance(c, str))
