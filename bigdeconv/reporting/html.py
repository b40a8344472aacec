"""The report as one HTML page without external files."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bigdeconv.reporting.figures import Picture

TEMPLATE = "report.html.jinja"
_DECADES = 5
"""Range of the chart of seam errors."""
_COLOURS = {"predicted": "#89a", "measured": "#27b"}


class Bar(NamedTuple):
    """One bar of the chart of seam errors."""

    name: str
    text: str
    share: float
    """Length as a share of the chart's width."""
    colour: str


def to_html(values: Mapping[str, Any], images: Iterable[Picture]) -> str:
    """Return the page of a report.

    Parameters
    ----------
    values : mapping
        See `bigdeconv.reporting.values.report_values`.
    images : iterable of Picture
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"text": _text, "words": lambda name: name.replace("_", " "), "error": _error}
    seams = values["seams"]
    return environment.get_template(TEMPLATE).render(
        values,
        pictures=[(image.title, base64.b64encode(image.png).decode()) for image in images],
        bars=[] if seams is None else _bars(seams),
        tolerance_share=0.0 if seams is None else _share(seams["tolerance"], seams["tolerance"]),
    )


def _bars(seams: Mapping[str, Any]) -> list[Bar]:
    """Return predicted and measured errors of each probed axis on a logarithmic scale."""
    return [
        Bar(f"{axis} {kind}", f"{error:.1e}", _share(error, seams["tolerance"]), colour)
        for axis in "zyx"
        for kind, colour in _COLOURS.items()
        if (measured := seams["measured"][axis])
        and (error := seams["predicted"][axis] if kind == "predicted" else measured["error"]) is not None
    ]


def _share(error: float, tolerance: float) -> float:
    """Return the place of an error between a thousandth and a hundredfold of the tolerance, on a logarithmic scale."""
    low = tolerance * 1e-3
    return min(math.log10(max(error, low) / low) / _DECADES, 1.0)


def _error(value: float | None) -> str:
    return "dark" if value is None else f"{value:.1e}"


def _text(value: Any) -> str:
    """Return a value as a table shows it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple) and all(isinstance(v, int | float | str) for v in value):
        return ", ".join(_text(v) for v in value)
    return "none" if value is None else json.dumps(value)
