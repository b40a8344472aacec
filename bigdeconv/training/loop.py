"""The training loop: in each step noisy crops, the fixed point of the denoiser, its implicit derivative, and a step of Adam."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bigdeconv import models
from bigdeconv.errors import InvalidInputError, OutputExistsError, StoreError
from bigdeconv.training import checkpoints
from bigdeconv.training.data import Batch, draw, measured_part, training_volumes
from bigdeconv.training.denoiser import denoise, parameter_surrogate
from bigdeconv.training.evaluation import evaluate
from bigdeconv.training.regularizer import Regularizer
from bigdeconv.training.widening import start_from

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from bigdeconv.training.config import TrainingConfig
    from bigdeconv.training.data import Volume

PROGRESS = "progress.jsonl"
_CHECKED_VOLUMES = 3
"""Few, so that a measurement takes about as long as five steps."""


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a training after a number of steps; one line of ``progress.jsonl``."""

    step: int
    steps: int
    """Number of steps of the whole training."""
    loss: float
    """Mean since the last line."""
    psnr_db: dict[float, float]
    """PSNR by σ in units of 1/255, on parts of the held-out volumes, at the fixed point."""
    forward: float
    """Mean number of steps of a denoising."""
    backward: float
    """Mean number of steps of the adjoint equation."""
    mu: float
    beta: float
    gamma: float
    seconds_per_step: float
    seconds_left: float

    def __str__(self) -> str:
        quality = ", ".join(f"σ {sigma:g}: {value:.2f} dB" for sigma, value in self.psnr_db.items())
        minutes, seconds = divmod(round(self.seconds_left), 60)
        return f"step {self.step}/{self.steps}  loss {self.loss:.4g}  {quality}  {minutes}:{seconds:02d} left"


