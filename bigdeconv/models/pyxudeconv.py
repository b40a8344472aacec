"""Import of the published 3-D regularisers of pyxudeconv (github.com/ThanhAnPham/pyxudeconv)."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bigdeconv.errors import InvalidInputError
from bigdeconv.numerics.priors.wcrr import fourier_lambda_max
from bigdeconv.numerics.priors.weights import WcrrWeights

_FIRST = "conv_layer.conv_layers.0.parametrizations.weight.original"
_LATER = "conv_layer.conv_layers.{}.weight"


def import_pyxudeconv(folder: str | Path) -> WcrrWeights:
    """Read ``config.json`` and the ``checkpoint_*.pth`` of the last step in a folder or below it.

    The checkpoint is opened with torch's ``weights_only``, which runs no code.  The norm of the filters is computed in the
    Fourier domain, because the value in the file is an estimate from the training.

    Parameters
    ----------
    folder : str or Path
        Folder of a pyxudeconv model.

    Returns
    -------
    WcrrWeights

    Raises
    ------
    InvalidInputError
        If a file is missing, or is not a checkpoint of a 3-D regulariser.
    """
    folder = Path(folder)
    config_file = folder / "config.json"
    checkpoints = sorted(folder.rglob("checkpoint_*.pth"), key=_step)
    if not config_file.is_file() or not checkpoints:
        raise InvalidInputError(
            f"model: got {str(folder)!r}, which does not contain config.json and checkpoint_*.pth; expected the folder of a "
            "pyxudeconv model."
        )
    try:
        config = json.loads(config_file.read_text())
        state = torch.load(checkpoints[-1], map_location="cpu", weights_only=True)["state_dict"]
        return _convert(config, state, checkpoints[-1].name)
    except pickle.UnpicklingError as error:
        # torch's own message advises loading the file without this protection.
        raise InvalidInputError(
            f"model: {str(checkpoints[-1])!r} is not a checkpoint of a 3-D pyxudeconv regulariser (it contains more than "
            "weights, or is damaged). It was not loaded."
        ) from error
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError, EOFError) as error:
        raise InvalidInputError(
            f"model: {str(checkpoints[-1])!r} is not a checkpoint of a 3-D pyxudeconv regulariser ({error})."
        ) from error


def _convert(config: dict[str, Any], state: dict[str, Any], checkpoint: str) -> WcrrWeights:
    n_layers = len(config["multi_convolution"]["size_kernels"])
    first = state[_FIRST].double()
    # The published layer subtracts each filter's mean every time it is used.
    first = first - first.mean(dim=(1, 2, 3, 4), keepdim=True)
    layers = [first, *(state[_LATER.format(i)].double() for i in range(1, n_layers))]
    arrays = tuple(layer.numpy().astype(np.float32) for layer in layers)
    return WcrrWeights(
        layers=arrays,
        scaling=state["spline_scaling.coefficients"].numpy().astype(np.float32),
        sigma_max=float(config["spline_scaling"]["x_max"]),
        sigma_unit=1 / 255,
        log_mu=float(state["mu_"]),
        beta=float(state["beta"]),
        gamma=float(state["gamma"]),
        lambda_max=fourier_lambda_max(arrays),
        kappa=0.05,
        sigma_default=2 / 255,
        card={"name": config["exp_name"], "imported_from": f"pyxudeconv {checkpoint}", "licence": "MIT, ThanhAnPham"},
    )


def _step(path: Path) -> int:
    digits = path.stem.removeprefix("checkpoint_")
    return int(digits) if digits.isdigit() else -1
