"""What is stored: an OME-Zarr image described, tolerantly, since strict validation refuses many real files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.errors import ContainsArrayError

from bigdeconv.errors import InvalidInputError, StoreError
from bigdeconv.geometry import Triple, triple
from bigdeconv.storage.arrays import is_remote, open_array, open_store, reported, resolve_location

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ATTRIBUTES_KEY = "bigdeconv"

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
_IMAGINED_CHUNK = 64
KINDS = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
_COLORS = ("FFFFFF", "00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")


@dataclass(frozen=True, slots=True)
class Channel:
    """How viewers show one channel: ``color`` as ``RRGGBB``, ``window`` as (min, max, start, end) in stored values."""

    label: str
    color: str | None = None
    window: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """One level of an OME-Zarr image, described: no open handle, no credentials, cheap to send to workers.

    ``scales`` and ``translations`` are those of this level in stored units, per stored axis, with the multiscale's own
    transformations applied (1 and 0 where there are none).  ``voxel_zyx_um`` and ``translation_zyx_um`` are what to
    compute with.  ``chunk_shape`` is what one read decodes: the inner chunk of a sharded array.  Axes have their stored
    names, save that the time axis is always ``t``.
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
        Which level of the pyramid, 0 the finest.
    voxel_zyx_um : tuple of float, optional
        Voxel size of that level in µm, instead of the stored one.
    kinds : str
        Kinds of dtype that are allowed, as numpy abbreviates them.

    Returns
    -------
    VolumeInfo
        An image without a z axis is one plane; its voxels are as deep as they are high unless ``voxel_zyx_um`` says
        something else.

    Raises
    ------
    StoreError
        If there is no image, its metadata cannot be read, or its array is missing.
    InvalidInputError
        If there is no such level, no usable voxel size, or the axes or dtype are not ones that can be deconvolved.
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