def train(
    config: TrainingConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    report: Callable[[Progress], None] | None = None,
) -> None:
    """Train for the number of steps of a configuration, with checkpoints and ``progress.jsonl`` in a folder.

    On a CPU with a fixed number of threads a resumed training gives the same bytes as an uninterrupted one.  A finished training
    continues if the configuration has more steps now; the learning rate then follows the schedule of the new number.

    Parameters
    ----------
    config : TrainingConfig
    folder : str or Path
        Folder of the training; it is made if missing.
    resume : bool
        Whether to continue from the checkpoint in the folder, if there is one.
    device : str
        ``cpu``, ``cuda`` or ``auto`` (cuda if available).
    threads : int, optional
        CPU threads, set for the whole process; by default unchanged.
    report : callable, optional
        Is called with each `Progress`.

    Raises
    ------
    InvalidInputError
        If there is no such device, the volumes cannot be used, the checkpoint is damaged or of another configuration, or the
        loss is not finite.
    OutputExistsError
        If the folder contains a checkpoint and ``resume`` is false.
    StoreError
        If the folder cannot be written.
    """
    folder, device = Path(folder), torch_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    regularizer = Regularizer(config).to(device)
    optimizer = torch.optim.Adam(regularizer.parameters(), lr=config.learning_rate)
    first = _start(config, folder, regularizer, optimizer, resume=resume)
    training, held_out = training_volumes(config, folder)
    small = [measured_part(volume) for volume in held_out[:_CHECKED_VOLUMES]]
    meter = _Meter(config, small, device)
    saved = time.monotonic()
    for step in range(first, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        meter.add(*_step(config, regularizer, optimizer, draw(config, training, step).to(device)))
        last = step + 1 == config.steps
        if last or (step + 1) % config.check_every == 0:
            _record(folder, meter.line(step + 1, regularizer), report)
        if last or time.monotonic() - saved >= config.checkpoint_seconds:
            checkpoints.save(folder, config, step + 1, regularizer, optimizer)
            saved = time.monotonic()


def torch_device(name: str) -> str:
    """Return the name of a device for torch.

    Parameters
    ----------
    name : str
        ``cpu``, ``cuda`` or ``auto`` (cuda if available).

    Raises
    ------
    InvalidInputError
        If this machine has no such device.

    Examples
    --------
    >>> torch_device("cpu")
    'cpu'
    """
    found = torch.cuda.is_available()
    if name not in {"auto", "cpu", "cuda"} or (name == "cuda" and not found):
        raise InvalidInputError(
            f"device: got {name!r}; expected auto, cpu{', cuda' if found else ''} on this machine. Use cpu."
        )
    if name == "auto":
        return "cuda" if found else "cpu"
    return name


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the learning rate of a step: a linear rise, then half a cosine down to 1 % at the last step.

    Parameters
    ----------
    config : TrainingConfig
    step : int
        Number of the step, from 0.
    """
    rise = min((step + 1) / (config.warmup + 1), 1.0)
    share = max(step - config.warmup, 0) / max(config.steps - 1 - config.warmup, 1)
    return config.learning_rate * rise * (0.01 + 0.99 * (1 + math.cos(math.pi * min(share, 1.0))) / 2)


def _start(
    config: TrainingConfig, folder: Path, regularizer: Regularizer, optimizer: torch.optim.Optimizer, *, resume: bool
) -> int:
    """Make the folder or load its checkpoint, and return the number of the first step."""
    if not (folder / checkpoints.NAME).exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"output: {str(folder)!r} cannot be made ({error}). Use another folder.") from error
        if config.warm_start is not None:
            start_from(regularizer, models.resolve(config.warm_start), config)
        return 0
    if not resume:
        raise OutputExistsError(
            f"output: {str(folder)!r} contains a training; continue it with --resume, or use another folder."
        )
    earlier, state = checkpoints.load(folder)
    checkpoints.check_same(config, earlier, folder)
    regularizer.load_state_dict(state["regularizer"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _step(
    config: TrainingConfig, regularizer: Regularizer, optimizer: torch.optim.Optimizer, batch: Batch
) -> tuple[float, int, int]:
    """Take one step of Adam; return the loss and the steps of the denoising and of the adjoint equation."""
    operator = regularizer.at(batch.sigma)
    taken = 0

    def count(k: int, _: Tensor) -> None:
        nonlocal taken
        taken = k

    frozen = operator.detach()
    x = denoise(
        batch.noisy,
        frozen.gradient,
        float(frozen.mu),
        iterations=config.max_iterations,
        tolerance=config.tolerance,
        seen=count,
    )
    value, slope = loss(config, x, batch)
    if not math.isfinite(value):
        raise InvalidInputError(
            f"learning_rate: got {config.learning_rate}, with which the loss is {value}; expected a finite loss. "
            "Use a lower rate and resume."
        )
    surrogate, adjoint = parameter_surrogate(
        operator, x, slope, iterations=config.cg_iterations, tolerance=config.cg_tolerance
    )
    optimizer.zero_grad()
    surrogate.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return value, taken, adjoint


def loss(config: TrainingConfig, x: Tensor, batch: Batch) -> tuple[float, Tensor]:
    """Return the mean squared error without the margin, weighted per noise level, and its slope.

    Parameters
    ----------
    config : TrainingConfig
    x : Tensor, ``b z y x``
        Denoised crops.
    batch : Batch

    Returns
    -------
    loss : float
        In units of (1/255)².
    slope : Tensor, ``b z y x``
        Derivative with respect to ``x``.
    """
    inner = (slice(None), *(slice(config.margin, n - config.margin) for n in x.shape[1:]))
    error = torch.zeros_like(x)
    error[inner] = 255 * (x[inner] - batch.clean[inner])
    weight = (batch.sigma + 1) ** -config.loss_power / error[inner].numel()
    weighted = weight[:, None, None, None] * error
    return float((weighted * error).sum()), 2 * 255 * weighted


class _Meter:
    """Means over the steps between two lines of progress."""

    def __init__(self, config: TrainingConfig, volumes: list[Volume], device: str) -> None:
        self._config, self._volumes, self._device = config, volumes, device
        self._sums = [0.0, 0.0, 0.0]
        self._n = 0
        self._since = time.monotonic()

    def add(self, *numbers: float) -> None:
        self._sums = [total + number for total, number in zip(self._sums, numbers, strict=True)]
        self._n += 1

    def line(self, step: int, regularizer: Regularizer) -> Progress:
        config = self._config
        table = evaluate(
            regularizer.weights(config, {}),
            config.checked_sigmas,
            self._volumes,
            steps=(config.max_iterations,),
            tolerance=config.tolerance,
            device=self._device,
        )
        mean = [total / self._n for total in self._sums]
        mu, beta, gamma = (float(number.detach()) for number in regularizer.potential())
        seconds = (time.monotonic() - self._since) / self._n
        self._sums, self._n, self._since = [0.0, 0.0, 0.0], 0, time.monotonic()
        return Progress(
            step=step,
            steps=config.steps,
            loss=mean[0],
            psnr_db={sigma: row[config.max_iterations] for sigma, row in table.items()},
            forward=mean[1],
            backward=mean[2],
            mu=mu,
            beta=beta,
            gamma=gamma,
            seconds_per_step=seconds,
            seconds_left=seconds * (config.steps - step),
        )


def _record(folder: Path, progress: Progress, report: Callable[[Progress], None] | None) -> None:
    with (folder / PROGRESS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(progress)) + "\n")
    if report is not None:
        report(progress)
