"""What is trained on: simulated tubes or volumes from a file, and the noisy crops that a step draws from them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from bigdeconv.errors import InvalidInputError
from bigdeconv.simulation import sample, tubes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from bigdeconv.geometry import Triple
    from bigdeconv.training.config import TrainingConfig, TubesConfig

Volume: TypeAlias = "npt.NDArray[np.float32]"

_TRAINING, _HELD_OUT, _STEP = 0, 1, 2
"""Streams of random numbers; each volume and each step has a seed of its own within its stream."""
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Batch:
    """Crops with and without noise."""

    clean: Tensor
    """``b z y x``."""
    noisy: Tensor
    """``b z y x``."""
    sigma: Tensor
    """Noise level of each crop, in 1/255."""

    def to(self, device: torch.device | str) -> Batch:
        """Return the same on a device."""
        return Batch(self.clean.to(device), self.noisy.to(device), self.sigma.to(device))


def training_volumes(config: TrainingConfig, folder: Path) -> tuple[list[Volume], list[Volume]]:
    """Return the volumes to train on and those to measure on; simulated ones are kept in ``folder``.

    Raises
    ------
    InvalidInputError
        If a volume is not three-dimensional, not finite, constant, or smaller than the crop, or the file holds too few.
    """
    n_held_out = config.data.held_out
    if config.volumes is None:
        volumes = _simulated(config, folder)
    else:
        volumes = _load(Path(config.volumes))
        if len(volumes) <= n_held_out:
            raise InvalidInputError(
                f"volumes: {config.volumes!r} holds {len(volumes)} volumes, allowed are more than the {n_held_out} that are "
                "held out; give more, or set data.held_out."
            )
    volumes = [checked(volume, config.crop_zyx, f"volume {i}") for i, volume in enumerate(volumes)]
    return volumes[:-n_held_out], volumes[-n_held_out:]


def checked(volume: npt.ArrayLike, crop_zyx: Triple, name: str) -> Volume:
    """Return a clean volume divided by its maximum, if it can be trained on.

    Raises
    ------
    InvalidInputError
        If it is not three-dimensional, not finite, constant, or smaller than the crop.
    """
    array = np.asarray(volume, dtype=np.float32)
    if array.ndim != 3 or any(n < c for n, c in zip(array.shape, crop_zyx, strict=True)):
        raise InvalidInputError(
            f"volumes: {name} has the shape {array.shape}, allowed are z y x of at least {tuple(crop_zyx)}; "
            "give larger volumes or a smaller crop_zyx."
        )
    if not np.isfinite(array).all():
        raise InvalidInputError(f"volumes: {name} holds NaN or infinite values; give clean, finite volumes.")
    top = float(array.max())
    if top <= 0 or top == float(array.min()):
        raise InvalidInputError(
            f"volumes: {name} is constant or has no positive value; nothing is to be learned from it."
        )
    return array / np.float32(top)


def draw(config: TrainingConfig, volumes: Sequence[Volume], step: int) -> Batch:
    """Return the batch of a step.

    A step's random numbers come from the seed and the step alone, so a resumed training has no generator to restore.
    """
    rng = np.random.default_rng([config.seed, _STEP, step])
    clean = np.stack([_crop(rng, volumes, config.crop_zyx) for _ in range(config.batch)])
    sigma = rng.uniform(0, config.sigma_max, config.batch).astype(np.float32)
    noise = np.stack(
        [_noise(rng, config.crop_zyx, config.noise_blur * ((step * config.batch + i) % 2)) for i in range(config.batch)]
    )
    noisy = clean + noise * (sigma / np.float32(255))[:, None, None, None]
    return Batch(torch.from_numpy(clean), torch.from_numpy(noisy), torch.from_numpy(sigma))


def measured_part(volume: Volume, zyx_shape: Triple = (24, 48, 48)) -> Volume:
    """Return the part of a volume, of at most this shape, that holds the most light.

    On whole volumes the dark between the tubes decides, and 500 steps take minutes.
    """
    size = [min(n, s) for n, s in zip(volume.shape, zyx_shape, strict=True)]
    light = np.pad(volume.astype(np.float64), ((1, 0), (1, 0), (1, 0)))
    for axis in range(3):
        light = light.cumsum(axis)
    for axis, n in enumerate(size):
        after, before = slice(n, None), slice(None, light.shape[axis] - n)
        light = np.take(light, range(light.shape[axis])[after], axis) - np.take(
            light, range(light.shape[axis])[before], axis
        )
    start = np.unravel_index(int(light.argmax()), light.shape)
    return volume[tuple(slice(int(s), int(s) + n) for s, n in zip(start, size, strict=True))]


def _noise(rng: np.random.Generator, zyx_shape: Triple, widest: float) -> Volume:
    """Return noise of unit variance, as through a Gaussian of random width on each axis up to the widest in voxels."""
    noise = rng.standard_normal(zyx_shape, dtype=np.float32)
    if widest == 0:
        return noise
    widths = rng.uniform(0, widest, 3)
    impulse = np.zeros([2 * math.ceil(4 * widest) + 1] * 3)
    impulse[tuple(n // 2 for n in impulse.shape)] = 1
    power = np.sum(gaussian_filter(impulse, widths) ** 2)
    return np.asarray(gaussian_filter(noise, widths, mode="wrap") / np.sqrt(power), dtype=np.float32)


def _crop(rng: np.random.Generator, volumes: Sequence[Volume], crop_zyx: Triple) -> Volume:
    """Return a random crop that is not empty, flipped and with y and x swapped at random; z stays z."""
    for _ in range(_TRIES):
        volume = volumes[int(rng.integers(len(volumes)))]
        if rng.random() < 0.5:
            volume = volume.swapaxes(1, 2)
        # A swap may leave a narrow volume too narrow for the crop; then it is undone.
        if any(n < c for n, c in zip(volume.shape, crop_zyx, strict=True)):
            volume = volume.swapaxes(1, 2)
        start = [int(rng.integers(n - c + 1)) for n, c in zip(volume.shape, crop_zyx, strict=True)]
        crop = volume[tuple(slice(s, s + c) for s, c in zip(start, crop_zyx, strict=True))]
        if float(crop.max()) > 0.2:
            break
    return np.flip(crop, tuple(axis for axis in range(3) if rng.random() < 0.5))


def _simulated(config: TrainingConfig, folder: Path) -> list[Volume]:
    settings = json.dumps([config.seed, config.data.model_dump(mode="json")], sort_keys=True)
    path = folder / f"volumes-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.npz"
    if path.is_file():
        return _load(path)
    seeds = [(_TRAINING, i) for i in range(config.data.volumes)] + [(_HELD_OUT, i) for i in range(config.data.held_out)]
    volumes = [_simulate(config.data, np.random.default_rng([config.seed, *seed])) for seed in seeds]
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, *volumes)
    os.replace(partial, path)  # noqa: PTH105  (the one call that replaces on every system)
    return volumes


def _simulate(config: TubesConfig, rng: np.random.Generator) -> Volume:
    lateral_um, ratio, density, blur_um = (
        float(np.exp(rng.uniform(*np.log(bounds))))
        for bounds in (config.lateral_um, config.axial_ratio, config.fluorophores_per_um, config.blur_um)
    )
    voxel_um = (lateral_um * ratio, lateral_um, lateral_um)
    specimen = tubes(
        int(rng.integers(2**32)),
        [n * v for n, v in zip(config.zyx_shape, voxel_um, strict=True)],
        count=config.tubes,
        outer_radius_um=config.outer_radius_um,
        fluorophores_per_um=density,
        sigma_um=blur_um,
    )
    return sample(specimen, config.zyx_shape, voxel_um, peak_one=True)


def _load(path: Path) -> list[Volume]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in file.files]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InvalidInputError(
            f"volumes: {str(path)!r} is not a readable npz file of arrays ({error}); make one with numpy.savez."
        ) from error
