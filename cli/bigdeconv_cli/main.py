"""The command ``bigdeconv``."""

from __future__ import annotations

from typing import Annotated

import typer

from bigdeconv_cli import demo, inspection, model, plan, run, simulate, train, tune

app = typer.Typer(
    name="bigdeconv",
    help="Deconvolve 3-D microscopy volumes that outgrow memory, from OME-Zarr to OME-Zarr. All triples are in the order z,y,x.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("tune")(tune.tune)
app.command("resume")(run.resume)
app.command("repair")(run.repair)
app.command("status")(inspection.status)
app.command("report")(inspection.report)
app.command("validate")(inspection.validate)
app.command("train")(train.train)
app.add_typer(model.app, name="model")
app.add_typer(simulate.app, name="simulate")


def _version(wanted: bool) -> None:
    if wanted:
        import bigdeconv

        print(bigdeconv.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    app()
