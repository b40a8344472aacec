"""The state of a training on disk: replaced in one go, so that a kill at any time leaves a whole one."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

import torch

from bigdeconv.errors import InvalidInputError, StoreError
from bigdeconv.training.config import TrainingConfig, make_config

if TYPE_CHECKING:
    from pathlib import Path

    from bigdeconv.training.regularizer import Regularizer

NAME = "checkpoint.pt"


def save(
    folder: Path, config: TrainingConfig, step: int, regularizer: Regularizer, optimizer: torch.optim.Optimizer
) -> None:
    """Replace the checkpoint of a folder.

    Raises
    ------
    StoreError
        If it cannot be written; the one before it is still there.
    """
    state = {
        "config": config.model_dump(mode="json"),
        "step": step,
        "regularizer": regularizer.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    partial = folder / f"{NAME}.partial"
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / NAME)
    except (OSError, RuntimeError) as error:
        raise StoreError(
            f"checkpoint: {str(folder / NAME)!r} cannot be written ({error}); make room or rights."
        ) from error


def load(folder: Path) -> tuple[TrainingConfig, dict[str, Any]]:
    """Return the configuration and the state of a folder's checkpoint, which is read without running any code of it.

    Raises
    ------
    InvalidInputError
        If there is none, or it is damaged or of another kind.
    """
    path = folder / NAME
    if not path.is_file():
        raise InvalidInputError(f"checkpoint: there is none in {str(folder)!r}; start a training there without resume.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return make_config(state["config"]), state
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InvalidInputError(
            f"checkpoint: {str(path)!r} is damaged or no checkpoint of a training ({error}); "
            "move it away and start anew."
        ) from error


def check_same(config: TrainingConfig, earlier: TrainingConfig, folder: Path) -> None:
    """Refuse to go on from the checkpoint of another training.

    Raises
    ------
    InvalidInputError
        If a setting differs that decides the course of a training; it names them.
    """
    now, then = config.identity(), earlier.identity()
    different = [f"{name} was {then[name]!r}, is {now[name]!r}" for name in now if now[name] != then[name]]
    if different:
        raise InvalidInputError(
            f"resume: the checkpoint in {str(folder)!r} is of another configuration ({'; '.join(different)}); "
            "give that configuration, or another folder."
        )
