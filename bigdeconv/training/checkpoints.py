"""Checkpoints of a training, replaced atomically: a process killed at any time leaves a complete one."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import torch

from bigdeconv.errors import InvalidInputError, StoreError
from bigdeconv.storage.atomic import replaced_file
from bigdeconv.training.config import TrainingConfig, make_config

if TYPE_CHECKING:
    from pathlib import Path

    from bigdeconv.training.regularizer import Regularizer

NAME = "checkpoint.pt"


def save(
    folder: Path, config: TrainingConfig, step: int, regularizer: Regularizer, optimizer: torch.optim.Optimizer
) -> None:
    """Replace the checkpoint of a folder.

    Parameters
    ----------
    folder : Path
        Folder of the training, which exists.
    config : TrainingConfig
    step : int
        Number of steps done.
    regularizer : Regularizer
    optimizer : torch.optim.Optimizer

    Raises
    ------
    StoreError
        If it cannot be written; the former checkpoint is then kept.
    """
    state = {
        "config": config.model_dump(mode="json"),
        "step": step,
        "regularizer": regularizer.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    try:
        for abandoned in folder.glob(f"{NAME.partition('.')[0]}.*.partial*"):  # of a training that was killed
            abandoned.unlink()
        with replaced_file(folder / NAME, sync=True) as building, building.open("wb") as file:
            torch.save(state, file)  # given a path, torch would write its random name into the file
    except (OSError, RuntimeError) as error:
        raise StoreError(
            f"checkpoint: {str(folder / NAME)!r} cannot be written ({error}). Check free space and permissions."
        ) from error


def load(folder: Path) -> tuple[TrainingConfig, dict[str, Any]]:
    """Read the checkpoint of a folder, without running any code that it may contain.

    Parameters
    ----------
    folder : Path
        Folder of the training.

    Returns
    -------
    config : TrainingConfig
    state : dict
        Entries ``step``, ``regularizer`` and ``optimizer``.

    Raises
    ------
    InvalidInputError
        If there is no checkpoint, or it is damaged or of another kind.
    """
    path = folder / NAME
    if not path.is_file():
        raise InvalidInputError(
            f"checkpoint: got {str(folder)!r}, which contains none; expected the folder of a training. Train without resume."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return make_config(state["config"]), state
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        # torch's message for content other than weights advises loading the file without this protection.
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = "content other than weights" if unsafe else str(error).partition("\n")[0] or type(error).__name__
        raise InvalidInputError(
            f"checkpoint: {str(path)!r} is damaged or not the checkpoint of a training ({reason}). "
            "Move it away and train again."
        ) from error


def check_same(config: TrainingConfig, earlier: TrainingConfig, folder: Path) -> None:
    """Refuse a checkpoint of another training.

    Parameters
    ----------
    config, earlier : TrainingConfig
        Present settings and those of the checkpoint.
    folder : Path
        Folder of the checkpoint, for the message.

    Raises
    ------
    InvalidInputError
        If settings differ that decide the course of a training; the message names them.
    """
    now, then = config.identity(), earlier.identity()
    different = [f"{name} was {then[name]!r}, is {now[name]!r}" for name in now if now[name] != then[name]]
    if different:
        raise InvalidInputError(
            f"resume: the checkpoint in {str(folder)!r} has another configuration ({'; '.join(different)}). "
            "Use that configuration, or another folder."
        )
