"""Model cards: the properties of a model as rows to print."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bigdeconv.numerics.priors.weights import WcrrWeights


def card(model: WcrrWeights, name: str = "model") -> dict[str, Any]:
    """Return the properties of a model, followed by the entries of the card in its file.

    Parameters
    ----------
    model : WcrrWeights
    name : str
        Name for a model whose card has none.

    Returns
    -------
    dict
        Values by label, in the order in which they are printed.

    Examples
    --------
    >>> from bigdeconv.models import resolve
    >>> rows = card(resolve("finite-differences"))
    >>> rows["name"], rows["channels"], rows["σ range"]
    ('finite-differences', '1 → 13', '0 to 0.196 of the intensity scale, default 0.0392')
    """
    layers = " → ".join(str(n) for n in (1, *(layer.shape[0] for layer in model.layers)))
    rows = {
        "name": model.card.get("name", name),
        "channels": layers,
        "kernels": ", ".join("×".join(str(n) for n in layer.shape[2:]) for layer in model.layers),
        "parameters": sum(int(layer.size) for layer in model.layers) + int(model.scaling.size) + 3,
        "σ range": f"0 to {model.sigma_max * model.sigma_unit:.3g} of the intensity scale, default {model.sigma_default:.3g}",
        "μ": f"{math.exp(model.log_mu):.4g}",
        "λ_max": f"{model.lambda_max:.6g}",
        "κ": f"{model.kappa:.4g}",
    }
    return rows | {k: v for k, v in model.card.items() if k != "name"}


def card_text(rows: Mapping[str, Any]) -> str:
    """Return the rows of a card as aligned lines.

    Parameters
    ----------
    rows : mapping of str to Any
        Values by label, see `card`.

    Examples
    --------
    >>> print(card_text({"name": "compact", "κ": 0.05}))
    name         compact
    κ            0.05
    """
    return "\n".join(f"{name:<12} {value}" for name, value in rows.items())
