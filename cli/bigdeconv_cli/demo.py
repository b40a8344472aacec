"""``bigdeconv demo``."""

from __future__ import annotations

from typing import Annotated

import typer

from bigdeconv_cli.exits import Exit, reported
from bigdeconv_cli.progress import Reporter
from bigdeconv_cli.run import events_of


def demo(
    output: Annotated[
        str, typer.Option("--output", metavar="DIR", help="Folder to write into; must not exist.")
    ] = "bigdeconv-demo",
) -> None:
    """Simulate a small volume, deconvolve it in blocks on a local Dask cluster, and show what was gained."""
    from bigdeconv import demo as demonstration

    with reported(), Reporter(quiet=False) as reporter:
        result = demonstration.run_demo(output, events=events_of(reporter))
    print(f"RSNR before: {result.rsnr_before:.2f} dB")
    print(f"RSNR after:  {result.rsnr_after:.2f} dB   ({result.summary.blocks_done} blocks)")
    print(f"Picture: {result.picture}")
    print(f"Volume:  {result.summary.output}")
    if not result.summary.complete:
        raise typer.Exit(Exit.INCOMPLETE)
