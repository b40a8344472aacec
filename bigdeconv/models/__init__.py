"""Models of the learned prior: those that come with the package, by name, and model files, by path."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bigdeconv.errors import InvalidInputError
from bigdeconv.models.standin import standin
from bigdeconv.priors.weights import WcrrWeights
from bigdeconv.storage import weights

DEFAULT = "default"
"""Stands for the model that a run without ``--model`` uses."""


def names() -> tuple[str, ...]:
    """Return the names of the models that come with the package."""
    return ("compact", "standin")


def resolve(name_or_path: str | Path | WcrrWeights) -> WcrrWeights:
    """Return a model by its name or from its file.

    Raises
    ------
    InvalidInputError
        If it is neither a shipped name nor a readable model file.
    """
    if isinstance(name_or_path, WcrrWeights):
        return name_or_path
    if name_or_path == "standin":
        return standin()
    if name_or_path in {DEFAULT, "compact"}:
        return weights.load(Path(__file__).with_name("compact.safetensors"))
    if not Path(name_or_path).exists():
        raise InvalidInputError(
            f"model: {str(name_or_path)!r} is neither a file nor a shipped model; shipped: {', '.join(names())}."
        )
    return weights.load(name_or_path)


def digest(model: WcrrWeights) -> str:
    """Return a checksum of everything in a model that decides numbers."""
    parts = [layer.tobytes() for layer in (*model.layers, model.scaling)]
    numbers = repr([model.sigma_max, model.sigma_unit, model.log_mu, model.beta, model.gamma, model.lambda_max])
    return hashlib.sha256(b"".join([*parts, numbers.encode()])).hexdigest()[:16]
