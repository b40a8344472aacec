"""Options of a job, made from its settings: names, help texts and defaults stand once, in `bigdeconv.config`."""

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
    """Add the options of a job to a command, which receives them as one dictionary, ``settings``."""
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
    metavar = str(extra["metavar"] or "TEXT")
    flag = f"--{name.replace('_', '-')}"
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if field.default is True else flag,
        help=_help(field, metavar),
        metavar=metavar,
        rich_help_panel=str(extra["panel"]),
        show_default=False,
    )
    kind: Any = list[str] | None if many else bool | None if field.annotation is bool else str | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _help(field: FieldInfo, metavar: str) -> str:
    text = str(field.description)
    if "Default" in text or field.default == ():
        return text
    if field.default is None:
        return f"{text} Default: auto." if "auto" in metavar else text
    if field.annotation is bool:
        return text
    shown = ",".join(f"{n:g}" for n in field.default) if isinstance(field.default, tuple) else field.default
    return f"{text} Default: {shown}."
