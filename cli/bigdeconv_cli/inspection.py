"""``bigdeconv status``, ``report`` and ``validate``."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from bigdeconv_cli.exits import Exit, reported, shortened
from bigdeconv_cli.settings import Json, Output

MAX_PROBLEMS = 15
"""Problems that are printed."""


def status(
    output: Output,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every few seconds until the run ends.")] = False,
) -> None:
    """Print the state of a run; works while it goes on, also from another machine on the same file system."""
    import bigdeconv

    while True:
        with reported(as_json=as_json):
            found = bigdeconv.status(output)
        if as_json:
            print(json.dumps(found), flush=True)
        else:
            skipped, failed = (
                f", {found[f'blocks_{k}']} {k}" if found[f"blocks_{k}"] else "" for k in ("skipped", "failed")
            )
            print(
                f"{found['state']}: {found['blocks_done']} of {found['blocks_total']} blocks{skipped}{failed}",
                flush=True,
            )
        if not watch or found["state"] != "running":
            return
        time.sleep(3)


def report(
    output: Output,
    as_json: Json = False,
    seam_probes: Annotated[
        int | None, typer.Option("--seam-probes", metavar="N", min=0, help="Seams to solve again now, on this machine.")
    ] = None,
) -> None:
    """Print what a run did and the error at its seams; write report.json and report.html beside the ledger."""
    from bigdeconv import pipeline

    with reported(as_json=as_json):
        values = pipeline.report(output, probes_count=seam_probes)
    if as_json:
        print(json.dumps(values))
        return
    print(values["verdict"])
    for warning in values["warnings"]:
        print(f"warning: {warning}")
    print(f"Wrote {pipeline.ledger_path(output) / 'report.html'}")


def validate(
    output: Annotated[
        str,
        typer.Argument(
            help="OME-Zarr image or plate (path or URL), or a folder of images.", metavar="OUTPUT", show_default=False
        ),
    ],
    deep: Annotated[
        bool, typer.Option("--deep", help="Also decode every chunk, and compare with what the run wrote.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check that an image, a plate or every image in a folder is valid OME-Zarr."""
    from bigdeconv import pipeline

    with reported(as_json=as_json):
        problems = pipeline.validate(output, deep=deep)
    if as_json:
        print(json.dumps({"valid": not problems, "problems": problems}))
    else:
        for problem in problems[:MAX_PROBLEMS]:
            print(shortened(problem))
        if (n_more := len(problems) - MAX_PROBLEMS) > 0:
            print(f"and {n_more} more; --json lists them")
        print("not valid" if problems else "valid")
    if problems:
        raise typer.Exit(Exit.INVALID)
