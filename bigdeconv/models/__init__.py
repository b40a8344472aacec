"""Models of the learned prior: those that come with the package, by name, and model files, by path."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from bigdeconv.errors import InvalidInputError
from bigdeconv.models.standin import standin
from bigdeconv.priors.weights import WcrrWeights
from bigdeconv.storage import weights

DEFAULT = "default"
"""Stands for the model that a run without ``--model`` uses."""
_TRAINED = ("compact", "large")


def names() -> tuple[str, ...]:
    """Return the names of the models that come with the package."""
    return (*_TRAINED, "standin")


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
    name = _TRAINED[0] if name_or_path == DEFAULT else name_or_path
    if name in _TRAINED:
        return weights.load(Path(__file__).with_name(f"{name}.safetensors"))
    if not Path(name_or_path).exists():
        raise InvalidInputError(
            f"model: {str(name_or_path)!r} is neither a file nor a shipped model; shipped: {', '.join(names())}."
        )
    return weights.load(name_or_path)


def outside_training(model: WcrrWeights, voxel_zyx_um: tuple[float, float, float], sigma: float) -> list[str]:
    """Return a sentence for each property of the data that lies outside what the model's card says it was trained on."""
    sentences = []
    ratio = voxel_zyx_um[0] / math.sqrt(voxel_zyx_um[1] * voxel_zyx_um[2])
    settings = model.card.get("settings", {})
    trained = None if settings.get("volumes") else settings.get("data", {}).get("axial_ratio")
    if trained and not trained[0] * 0.99 <= ratio <= trained[1] * 1.01:
        sentences.append(
            f"The learned prior was trained on voxels {trained[0]:g} to {trained[1]:g} times as long in z as in y and x, this "
            f"volume's are {ratio:.2g} times; compare with --method rltv before you trust fine detail."
        )
    sigma_max = model.sigma_max * model.sigma_unit
    if sigma > sigma_max:
        sentences.append(
            f"The learned prior was trained on noise up to --sigma {sigma_max:.3g}, got {sigma:.3g}; give less, or --method rltv."
        )
    return sentences


def digest(model: WcrrWeights) -> str:
    """Return a checksum of everything in a model that decides numbers."""
    parts = [layer.tobytes() for layer in (*model.layers, model.scaling)]
    numbers = repr([model.sigma_max, model.sigma_unit, model.log_mu, model.beta, model.gamma, model.lambda_max])
    return hashlib.sha256(b"".join([*parts, numbers.encode()])).hexdigest()[:16]
