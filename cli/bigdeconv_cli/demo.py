"""``bigdeconv demo``."""

from __future__ import annotations

from typing import Annotated

import typer

from bigdeconv_cli.exits import Exit, reported
from bigdeconv_cli.progress import Reporter


def demo(
    output: Annotated[
        str, typer.Option("--output", metavar="DIR", help="Folder to write into, which must not exist.")
    ] = "bigdeconv-demo",
) -> None:
    """Simulate a small volume, deconvolve it in blocks on a local Dask cluster, and compare it with the truth."""
    import bigdeconv

    with reported(), Reporter(quiet=False) as reporter:
        result = bigdeconv.run_demo(output, events=reporter.events)
    print(f"RSNR before: {result.rsnr_before:.2f} dB")
    print(f"RSNR after:  {result.rsnr_after:.2f} dB   ({result.summary.blocks_done} blocks)")
    print(f"Picture: {result.picture}")
    print(f"Volume:  {result.summary.output}")
    if not result.summary.complete:
        raise typer.Exit(Exit.INCOMPLETE)