def imagine(
    tczyx_shape: tuple[int, ...], *, dtype: str, voxel_zyx_um: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> VolumeInfo:
    """Describe an image that does not exist yet, in chunks of at most 64 voxels on each axis of space.

    Raises
    ------
    InvalidInputError
        If the shape is not five positive extents.
    """
    if len(tczyx_shape) != 5 or min(tczyx_shape) < 1:
        raise InvalidInputError(f"shape: got {tczyx_shape}; give five positive extents, T,C,Z,Y,X.")
    return VolumeInfo(
        location="",
        array_path="0",
        level=0,
        ome_version="0.5",
        axes=("t", "c", *_SPACE),
        shape=tczyx_shape,
        chunk_shape=(1, 1, *(min(n, _IMAGINED_CHUNK) for n in tczyx_shape[2:])),
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


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The first multiscale of a group, checked as far as its levels and axes."""

    version: str
    axes: tuple[str, ...]
    units: tuple[str | None, ...]
    datasets: tuple[Mapping[str, Any], ...]
    transformations: Any
    channels: tuple[Channel, ...]
    name: str


def open_group(where: str) -> zarr.Group:
    """Open the group of an image for reading."""
    if not is_remote(where) and not Path(where).is_dir():
        raise StoreError(f"{where} does not exist or is no folder; give the path of an OME-Zarr image")
    with reported("open", where):
        try:
            # Never the consolidated copy: it may be stale, and remote stores would be asked for one more file.
            return zarr.open_group(open_store(where), mode="r", use_consolidated=False)
        except ContainsArrayError as error:
            raise StoreError(f"{where} is an array, not an OME-Zarr image; give the group that holds it") from error
        except FileNotFoundError as error:
            raise StoreError(
                f"{where} is not an OME-Zarr image: there is no zarr group; give the folder with zarr.json or .zattrs"
            ) from error


def parse_image(where: str, attributes: Mapping[str, Any]) -> StoredImage:
    """Read the attributes of an image group, wherever its version keeps them."""
    inner = attributes.get("ome")
    ome: Mapping[str, Any] = inner if isinstance(inner, dict) else attributes
    multiscales = ome.get("multiscales")
    if not (isinstance(multiscales, list) and multiscales and isinstance(multiscales[0], dict)):
        raise StoreError(f"{where} is not an OME-Zarr image: {_without_multiscales(attributes, ome)}")
    first = multiscales[0]
    version = str(ome.get("version") or first.get("version") or ("0.5" if ome is inner else "0.4"))
    if "axes" not in first and "coordinateSystems" in first:
        raise InvalidInputError(f"{where} is OME-Zarr {version}, which is not read yet; convert it to 0.5 or 0.4")
    axes, units = _parse_axes(where, first.get("axes"))
    datasets = first.get("datasets")
    if not (isinstance(datasets, list) and datasets and all(isinstance(d, dict) for d in datasets)):
        raise InvalidInputError(f"{where} lists no levels: multiscales[0].datasets is {datasets!r}")
    name = first.get("name")
    return StoredImage(
        version=version,
        axes=axes,
        units=units,
        datasets=tuple(datasets),
        transformations=first.get("coordinateTransformations"),
        channels=_parse_channels(ome.get("omero")),
        name=name if isinstance(name, str) and name else where.rsplit("/", 1)[-1],
    )


def _without_multiscales(attributes: Mapping[str, Any], ome: Mapping[str, Any]) -> str:
    """Say what a group without multiscales is, and which path would be an image."""
    if "plate" in ome:
        return "it is a plate; give one of its images, for instance WELL/0 below it (row/column/field)"
    if "well" in ome:
        return "it is a well; give one of its images, for instance 0 below it"
    if "bioformats2raw.layout" in {*attributes, *ome}:
        return "it is a collection of images; give one of them, for instance 0 below it"
    return "its metadata holds no multiscales; give the group of one image, not an array or a folder above it"


def _parse_axes(where: str, stored: object) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    """Return names and units; axes are dicts since 0.4, names in 0.3, and t c z y x before."""
    if stored is None:
        stored = ["t", "c", "z", "y", "x"]
    if not isinstance(stored, list):
        raise InvalidInputError(f"{where} has axes {stored!r}; expected a list")
    names: list[str] = []
    units: list[str | None] = []
    for axis in stored:
        entry = axis if isinstance(axis, dict) else {"name": axis}
        name, kind, unit = entry.get("name"), entry.get("type"), entry.get("unit")
        if not isinstance(name, str) or not name:
            raise InvalidInputError(f"{where} has an axis without a name: {axis!r}")
        if kind == "space" and name not in _SPACE:
            raise InvalidInputError(f"{where} has a space axis {name!r}; only z, y and x can be deconvolved")
        names.append("t" if kind == "time" and name not in KINDS else name)
        units.append(unit if isinstance(unit, str) else None)
    if len(set(names)) != len(names):
        raise InvalidInputError(f"{where} has axes {names}: an axis appears twice (or there is more than one of time)")
    if not {"y", "x"} <= set(names):
        raise InvalidInputError(f"{where} has axes {names}; at least y and x are needed")
    if len(set(names) - set(KINDS)) > 1:
        raise InvalidInputError(f"{where} has axes {names}; at most one beside t, c, z, y, x is allowed")
    return tuple(names), tuple(units)


def _parse_channels(omero: object) -> tuple[Channel, ...]:
    """Return what can be understood of the rendering settings; they decide nothing, so nothing is refused."""
    stored = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(stored, list):
        return ()
    channels = []
    for number, entry in enumerate(stored):
        entry = entry if isinstance(entry, dict) else {}
        color = str(entry.get("color", "")).lstrip("#").upper()
        window = entry.get("window")
        limits = [window.get(key) for key in ("min", "max", "start", "end")] if isinstance(window, dict) else []
        numbers = [float(v) for v in limits if isinstance(v, int | float) and math.isfinite(v)]
        channels.append(
            Channel(
                label=str(entry.get("label") or f"C{number}"),
                color=color if len(color) == 6 and set(color) <= set("0123456789ABCDEF") else None,
                window=(numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else None,
            )
        )
    return tuple(channels)


def level_path(where: str, image: StoredImage, level: int) -> str:
    """Return the path of a level's array, which must stay inside the group."""
    n_levels = len(image.datasets)
    if not 0 <= level < n_levels:
        paths = ", ".join(str(d.get("path")) for d in image.datasets)
        raise InvalidInputError(f"level is {level}, but {where} has levels 0 to {n_levels - 1} (arrays {paths})")
    path = image.datasets[level].get("path")
    if not isinstance(path, str) or not path or path.startswith("/") or "\\" in path or ".." in path.split("/"):
        raise InvalidInputError(f"level {level} of {where} has the path {path!r}; it must lie inside the image group")
    return path


def check_array(where: str, path: str, array: zarr.Array[Any], axes: tuple[str, ...], kinds: str = "iuf") -> None:
    """Refuse an array that does not fit its axes or holds numbers of another kind."""
    if array.ndim != len(axes):
        raise InvalidInputError(f"array {path!r} of {where} has {array.ndim} dimensions, but the axes are {axes}")
    if 0 in array.shape:
        raise InvalidInputError(f"array {path!r} of {where} has shape {array.shape}: there are no voxels")
    if array.dtype.kind not in kinds and "b" in kinds:
        raise InvalidInputError(f"array {path!r} of {where} has dtype {array.dtype}; a mask holds integers or booleans")
    if array.dtype.kind not in kinds or array.dtype.itemsize > 8:
        raise InvalidInputError(
            f"array {path!r} of {where} has dtype {array.dtype}; only integers and floats can be deconvolved "
            "(convert a boolean mask to uint8)"
        )


def compose(where: str, image: StoredImage, level: int) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Apply a level's transformations, then the multiscale's: scales, shifts, and whether a scale was stored."""
    scales, shifts, has_scale = [1.0] * len(image.axes), [0.0] * len(image.axes), False
    for stored in (image.datasets[level].get("coordinateTransformations"), image.transformations):
        for entry in stored if isinstance(stored, list) else ():
            kind = entry.get("type") if isinstance(entry, dict) else None
            if kind == "identity":
                continue
            vector = entry.get(kind) if kind in ("scale", "translation") else None
            if not (
                isinstance(vector, list)
                and len(vector) == len(scales)
                and all(isinstance(v, int | float) and not isinstance(v, bool) for v in vector)
            ):
                raise InvalidInputError(
                    f"level {level} of {where} has the transformation {entry!r}; expected a scale or translation of "
                    f"{len(scales)} numbers"
                )
            if kind == "scale":
                has_scale = True
                scales = [s * v for s, v in zip(scales, vector, strict=True)]
                shifts = [t * v for t, v in zip(shifts, vector, strict=True)]
            else:
                shifts = [t + v for t, v in zip(shifts, vector, strict=True)]
    return tuple(scales), tuple(shifts), has_scale


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
        if len(voxel) != 3 or not all(math.isfinite(v) and v > 0 for v in voxel):
            raise InvalidInputError(f"voxel_zyx_um is {tuple(given)}; expected three positive numbers z,y,x in µm")
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
        raise _no_voxel_size(where, f"axis {name} has the unit {unit!r}, which is no length that OME-Zarr knows")
    size = scale * UM_PER_UNIT[unit]
    if not (math.isfinite(size) and size > 0):
        raise _no_voxel_size(where, f"axis {name} has the scale {scale}")
    return size


def _no_voxel_size(where: str, reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"{where} has no usable voxel size: {reason}; give it in µm with --voxel-um Z,Y,X (Python: voxel_zyx_um)"
    )


def one_line(error: Exception) -> str:
    """Return an error's text without line breaks."""
    return " ".join(str(error).split())
