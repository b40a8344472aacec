"""Inputs of a job: its volumes, described, and the part of them that is deconvolved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import Box, triple
from bigdeconv.storage import omezarr
from bigdeconv.storage.collection import Collection, find_images

if TYPE_CHECKING:
    from bigdeconv.config import JobConfig
    from bigdeconv.storage.omezarr import VolumeInfo


@dataclass(frozen=True, slots=True)
class Inputs:
    """Volumes with their channels and views; no voxel of them has been read."""

    images: Collection
    volumes: tuple[VolumeInfo, ...]
    """Described alike but for their shapes."""
    channels: tuple[int, ...]
    n_views: int
    hypothetical: bool
    """Whether the one volume does not exist yet."""

    @property
    def first_volume(self) -> VolumeInfo:
        """The first volume; the others have its axes, dtype, voxel size, channels and views."""
        return self.volumes[0]


def find(config: JobConfig, tczyx_shape: tuple[int, ...] | None) -> Inputs:
    """Find and describe the volumes of a job, or imagine one of the given extent.

    Raises
    ------
    InvalidInputError
        If they are not alike, or a setting names an axis or a channel that they do not have.
    """
    if tczyx_shape is None:
        images = find_images(config.input)
        volumes = _describe(config, images)
    else:
        images, volumes = Collection(("",)), (_from_shape(config, tczyx_shape),)
    volume, view_axis = volumes[0], config.views_axis
    _check_axes(volume, view_axis)
    channels = (0,) if view_axis == "c" else select("channels", config.channels, volume.n_channels)
    n_views = volume.extent(view_axis) if view_axis else 1
    return Inputs(images, volumes, channels, n_views, hypothetical=tczyx_shape is not None)


def _from_shape(config: JobConfig, tczyx_shape: tuple[int, ...]) -> VolumeInfo:
    if config.mask_labels is not None:
        raise InvalidInputError("mask, shape: a volume that does not exist yet has no labels; drop --mask.")
    return omezarr.from_shape(
        tczyx_shape, dtype=config.dtype or "uint16", voxel_zyx_um=_voxel_um(config) or (1.0, 1.0, 1.0)
    )


def _describe(config: JobConfig, images: Collection) -> tuple[VolumeInfo, ...]:
    where, voxel_um = images.locations, _voxel_um(config)
    volumes = tuple(omezarr.describe(one, level=config.level, voxel_zyx_um=voxel_um) for one in where)
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


def _check_axes(volume: VolumeInfo, view_axis: str | None) -> None:
    """Refuse views along an axis that cannot hold them, and an axis that means nothing here."""
    if view_axis in {"z", "y", "x"}:
        raise InvalidInputError(
            f"views-axis: got {view_axis!r}, an axis of space; give the axis along which the views lie."
        )
    if view_axis is not None and volume.axis_index(view_axis) is None:
        raise InvalidInputError(f"views-axis: the volume has no axis {view_axis!r}; it has {', '.join(volume.axes)}.")
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


def _voxel_um(config: JobConfig) -> tuple[float, float, float] | None:
    if config.voxel_um is None:
        return None
    z, y, x = config.voxel_um
    return z, y, x
