"""Models by the name under which they are shipped or by the path of their file, and checks of their use."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from bigdeconv.errors import InvalidInputError
from bigdeconv.models.finite_differences import finite_differences
from bigdeconv.numerics.priors.weights import WcrrWeights
from bigdeconv.storage import weights as files

DEFAULT = "default"
"""Name of the model of runs without ``--model``."""
_TRAINED = ("compact", "large")


def names() -> tuple[str, ...]:
    """Return the names of the shipped models.

    Examples
    --------
    >>> names()
    ('compact', 'large', 'finite-differences')
    """
    return (*_TRAINED, "finite-differences")


def resolve(name_or_path: str | Path | WcrrWeights) -> WcrrWeights:
    """Return a model by its name or from its file.

    Parameters
    ----------
    name_or_path : str, Path or WcrrWeights
        Shipped name, `DEFAULT`, path of a model file, or a model, which is returned as it is.

    Raises
    ------
    InvalidInputError
        If it is neither a shipped name nor a readable model file.

    Examples
    --------
    >>> resolve("default").card["name"]
    'compact'
    """
    if isinstance(name_or_path, WcrrWeights):
        return name_or_path
    if name_or_path == "finite-differences":
        return finite_differences()
    name = _TRAINED[0] if name_or_path == DEFAULT else name_or_path
    if name in _TRAINED:
        return files.load(Path(__file__).with_name(f"{name}.safetensors"))
    if not Path(name_or_path).exists():
        raise InvalidInputError(
            f"model: got {str(name_or_path)!r}, which is neither a file nor a shipped model; expected a model file or one of "
            f"{', '.join(names())}."
        )
    return files.load(name_or_path)


def outside_training(model: WcrrWeights, voxel_zyx_um: tuple[float, float, float], sigma: float) -> list[str]:
    """Return one sentence for each property of the data that lies outside the range of the model's training data.

    Parameters
    ----------
    model : WcrrWeights
        Its card holds these ranges.
    voxel_zyx_um : tuple of float
        Voxel size of the data in µm.
    sigma : float
        Noise level, as a fraction of the intensity scale.

    Examples
    --------
    >>> model = resolve("compact")
    >>> outside_training(model, (0.2, 0.1, 0.1), 0.02)
    []
    >>> len(outside_training(model, (1.0, 0.1, 0.1), 0.5))
    2
    """
    sentences = []
    ratio = voxel_zyx_um[0] / math.sqrt(voxel_zyx_um[1] * voxel_zyx_um[2])
    settings = model.card.get("settings", {})
    trained = None if settings.get("volumes") else settings.get("data", {}).get("axial_ratio")
    if trained and not trained[0] * 0.99 <= ratio <= trained[1] * 1.01:
        sentences.append(
            f"The learned prior was trained on voxels {trained[0]:g} to {trained[1]:g} times as long in z as in y and x; those "
            f"of this volume are {ratio:.2g} times as long. Compare with --method rltv before you trust fine detail."
        )
    sigma_max = model.sigma_max * model.sigma_unit
    if sigma > sigma_max:
        sentences.append(
            f"The learned prior was trained on noise up to --sigma {sigma_max:.3g}, got {sigma:.3g}. Use a smaller value, or "
            "--method rltv."
        )
    return sentences


def digest(model: WcrrWeights) -> str:
    """Return a checksum of the arrays and numbers of a model that decide a restoration.

    Parameters
    ----------
    model : WcrrWeights

    Examples
    --------
    >>> digest(resolve("compact")) == digest(resolve("default"))
    True
    """
    parts = [layer.tobytes() for layer in (*model.layers, model.scaling)]
    numbers = repr([model.sigma_max, model.sigma_unit, model.log_mu, model.beta, model.gamma, model.lambda_max])
    return hashlib.sha256(b"".join([*parts, numbers.encode()])).hexdigest()[:16]
