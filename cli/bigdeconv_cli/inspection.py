"""``bigdeconv status``, ``report`` and ``validate``."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from bigdeconv_cli.exits import Exit, reported
from bigdeconv_cli.run import Json, Output


def status(
    output: Output,
    as_json: Json = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Print it again every few seconds until nothing runs.")
    ] = False,
) -> None:
    """Tell how far a run is; works while it goes on, and from another machine on the same file system."""
    from bigdeconv import pipeline

    while True:
        with reported(as_json=as_json):
            found = pipeline.status(output)
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
        int | None, typer.Option("--seam-probes", metavar="N", min=0, help="Solve N seams again now, on this machine.")
    ] = None,
) -> None:
    """Tell what a run did and how good its seams are; writes report.json and report.html beside the ledger."""
    from bigdeconv import pipeline
    from bigdeconv.storage.ledger import ledger_path

    with reported(as_json=as_json):
        values = pipeline.report(output, probes_count=seam_probes)
    if as_json:
        print(json.dumps(values))
        return
    print(values["verdict"])
    for warning in values["warnings"]:
        print(f"warning: {warning}")
    print(f"Wrote {ledger_path(output) / 'report.html'}")


def validate(
    output: Annotated[
        str, typer.Argument(help="OME-Zarr image or plate: a path or a URL; or a folder of images.", show_default=False)
    ],
    deep: Annotated[bool, typer.Option("--deep", help="Also decode every chunk.")] = False,
    as_json: Json = False,
) -> None:
    """Check that an image, a plate or every image in a folder is valid OME-Zarr."""
    from bigdeconv import pipeline

    with reported(as_json=as_json):
        problems = pipeline.validate(output, deep=deep)
    if as_json:
        print(json.dumps({"valid": not problems, "problems": problems}))
    else:
        for problem in problems:
            print(problem)
        print("not valid" if problems else "valid")
    if problems:
        raise typer.Exit(Exit.INVALID)
