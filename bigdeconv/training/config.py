"""Settings of a training: a frozen model, read from a YAML file or by the name of a shipped configuration."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bigdeconv.config import read_text, read_yaml
from bigdeconv.errors import InvalidInputError

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Range = tuple[Positive, Positive]
Shape: TypeAlias = tuple[Count, Count, Count]

_FREE = frozenset({"steps", "check_every", "checkpoint_seconds", "kappa", "sigma_default"})
"""Settings that may change between a checkpoint and the training that continues from it."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class TubesConfig(_Settings):
    """Simulated volumes: each draws from every range, voxel sizes, densities and blurs uniformly in the logarithm."""

    volumes: Count = Field(80, description="Number of volumes for training.")
    held_out: Count = Field(6, description="Number of held-out volumes for measurements, from separate seeds.")
    zyx_shape: Shape = Field((36, 80, 80), description="Shape of each volume.")
    lateral_um: Range = Field((0.03, 0.08), description="Voxel size in y and x.")
    axial_ratio: Range = Field((1.5, 4.0), description="Voxel size in z over that in y and x.")
    tubes: tuple[Count, Count] = Field((4, 20), description="Smallest and largest number of tubes in a volume.")
    outer_radius_um: Range = Field((0.04, 0.25), description="Outer radius of a tube.")
    fluorophores_per_um: Range = Field((300.0, 2000.0), description="Fluorophores per µm of tube.")
    blur_um: Range = Field((0.05, 0.12), description="Standard deviation of the Gaussian of a fluorophore.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("lateral_um", "axial_ratio", "tubes", "outer_radius_um", "fluorophores_per_um", "blur_um"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: got the range {low} to {high}; expected the smaller number first")
        return self


class TrainingConfig(_Settings):
    """All settings of a training.  Triples are in the order z,y,x; σ is in units of 1/255 of the maximum."""

    schema_version: Literal[1] = 1
    name: str = Field(description="Name of the model.")
    seed: Annotated[int, Field(ge=0)] = Field(1, description="Seed of the volumes, crops, noise and first weights.")

    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        (4, 8, 16), description="Output channels of each 3×3×3 convolution, in sequence."
    )
    knots: Annotated[int, Field(ge=2)] = Field(11, description="Knots of the scaling splines on [0, sigma_max].")
    sigma_max: Positive = Field(50.0, description="Largest noise level, in 1/255 of the maximum.")
    mu_max: Positive = Field(10.0, description="Bound of the slope of ψ' at 0.")
    warm_start: str | None = Field(
        None,
        description="Model to start from, by name or file; its last layer is copied to fill these channels.",
    )
    gamma_max: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="Bound of the weak convexity; below 1 the denoising objective stays strongly convex."
    )

    data: TubesConfig = Field(TubesConfig(), description="Simulated volumes.")
    volumes: str | None = Field(None, description="npz file of clean volumes, each z y x, instead of simulated ones.")
    crop_zyx: Shape = Field((22, 36, 36), description="Shape of the crops that are denoised.")
    margin: Annotated[int, Field(ge=0)] = Field(
        4, description="Voxels at each face of a crop without weight in the loss: few filters reach them."
    )
    batch: Count = Field(4, description="Crops per step, each with its own noise level.")
    noise_blur: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="Largest standard deviation, in voxels, of the Gaussian that correlates the noise of every other crop, at "
        "the same noise level: the noise that a deconvolution amplifies is not white.",
    )

    steps: Count = Field(description="Number of steps of Adam; the learning rate falls to 1 % at the last one.")
    learning_rate: Positive = Field(5e-3, description="Largest learning rate.")
    warmup: Annotated[int, Field(ge=0)] = Field(50, description="Steps over which the learning rate rises.")
    loss_power: Annotated[float, Field(ge=0)] = Field(
        1.5, description="The squared error at σ is divided by (σ + 1) to this power, which balances the noise levels."
    )
    tolerance: Positive = Field(1e-4, description="Relative change at which a denoising counts as converged.")
    max_iterations: Count = Field(100, description="Largest number of steps of a denoising.")
    cg_iterations: Count = Field(12, description="Largest number of conjugate-gradient steps of the adjoint equation.")
    cg_tolerance: Positive = Field(1e-2, description="Relative residual at which the adjoint equation is solved.")

    check_every: Count = Field(200, description="Steps between measurements on held-out volumes.")
    checked_sigmas: tuple[Positive, ...] = Field((5.0, 15.0, 25.0), description="Noise levels of these measurements.")
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(120.0, description="Time between checkpoints.")
    kappa: Positive = Field(0.05, description="κ of the exported model: the search for τ starts at κ/(N σ²).")
    sigma_default: Positive = Field(5.0, description="Default σ of the exported model.")

    @model_validator(mode="after")
    def _crop_holds_something(self) -> Self:
        least = max(2 * self.margin, 2 * len(self.channels)) + 1
        if min(self.crop_zyx) < least:
            raise ValueError(
                f"crop_zyx: got {self.crop_zyx}; expected at least {least} voxels for {len(self.channels)} layers and a margin "
                f"of {self.margin}, use a larger crop or a smaller margin"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the course of the training, except for its length, as plain data."""
        return self.model_dump(mode="json", exclude=set(_FREE))


def load_config(name_or_path: str | Path, *, steps: int | None = None) -> TrainingConfig:
    """Return a training configuration by its name or from its YAML file.

    Parameters
    ----------
    name_or_path : str or Path
        Shipped name or path of a YAML file.
    steps : int, optional
        Number of steps, instead of that of the configuration.

    Raises
    ------
    InvalidInputError
        If it is neither, or a setting is wrong.

    Examples
    --------
    >>> load_config("start", steps=100).steps
    100
    """
    settings = _read(name_or_path)
    return make_config(settings if steps is None else {**settings, "steps": steps})


def make_config(settings: dict[str, Any]) -> TrainingConfig:
    """Return a training configuration from plain data.

    Parameters
    ----------
    settings : dict
        Values by name.

    Raises
    ------
    InvalidInputError
        If a setting is unknown, missing or wrong.

    Examples
    --------
    >>> make_config({"name": "small", "steps": 10, "channels": [2, 4]}).channels
    (2, 4)
    """
    try:
        return TrainingConfig.model_validate(settings)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in e['loc'])}: got {e['input']!r}, {e['msg']}" for e in error.errors()
        ]
        raise InvalidInputError(f"training configuration: {'; '.join(problems)}.") from error


def config_names() -> tuple[str, ...]:
    """Return the names of the shipped configurations.

    Examples
    --------
    >>> config_names()
    ('compact', 'large', 'middle', 'start')
    """
    return tuple(sorted(f.name.removesuffix(".yaml") for f in files(__package__).iterdir() if f.name.endswith(".yaml")))


def _read(name_or_path: str | Path) -> dict[str, Any]:
    if str(name_or_path) in config_names():
        text = (files(__package__) / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    else:
        try:
            text = read_text(Path(name_or_path))
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(
                f"training configuration: got {str(name_or_path)!r}, which is neither a readable file nor a shipped name; "
                f"expected a YAML file or one of {', '.join(config_names())}."
            ) from error
    try:
        settings = read_yaml(text)
    except ValueError as error:
        raise InvalidInputError(
            f"training configuration: got {str(name_or_path)!r}, which is not YAML ({error})."
        ) from error
    if not isinstance(settings, dict):
        raise InvalidInputError(
            f"training configuration: got {str(name_or_path)!r}, which does not contain settings by name."
        )
    return settings
