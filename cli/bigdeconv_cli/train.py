"""``bigdeconv train``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from bigdeconv_cli.exits import reported


def train(
    config: Annotated[
        str, typer.Option("--config", metavar="FILE|NAME", help="YAML file with training settings, or a shipped name.")
    ] = "start",
    output: Annotated[
        str, typer.Option("--output", metavar="DIR", help="Folder for checkpoints, volumes and progress.jsonl.")
    ] = "bigdeconv-training",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the folder's checkpoint, if it has one.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Steps in all, instead of the file's.")
    ] = None,
    export: Annotated[
        str | None, typer.Option("--export", metavar="FILE", help="Write the model here at the end; must not exist.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare", metavar="NAME|FILE", help="Another model to measure beside it for the exported card."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads. Default: those of torch.")
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where to compute.")] = "auto",
) -> None:
    """Train the learned prior on simulated tubes, with checkpoints to go on from."""
    from pathlib import Path

    from bigdeconv import models, training
    from bigdeconv.errors import InvalidInputError, OutputExistsError

    hint = f"Go on from the last checkpoint with `bigdeconv train --config {config} --output {output} --resume`."
    with reported(hint=lambda: hint):
        if export is not None and Path(export).exists():
            raise OutputExistsError(f"export: {export!r} exists; give another path.")
        if compare is not None and export is None:
            raise InvalidInputError(
                f"compare: got {compare!r} without --export; the comparison goes into the exported card."
            )
        other = None if compare is None else models.resolve(compare)
        settings = training.load_config(config, steps=steps)
        training.train(settings, output, resume=resume, device=device, threads=threads, report=_print)
        if export is not None:
            training.export(output, export, config=settings, compared_with=other, device=device)
            print(f"Wrote {export}")


def _print(line: object) -> None:
    print(line, flush=True)
