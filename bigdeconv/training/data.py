"""Training data: simulated tubes or volumes from a file, and the noisy crops that each step draws from them."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from bigdeconv.errors import InvalidInputError
from bigdeconv.simulation import sample, tubes
from bigdeconv.storage.atomic import replaced_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from bigdeconv.geometry import Triple
    from bigdeconv.training.config import TrainingConfig, TubesConfig

Volume: TypeAlias = "npt.NDArray[np.float32]"

_TRAINING, _HELD_OUT, _STEP = 0, 1, 2
"""Streams of random numbers; each volume and each step has its own seed within its stream."""
_TRIES = 10
"""Attempts to draw a crop that is not empty."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Crops with and without noise, and their noise levels."""

    clean: Tensor
    """``b z y x``, maximum 1 in a volume."""
    noisy: Tensor
    """``b z y x``."""
    sigma: Tensor
    """Noise level of each crop, ``b``, in units of 1/255."""

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on a device."""
        return Batch(self.clean.to(device), self.noisy.to(device), self.sigma.to(device))


def training_volumes(config: TrainingConfig, folder: Path) -> tuple[list[Volume], list[Volume]]:
    """Return the volumes for training and the held-out ones; simulated volumes are stored in a folder and read again from there.

    Parameters
    ----------
    config : TrainingConfig
    folder : Path
        Folder of the training, which exists.

    Returns
    -------
    training, held_out : list of ndarray, ``z y x``
        float32, each with maximum 1.

    Raises
    ------
    InvalidInputError
        If a volume is not three-dimensional, not finite, constant, or smaller than the crop, or the file contains too few.
    """
    n_held_out = config.data.held_out
    if config.volumes is None:
        volumes = _simulated(config, folder)
    else:
        volumes = _load(Path(config.volumes))
        if len(volumes) <= n_held_out:
            raise InvalidInputError(
                f"volumes: got {len(volumes)} volumes in {config.volumes!r}; expected more than the {n_held_out} that are held "
                "out. Add volumes, or lower data.held_out."
            )
    volumes = [checked(volume, config.crop_zyx, f"volume {i}") for i, volume in enumerate(volumes)]
    return volumes[:-n_held_out], volumes[-n_held_out:]


def checked(volume: npt.ArrayLike, crop_zyx: Triple, name: str) -> Volume:
    """Return a clean volume divided by its maximum.

    Parameters
    ----------
    volume : array_like, ``z y x``
    crop_zyx : tuple of int
        Shape of the crops.
    name : str
        Name of the volume in messages.

    Returns
    -------
    ndarray, ``z y x``
        float32 with maximum 1.

    Raises
    ------
    InvalidInputError
        If it is not three-dimensional, not finite, constant, or smaller than the crop.

    Examples
    --------
    >>> checked([[[0, 2, 4]]], (1, 1, 2), "mine")
    array([[[0. , 0.5, 1. ]]], dtype=float32)
    """
    array = np.asarray(volume, dtype=np.float32)
    if array.ndim != 3 or any(n < c for n, c in zip(array.shape, crop_zyx, strict=True)):
        raise InvalidInputError(
            f"volumes: got {name} of shape {array.shape}; expected z y x of at least {tuple(crop_zyx)}. "
            "Use larger volumes or a smaller crop_zyx."
        )
    if not np.isfinite(array).all():
        raise InvalidInputError(f"volumes: got {name} with NaN or infinity; expected finite values.")
    top = float(array.max())
    if top <= 0 or top == float(array.min()):
        raise InvalidInputError(
            f"volumes: got {name}, which is constant or has no positive value; expected volumes with structure."
        )
    return array / np.float32(top)


def draw(config: TrainingConfig, volumes: Sequence[Volume], step: int) -> Batch:
    """Return the batch of a step.

    The random numbers depend on the seed and the step alone, so that a resumed training has no generator to restore.

    Parameters
    ----------
    config : TrainingConfig
    volumes : sequence of ndarray, ``z y x``
        Clean volumes, maximum 1.
    step : int
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
    """Return the part of a volume with the largest sum.

    On whole volumes the dark regions between the tubes would dominate a measurement, and 500 steps would take minutes.

    Parameters
    ----------
    volume : ndarray, ``z y x``
    zyx_shape : tuple of int
        Largest shape of the part.

    Examples
    --------
    >>> measured_part(np.float32([[[0, 1, 5, 1]]]), (1, 1, 2))
    array([[[1., 5.]]], dtype=float32)
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
    """Return noise of unit variance, correlated by a Gaussian of random width on each axis, up to ``widest`` voxels."""
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
        # If the swap has made a narrow volume too narrow for the crop, it is undone.
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
    with replaced_file(path) as building:
        np.savez(building, *volumes)
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
            f"volumes: got {str(path)!r}, which is not a readable npz file of arrays ({error}). Write one with numpy.savez."
        ) from error
