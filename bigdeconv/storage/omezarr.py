"""Description of one level of an OME-Zarr image: everything that is needed to read it, and its size in µm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import VOXEL_LIMITS_UM, Triple, triple
from bigdeconv.storage.locations import open_array, resolve_location
from bigdeconv.storage.ome_parsing import (
    MAX_EXTENT,
    Channel,
    StoredImage,
    check_array,
    compose,
    level_path,
    open_group,
    parse_image,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ATTRIBUTES_KEY = "bigdeconv"
"""Group attribute of the outputs that tells how they were made."""

# The length units that OME-NGFF takes from UDUNITS-2, and the abbreviations that real files hold, in µm.
_METER = 1e6
UM_PER_UNIT = {
    "yoctometer": 1e-24 * _METER,
    "zeptometer": 1e-21 * _METER,
    "attometer": 1e-18 * _METER,
    "femtometer": 1e-15 * _METER,
    "picometer": 1e-12 * _METER,
    "angstrom": 1e-10 * _METER,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "inch": 2.54e4,
    "decimeter": 1e5,
    "foot": 3.048e5,
    "yard": 9.144e5,
    "meter": _METER,
    "hectometer": 1e2 * _METER,
    "kilometer": 1e3 * _METER,
    "mile": 1609.344 * _METER,
    "megameter": 1e6 * _METER,
    "gigameter": 1e9 * _METER,
    "terameter": 1e12 * _METER,
    "petameter": 1e15 * _METER,
    "parsec": 3.0856775814913673e16 * _METER,
    "exameter": 1e18 * _METER,
    "zettameter": 1e21 * _METER,
    "yottameter": 1e24 * _METER,
    "nm": 1e-3,
    "um": 1.0,
    "µm": 1.0,  # micro sign
    "μm": 1.0,  # Greek mu
    "micron": 1.0,
    "mm": 1e3,
}

_SPACE = ("z", "y", "x")
_DEFAULT_CHUNK = 64


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """Description of one level of an OME-Zarr image: no open handle, no credentials, cheap to send to workers.

    ``scales`` and ``translations`` are those of this level in stored units, per stored axis, with the multiscale's own
    transformations applied (1 and 0 where there are none).  ``voxel_zyx_um`` and ``translation_zyx_um``, in µm, are for
    computations.  ``chunk_shape`` is the smallest unit that is decoded: the inner chunk of a sharded array.  Axes have their
    stored names, but the time axis is always called ``t``.
    """

    location: str
    array_path: str
    level: int
    ome_version: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    shard_shape: tuple[int, ...] | None
    dtype: str
    fill_value: float
    voxel_zyx_um: tuple[float, float, float]
    translation_zyx_um: tuple[float, float, float]
    units: tuple[str | None, ...]
    scales: tuple[float, ...]
    translations: tuple[float, ...]
    channels: tuple[Channel, ...]
    name: str

    @property
    def zyx_shape(self) -> Triple:
        """Extent in voxels, 1 on an axis that is not stored."""
        return triple(self.extent(name) for name in _SPACE)

    @property
    def n_timepoints(self) -> int:
        """Extent of axis ``t``, 1 where there is none."""
        return self.extent("t")

    @property
    def n_channels(self) -> int:
        """Extent of axis ``c``, 1 where there is none."""
        return self.extent("c")

    def extent(self, axis_name: str) -> int:
        """Return the extent of an axis, 1 where it is not stored."""
        position = self.axis_index(axis_name)
        return 1 if position is None else self.shape[position]

    def axis_index(self, name: str) -> int | None:
        """Return the position of an axis in stored order, None where it is not stored."""
        return self.axes.index(name) if name in self.axes else None


def describe(
    location: str | Path,
    *,
    level: int = 0,
    voxel_zyx_um: tuple[float, float, float] | None = None,
    kinds: str = "iuf",
) -> VolumeInfo:
    """Describe one level of an OME-Zarr image (0.4 or 0.5; older ones where they can be understood).

    Parameters
    ----------
    location : str or Path
        The image group: a local path or a ``file://``, ``http(s)://``, ``s3://``, ``gs://`` or ``az://`` URL.
    level : int
        Level of the pyramid; 0 is the finest.
    voxel_zyx_um : tuple of float, optional
        Voxel size of that level in µm, instead of the stored one.
    kinds : str
        Expected kinds of dtype, as NumPy abbreviates them.

    Returns
    -------
    VolumeInfo
        An image without a z axis is one plane; its voxels are as deep as they are high unless ``voxel_zyx_um`` is given.

    Raises
    ------
    StoreError
        If there is no image, its metadata cannot be read, or its array is missing.
    InvalidInputError
        If there is no such level or no usable voxel size, or if the axes or dtype cannot be deconvolved.
    """
    where = resolve_location(location)
    image = parse_image(where, open_group(where).attrs.asdict())
    path = level_path(where, image, level)
    array = open_array(where, path)
    check_array(where, path, array, image.axes, kinds)
    scales, translations, has_scale = compose(where, image, level)
    voxel, origin = _physical(where, image, scales if has_scale else None, translations, voxel_zyx_um)
    n_channels = dict(zip(image.axes, array.shape, strict=True)).get("c", 1)
    return VolumeInfo(
        location=where,
        array_path=path,
        level=level,
        ome_version=image.version,
        axes=image.axes,
        shape=array.shape,
        chunk_shape=array.chunks,
        shard_shape=array.shards,
        dtype=array.dtype.str,
        fill_value=0.0 if array.fill_value is None else float(array.fill_value),
        voxel_zyx_um=voxel,
        translation_zyx_um=origin,
        units=image.units,
        scales=scales,
        translations=translations,
        # Names that do not match the channels one to one would be given to the wrong ones.
        channels=image.channels if len(image.channels) == n_channels else (),
        name=image.name,
    )


def from_shape(
    tczyx_shape: tuple[int, ...], *, dtype: str, voxel_zyx_um: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> VolumeInfo:
    """Describe an image that does not exist yet, in chunks of at most 64 voxels on each axis of space.

    Parameters
    ----------
    tczyx_shape : tuple of int
        Extents on t, c, z, y and x.
    dtype : str
        NumPy dtype of the stored values.
    voxel_zyx_um : tuple of float
        Voxel size in µm.

    Raises
    ------
    InvalidInputError
        If the shape is not five positive extents.

    Examples
    --------
    >>> from_shape((1, 2, 40, 512, 512), dtype="uint16").chunk_shape
    (1, 1, 40, 64, 64)
    """
    if len(tczyx_shape) != 5 or min(tczyx_shape) < 1:
        raise InvalidInputError(f"shape: got {tczyx_shape}; expected five positive extents T,C,Z,Y,X.")
    if max(tczyx_shape) > MAX_EXTENT:
        raise InvalidInputError(f"shape: got {max(tczyx_shape):.3g} on an axis; expected at most {MAX_EXTENT}.")
    return VolumeInfo(
        location="",
        array_path="0",
        level=0,
        ome_version="0.5",
        axes=("t", "c", *_SPACE),
        shape=tczyx_shape,
        chunk_shape=(1, 1, *(min(n, _DEFAULT_CHUNK) for n in tczyx_shape[2:])),
        shard_shape=None,
        dtype=np.dtype(dtype).str,
        fill_value=0.0,
        voxel_zyx_um=voxel_zyx_um,
        translation_zyx_um=(0.0, 0.0, 0.0),
        units=(None, None, *("micrometer" for _ in _SPACE)),
        scales=(1.0, 1.0, *voxel_zyx_um),
        translations=(0.0,) * 5,
        channels=(),
        name="",
    )


def _physical(
    where: str,
    image: StoredImage,
    scales: tuple[float, ...] | None,
    translations: tuple[float, ...],
    given: Sequence[float] | None,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return voxel size and position of the first voxel in µm; ``scales`` is None where none was stored."""
    if given is not None:
        voxel = tuple(float(v) for v in given)
        if len(voxel) != 3 or not all(VOXEL_LIMITS_UM[0] <= v <= VOXEL_LIMITS_UM[1] for v in voxel):
            raise InvalidInputError(
                f"voxel_zyx_um is {tuple(given)}; expected three numbers z,y,x in µm, each from {VOXEL_LIMITS_UM[0]:g} to "
                f"{VOXEL_LIMITS_UM[1]:g}"
            )
        sizes = dict(zip(_SPACE, voxel, strict=True))
    elif scales is None:
        raise _no_voxel_size(where, "it stores no scale")
    else:
        sizes = {name: _stored_size(where, image, scales, name) for name in _SPACE if name in image.axes}
    sizes.setdefault("z", sizes["y"])
    origins = dict.fromkeys(_SPACE, 0.0)
    for name, scale, shift in zip(image.axes, scales or (), translations, strict=False):
        # Counted in voxels, a position also survives a voxel size given by hand.
        if name in origins and math.isfinite(shift) and math.isfinite(scale) and scale > 0:
            origins[name] = shift / scale * sizes[name]
    return (sizes["z"], sizes["y"], sizes["x"]), (origins["z"], origins["y"], origins["x"])


def _stored_size(where: str, image: StoredImage, scales: tuple[float, ...], name: str) -> float:
    position = image.axes.index(name)
    unit, scale = image.units[position], scales[position]
    if unit is None:
        raise _no_voxel_size(where, f"axis {name} has no unit")
    if unit not in UM_PER_UNIT:
        raise _no_voxel_size(where, f"axis {name} has the unit {unit!r}, which is no unit of length in OME-Zarr")
    size = scale * UM_PER_UNIT[unit]
    if not VOXEL_LIMITS_UM[0] <= size <= VOXEL_LIMITS_UM[1]:
        raise _no_voxel_size(where, f"axis {name} has the scale {scale}, unit {unit}")
    return size


def _no_voxel_size(where: str, reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"{where} has no usable voxel size: {reason}; give it in µm with --voxel-um Z,Y,X (Python: voxel_zyx_um)"
    )
