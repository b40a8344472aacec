"""What a job reads: the volumes that its settings name, described, and the part of them that it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import Box, triple
from bigdeconv.storage import omezarr
from bigdeconv.storage.collection import Collection, find_images

if TYPE_CHECKING:
    from bigdeconv.config import JobConfig
    from bigdeconv.storage.omezarr import VolumeInfo


def find(config: JobConfig, tczyx_shape: tuple[int, ...] | None) -> tuple[Collection, tuple[VolumeInfo, ...]]:
    """Find and describe the volumes of a job, or imagine one."""
    if tczyx_shape is None:
        images = find_images(config.input)
        return images, _describe(config, images)
    if config.mask not in {"auto", "none"}:
        raise InvalidInputError("mask, shape: a volume that does not exist yet has no labels; drop --mask.")
    dtype = "uint16" if config.dtype == "auto" else config.dtype
    voxel_um = _triple_or_none(config.voxel_um) or (1.0, 1.0, 1.0)
    return Collection(("",)), (omezarr.imagine(tczyx_shape, dtype=dtype, voxel_zyx_um=voxel_um),)


def _describe(config: JobConfig, images: Collection) -> tuple[VolumeInfo, ...]:
    voxel_um = _triple_or_none(config.voxel_um)
    volumes = tuple(omezarr.describe(where, level=config.level, voxel_zyx_um=voxel_um) for where in images.locations)
    for other in volumes[1:]:
        _require_alike(volumes[0], other, config.views_axis)
    return volumes


def _require_alike(first: VolumeInfo, other: VolumeInfo, view_axis: str | None) -> None:
    """Refuse volumes that one background, scale and PSF cannot serve; their shapes may differ."""

    def traits(volume: VolumeInfo) -> dict[str, Any]:
        return {
            "axes": ",".join(volume.axes),
            "dtype": np.dtype(volume.dtype).newbyteorder("=").name,
            "channels": volume.n_channels,
            "views": volume.extent(view_axis) if view_axis else 1,
            # What is stored in decimals may differ in the last one.
            "voxel size (z,y,x µm)": ",".join(f"{v:.5g}" for v in volume.voxel_zyx_um),
        }

    for (name, wanted), got in zip(traits(first).items(), traits(other).values(), strict=True):
        if got != wanted:
            raise InvalidInputError(
                f"input: {other.location} has {name} {got}, but {first.location} has {wanted}; volumes of one job share all but "
                "their extent: run those that differ apart."
            )


def check_axes(volume: VolumeInfo, view_axis: str | None) -> None:
    """Refuse an axis that means nothing here."""
    strange = [a for a in volume.axes if a not in {"t", "c", "z", "y", "x", view_axis}]
    if strange:
        raise InvalidInputError(
            f"input: axis {strange[0]!r} is none of t, c, z, y, x; if several views of one object lie along it, say "
            f"--views-axis {strange[0]}."
        )


def select(name: str, wanted: tuple[int, ...] | None, available: int) -> tuple[int, ...]:
    """Return the wanted indices once each, all where none are named."""
    if wanted is None:
        return tuple(range(available))
    if max(wanted) >= available:
        raise InvalidInputError(f"{name}: got {max(wanted)}; the volume has {available}, counted from 0.")
    return tuple(dict.fromkeys(wanted))


def roi(config: JobConfig, volume: VolumeInfo) -> Box | None:
    """Return the part of a volume that is wanted, None for all of it."""
    if config.roi is None:
        return None
    shape = volume.zyx_shape
    start = triple(a or 0 for a, _ in config.roi)
    stop = triple(n if b is None else b for (_, b), n in zip(config.roi, shape, strict=True))
    box = Box(start, stop)
    if box.size == 0 or not Box.of_shape(shape).contains(box):
        raise InvalidInputError(f"roi: got {start} to {stop}; it must be a box inside the volume of {shape}.")
    return box


def _triple_or_none(value: Any) -> tuple[float, float, float] | None:
    if value is None:
        return None
    z, y, x = value
    return z, y, x
