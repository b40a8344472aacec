"""Arguments that several commands share, and the settings that they add up to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigdeconv_cli.exits import usage_error

if TYPE_CHECKING:
    from bigdeconv.config import JobConfig

Input = Annotated[
    str,
    typer.Argument(
        help="OME-Zarr image or plate (path or URL), a quoted glob, or a .txt file with one image per line.",
        metavar="INPUT",
        show_default=False,
    ),
]
Output = Annotated[
    str,
    typer.Argument(
        help="Output: an OME-Zarr image, a plate, or a folder of images for several inputs.",
        metavar="OUTPUT",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML file with settings. Flags override the environment (BIGDECONV_*), the environment overrides the file.",
    ),
]


def resolved(
    source: str, output: str, settings: dict[str, Any], config_file: str | None, *, as_json: bool
) -> JobConfig:
    """Merge flags, environment and file; a fault in them is a usage error."""
    from bigdeconv.config import resolve
    from bigdeconv.errors import InvalidInputError

    try:
        return resolve({**settings, "input": source, "output": output}, config_file)
    except InvalidInputError as error:
        usage_error(str(error), as_json=as_json)
