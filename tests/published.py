"""The published pyxudeconv model, if this machine has it, and a cropped one of the same architecture for every clone."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

PUBLISHED = Path(__file__).parents[1].parent / "shared" / "models" / "pyxudeconv-3Dtubes"
"""Folder with the published ``config.json`` and checkpoint; it is not part of the repository."""
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published model is not on this machine")
CHANNELS = (1, 4, 8, 12)
"""Of the cropped model; the published one has 64 in its last layer."""


def write_cropped(folder: Path, channels: tuple[int, ...] = CHANNELS, seed: int = 0) -> Path:
    """Write a checkpoint with the structure of the published one, few channels and random weights, and return its folder.

    Parameters
    ----------
    folder : Path
        Is made where it is missing.
    channels : tuple of int
        Channels of the 3×3×3 convolutions, from the input on.
    seed : int
        The same seed gives the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {"mu_": torch.tensor(6.728), "beta": torch.tensor(4.558), "gamma": torch.tensor(1.299)}
    for number, (into, out) in enumerate(pairwise(channels)):
        name = f"conv_layer.conv_layers.{number}" + (".parametrizations.weight.original" if number == 0 else ".weight")
        state[name] = 0.65 * torch.randn(out, into, 3, 3, 3, generator=generator)
    state["spline_scaling.coefficients"] = 6.74 + 1.3 * torch.randn(channels[-1], 11, generator=generator)
    config = {
        "exp_name": "cropped",
        "multi_convolution": {"num_channels": list(channels), "size_kernels": [3] * (len(channels) - 1)},
        "noise_range": [0, 50],
        "rho_wcvx": 1,
        "spline_scaling": {"clamp": False, "num_activations": channels[-1], "num_knots": 11, "x_max": 50, "x_min": 0},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = {
        "epoch": 40180,
        "state_dict": state,
        "L": torch.tensor(8.1e5, requires_grad=True),
        "optimizer_state_dict": {"state": {}, "param_groups": []},
    }
    torch.save(checkpoint, folder / "checkpoint_40180.pth")
    return folder
