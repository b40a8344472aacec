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
        bool, typer.Option("--resume", help="Continue from the checkpoint in the folder, if there is one.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Total number of steps, instead of that in the file.")
    ] = None,
    export: Annotated[
        str | None,
        typer.Option("--export", metavar="FILE", help="Model file to write at the end, which must not exist."),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare", metavar="NAME|FILE", help="Another model to measure, for the card of the exported one."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads. Default: as torch chooses.")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Device of the training.")
    ] = "auto",
) -> None:
    """Train the learned prior on simulated tubes; checkpoints allow to continue."""
    from pathlib import Path

    import bigdeconv

    hint = f"Continue from the last checkpoint with `bigdeconv train --config {config} --output {output} --resume`."
    with reported(hint=lambda: hint):
        if export is not None and Path(export).exists():
            raise bigdeconv.OutputExistsError(f"export: {export!r} exists; give another path.")
        if compare is not None and export is None:
            raise bigdeconv.InvalidInputError(
                f"compare: got {compare!r} without --export; the comparison goes into the exported card."
            )
        other = None if compare is None else bigdeconv.models.resolve(compare)
        settings = bigdeconv.training.load_config(config, steps=steps)
        bigdeconv.training.train(settings, output, resume=resume, device=device, threads=threads, report=_print)
        if export is not None:
            bigdeconv.training.export(output, export, config=settings, compared_with=other, device=device)
            print(f"Wrote {export}")


def _print(line: object) -> None:
    print(line, flush=True)
