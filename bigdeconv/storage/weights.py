"""Weights of the learned prior: one safetensors file, with the configuration and the model card in its metadata.

A safetensors file holds arrays and text, and no code; a pickle, which may hold code, is never opened.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bigdeconv.errors import InvalidInputError, StoreError
from bigdeconv.numerics.priors.weights import WcrrWeights

FORMAT = "bigdeconv-wcrr-1"
MAX_LOG = 100.0
"""Magnitude of a logarithm in the configuration."""
_NUMBERS = ("sigma_max", "sigma_unit", "log_mu", "beta", "gamma", "lambda_max", "kappa", "sigma_default")


def save(path: str | Path, weights: WcrrWeights) -> None:
    """Write a model file.

    Parameters
    ----------
    path : str or Path
        Place of the file.
    weights : WcrrWeights
        The model.

    Raises
    ------
    StoreError
        If the file cannot be written.
    """
    tensors = {f"layer{i}": np.ascontiguousarray(layer, np.float32) for i, layer in enumerate(weights.layers)}
    tensors["scaling"] = np.ascontiguousarray(weights.scaling, np.float32)
    config = {name: getattr(weights, name) for name in _NUMBERS}
    metadata = {"format": FORMAT, "config": json.dumps(config), "card": json.dumps(weights.card, sort_keys=True)}
    try:
        save_file(tensors, str(path), metadata)
    except (SafetensorError, OSError) as error:
        raise StoreError(f"model: {str(path)!r} cannot be written ({error}).") from error


def load(path: str | Path) -> WcrrWeights:
    """Read a model file.

    Parameters
    ----------
    path : str or Path
        A safetensors file that `save` has written.

    Raises
    ------
    InvalidInputError
        If the file is missing or is not a model file of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(
            f"model: there is no file {str(path)!r}; give the path of a model file or a shipped name."
        )
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, TypeError) as error:
        raise InvalidInputError(
            f"model: {str(path)!r} is not a safetensors file ({error}); "
            "weights of other tools, pickles among them, are read by `bigdeconv model import`."
        ) from error
    return _from_parts(path, metadata, tensors)


def _from_parts(path: Path, metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> WcrrWeights:
    if metadata.get("format") != FORMAT:
        raise InvalidInputError(
            f"model: {str(path)!r} has the format {metadata.get('format')!r}, expected {FORMAT!r}; "
            "make a model file with `bigdeconv model import`."
        )
    layers = tuple(tensors[f"layer{i}"] for i in range(len(tensors) - 1) if f"layer{i}" in tensors)
    try:
        numbers = {name: float(json.loads(metadata["config"])[name]) for name in _NUMBERS}
        weights = WcrrWeights(layers=layers, scaling=tensors["scaling"], card=json.loads(metadata["card"]), **numbers)
        _check(weights)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInputError(f"model: {str(path)!r} is incomplete or damaged ({error}); import it again.") from error
    return weights


def _check(weights: WcrrWeights) -> None:
    channels = 1
    for layer in weights.layers:
        if layer.ndim != 5 or layer.shape[1] != channels:
            raise ValueError(f"a layer of shape {layer.shape} does not follow {channels} channels")
        channels = layer.shape[0]
    if (
        not weights.layers
        or weights.scaling.ndim != 2
        or weights.scaling.shape[0] != channels
        or not weights.scaling.size
    ):
        raise ValueError(f"{len(weights.layers)} layers and scalings of shape {weights.scaling.shape} do not fit")
    arrays = [*weights.layers, weights.scaling]
    numbers = np.array([getattr(weights, name) for name in _NUMBERS])
    if not isinstance(weights.card, dict):
        raise TypeError(f"the card is a {type(weights.card).__name__}")
    if abs(weights.log_mu) > MAX_LOG:
        raise ValueError(f"log_mu is {weights.log_mu:g}")
    positive = min(weights.lambda_max, weights.sigma_unit, weights.sigma_max) > 0
    if not all(np.isfinite(a).all() for a in [*arrays, numbers]) or not positive:
        raise ValueError("values are not finite or not positive")
