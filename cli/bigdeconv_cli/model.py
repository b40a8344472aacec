"""``bigdeconv model``."""

from __future__ import annotations

from typing import Annotated

import typer

from bigdeconv_cli.exits import reported

app = typer.Typer(help="Models of the learned prior.", no_args_is_help=True)


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(help="Folder of a pyxudeconv model: config.json and checkpoint_*.pth.", metavar="FOLDER"),
    ],
    output: Annotated[str, typer.Argument(help="Model file to write, which must not exist.", metavar="FILE")],
) -> None:
    """Convert published pyxudeconv weights to a model file."""
    from pathlib import Path

    import bigdeconv

    with reported():
        if Path(output).exists():
            raise bigdeconv.OutputExistsError(f"output: {output!r} exists; give another path.")
        bigdeconv.models.save(output, bigdeconv.models.import_pyxudeconv(source))
    print(f"Wrote {output}")


@app.command("show")
def show(
    model: Annotated[str, typer.Argument(help="Shipped name or model file.", metavar="[NAME|FILE]")] = "default",
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="Also draw filters, potential and scalings into this folder, which must not exist.",
        ),
    ] = None,
) -> None:
    """Print the card of a model, and draw its filters."""
    import bigdeconv

    with reported():
        found = bigdeconv.models.resolve(model)
        card = bigdeconv.models.card(found, model)
        for name, value in card.items():
            print(f"{name:<12} {value}")
        if output is not None:
            files = bigdeconv.models.draw(found, output, card)
            print(f"Wrote {output}: {', '.join(file.name for file in files)}")
