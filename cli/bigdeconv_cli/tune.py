"""``bigdeconv tune``."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from bigdeconv_cli.exits import reported
from bigdeconv_cli.options import job_options
from bigdeconv_cli.settings import ConfigFile, Input, Json, resolved

Folder = Annotated[
    str,
    typer.Argument(metavar="FOLDER", help="Folder for the results: a path that does not exist.", show_default=False),
]


@job_options
def tune(
    input: Input, folder: Folder, settings: dict[str, Any], config: ConfigFile = None, as_json: Json = False
) -> None:
    """Try methods, strengths, iterations and PSF widths on parts of a volume; end in a contact sheet and a job file."""
    job = resolved(input, "deconvolved.zarr", settings, config, as_json=as_json)
    from bigdeconv import pipeline

    def say(sentence: str) -> None:
        if not as_json:
            print(f"bigdeconv: {sentence}", file=sys.stderr, flush=True)

    with reported(as_json=as_json):
        found = pipeline.tune(job, folder, on_step=say)
    if as_json:
        print(json.dumps(found))
        return
    for channel in found["channels"]:
        best, *others = channel["candidates"]
        print(f"Channel {channel['channel']}: {best['method']} predicts unseen photons best.")
        for other in others:
            print(f"  {other['method']}: {other['nats']:.0f} nats worse (standard error {other['standard_error']:.0f})")
        width, is_told = channel["psf_scale"], channel["psf_scale_is_told"]
        told = "" if is_told else ", but the data hardly tell it"
        hint = " Add --psf-scale auto to use it." if is_told and width != 1 else ""
        print(f"  PSF: {width:g} times as wide as given predicts best{told}.{hint}")
    print(f"Look at {found['sheets'][0]}, then: bigdeconv run {input} OUTPUT.zarr --config {found['job']}")
