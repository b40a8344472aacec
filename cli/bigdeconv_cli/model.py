"""``bigdeconv model``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigdeconv_cli.exits import reported

if TYPE_CHECKING:
    from bigdeconv.priors.weights import WcrrWeights

app = typer.Typer(help="Models of the learned prior.", no_args_is_help=True)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="Folder of a pyxudeconv model: config.json and checkpoint_*.pth.")],
    output: Annotated[str, typer.Argument(help="Model file to write.")],
) -> None:
    """Turn published pyxudeconv weights into a model file."""
    from pathlib import Path

    from bigdeconv.errors import OutputExistsError
    from bigdeconv.models.pyxudeconv import import_pyxudeconv
    from bigdeconv.storage import weights

    with reported():
        if Path(output).exists():
            raise OutputExistsError(f"output: {output!r} exists; give another path.")
        weights.save(output, import_pyxudeconv(source))
    print(f"Wrote {output}")


@app.command("show")
def show(
    model: Annotated[str, typer.Argument(help="Shipped name or model file.")] = "default",
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="Also draw the filters, the potential and the scalings into this folder, which must not exist.",
        ),
    ] = None,
) -> None:
    """Print what a model is, and draw what it has learned."""
    from bigdeconv import models

    with reported():
        found = models.resolve(model)
        card = _card(found, model)
        for name, value in card.items():
            print(f"{name:<12} {value}")
        if output is not None:
            from bigdeconv.models import pictures

            files = pictures.save(found, output, card)
            print(f"Wrote {output}: {', '.join(file.name for file in files)}")


def _card(found: WcrrWeights, name: str) -> dict[str, Any]:
    import math

    layers = " → ".join(str(n) for n in (1, *(layer.shape[0] for layer in found.layers)))
    rows = {
        "name": found.card.get("name", name),
        "channels": layers,
        "kernels": ", ".join("×".join(str(n) for n in layer.shape[2:]) for layer in found.layers),
        "parameters": sum(int(layer.size) for layer in found.layers) + int(found.scaling.size) + 3,
        "σ range": f"0 to {found.sigma_max * found.sigma_unit:.3g} of the intensity scale, default {found.sigma_default:.3g}",
        "μ": f"{math.exp(found.log_mu):.4g}",
        "λ_max": f"{found.lambda_max:.6g}",
        "κ": f"{found.kappa:.4g}",
    }
    return rows | {k: v for k, v in found.card.items() if k != "name"}
