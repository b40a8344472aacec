"""OME-Zarr metadata: describe what is stored, create an output, validate it.

Reading is tolerant, since strict validation refuses many real files; writing goes through the models of
ome-zarr-models.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import ContainsArrayError

from bigdeconv.errors import InvalidInputError, OutputExistsError, StoreError
from bigdeconv.geometry import Triple, ceil_div, triple
from bigdeconv.storage.arrays import is_remote, open_array, open_store, reported, resolve_location

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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
_KINDS = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
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


@dataclass(frozen=True, slots=True)
class LevelSpec:
    """One array of an output, everything in the order of its axes.

    A shard is a multiple of the chunk on every axis; ``shard_shape`` is None where each chunk is its own file.
    """

    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    shard_shape: tuple[int, ...] | None
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """An OME-Zarr image to be made; ``attributes`` goes under the group attribute ``bigdeconv``."""

    axes: tuple[str, ...]
    units: tuple[str | None, ...]
    dtype: str
    levels: tuple[LevelSpec, ...]
    ome_version: Literal["0.5", "0.4"]
    name: str
    channels: tuple[Channel, ...]
    attributes: dict[str, Any]


# --- describe ---------------------------------------------------------------------------------------------------------


def describe(
    location: str | Path, *, level: int = 0, voxel_zyx_um: tuple[float, float, float] | None = None
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
    image = _parse_image(where, _open_group(where).attrs.asdict())
    path = _level_path(where, image, level)
    array = open_array(where, path)
    _check_array(where, path, array, image.axes)
    scales, translations, has_scale = _compose(where, image, level)
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


@dataclass(frozen=True, slots=True)
class _Image:
    """The first multiscale of a group, checked as far as its levels and axes."""

    version: str
    axes: tuple[str, ...]
    units: tuple[str | None, ...]
    datasets: tuple[Mapping[str, Any], ...]
    transformations: Any
    channels: tuple[Channel, ...]
    name: str


def _open_group(where: str) -> zarr.Group:
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


def _parse_image(where: str, attributes: Mapping[str, Any]) -> _Image:
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
    return _Image(
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
        names.append("t" if kind == "time" and name not in _KINDS else name)
        units.append(unit if isinstance(unit, str) else None)
    if len(set(names)) != len(names):
        raise InvalidInputError(f"{where} has axes {names}: an axis appears twice (or there is more than one of time)")
    if not {"y", "x"} <= set(names):
        raise InvalidInputError(f"{where} has axes {names}; at least y and x are needed")
    if len(set(names) - set(_KINDS)) > 1:
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


def _level_path(where: str, image: _Image, level: int) -> str:
    """Return the path of a level's array, which must stay inside the group."""
    n_levels = len(image.datasets)
    if not 0 <= level < n_levels:
        paths = ", ".join(str(d.get("path")) for d in image.datasets)
        raise InvalidInputError(f"level is {level}, but {where} has levels 0 to {n_levels - 1} (arrays {paths})")
    path = image.datasets[level].get("path")
    if not isinstance(path, str) or not path or path.startswith("/") or "\\" in path or ".." in path.split("/"):
        raise InvalidInputError(f"level {level} of {where} has the path {path!r}; it must lie inside the image group")
    return path


def _check_array(where: str, path: str, array: zarr.Array[Any], axes: tuple[str, ...]) -> None:
    if array.ndim != len(axes):
        raise InvalidInputError(f"array {path!r} of {where} has {array.ndim} dimensions, but the axes are {axes}")
    if 0 in array.shape:
        raise InvalidInputError(f"array {path!r} of {where} has shape {array.shape}: there are no voxels")
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise InvalidInputError(
            f"array {path!r} of {where} has dtype {array.dtype}; only integers and floats can be deconvolved "
            "(convert a boolean mask to uint8)"
        )


def _compose(where: str, image: _Image, level: int) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
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
    image: _Image,
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


def _stored_size(where: str, image: _Image, scales: tuple[float, ...], name: str) -> float:
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


# --- create -----------------------------------------------------------------------------------------------------------


def create_output(path: Path, spec: OutputSpec) -> None:
    """Create an image with all levels and metadata but no voxels, or nothing at all.

    It is made beside ``path`` under a hidden name and renamed into place, so that nobody ever sees half of it.

    Parameters
    ----------
    path : Path
        Where it goes; a local path that does not exist.  Folders above it are made.
    spec : OutputSpec
        What to make.  Arrays are named ``0``, ``1``, ... and filled with 0.

    Raises
    ------
    OutputExistsError
        If something is there.
    InvalidInputError
        If the specification contradicts itself or the OME-Zarr version.
    StoreError
        If it cannot be written.
    """
    where = resolve_location(path)
    if is_remote(where):
        raise StoreError(f"cannot write to {where}: output goes to local paths only")
    target = Path(where)
    if os.path.lexists(target):
        raise _output_exists(target)
    _check_spec(spec)
    attributes = _group_attributes(spec)
    hidden = target.parent / f".{target.name}.{uuid4().hex[:12]}.tmp"
    try:
        with reported("create", where):
            _make_group(hidden, spec, attributes)
            try:
                hidden.rename(target)
            except OSError as error:
                if os.path.lexists(target):
                    raise _output_exists(target) from error
                raise
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(hidden)


def set_attributes(path: Path, attributes: dict[str, Any]) -> None:
    """Replace the attribute ``bigdeconv`` of an image group; the rest stays.

    Raises
    ------
    InvalidInputError
        If the attributes are not JSON.
    StoreError
        If there is no group or it cannot be written.
    """
    _check_json(attributes)
    where = resolve_location(path)
    store = open_store(where, writable=True)
    with reported("write the attributes of", where):
        zarr.open_group(store, mode="r+", use_consolidated=False).attrs[ATTRIBUTES_KEY] = attributes


def _output_exists(path: Path) -> OutputExistsError:
    return OutputExistsError(
        f"output {path} already exists; continue it with --resume, replace it with --overwrite, or choose another path"
    )


def _check_spec(spec: OutputSpec) -> None:
    """Refuse what zarr or OME-Zarr would refuse later, or worse, accept."""
    n_axes = len(spec.axes)
    if spec.ome_version not in ("0.4", "0.5"):
        raise InvalidInputError(f"ome_version is {spec.ome_version!r}; 0.5 and 0.4 can be written")
    if not spec.levels or len(spec.units) != n_axes:
        raise InvalidInputError(f"got {len(spec.levels)} levels and {len(spec.units)} units for axes {spec.axes}")
    _check_json(spec.attributes)
    for number, level in enumerate(spec.levels):
        shards = level.shard_shape
        fields = (level.shape, level.chunk_shape, level.scale, level.translation, shards or level.chunk_shape)
        if any(len(field) != n_axes for field in fields):
            raise InvalidInputError(f"level {number} has not one shape, chunk, scale and translation per axis: {level}")
        if min(*level.shape, *level.chunk_shape) < 1:
            raise InvalidInputError(
                f"level {number} has shape {level.shape} and chunks {level.chunk_shape}, not positive"
            )
        if shards and spec.ome_version == "0.4":
            raise InvalidInputError("OME-Zarr 0.4 knows no shards; leave them out or write 0.5")
        if shards and any(s < 1 or s % c for s, c in zip(shards, level.chunk_shape, strict=True)):
            raise InvalidInputError(
                f"level {number} has shards {shards}, which are no multiple of its chunks {level.chunk_shape}"
            )


def _check_json(attributes: object) -> None:
    try:
        json.dumps(attributes, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"attributes must be plain JSON: {error}") from error


def _make_group(folder: Path, spec: OutputSpec, attributes: dict[str, Any]) -> None:
    """Write group and arrays into a folder that nobody looks at yet."""
    v3 = spec.ome_version == "0.5"
    folder.mkdir(parents=True)
    group = zarr.create_group(open_store(str(folder), writable=True), zarr_format=3 if v3 else 2, attributes=attributes)
    # Bit shuffling wrote noisy 16-bit data nearly twice as fast as byte shuffling, for files 4 to 8 % larger.
    # Blosc keeps no checksum: without the last codec a flipped bit is read back as data.
    codecs = [BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()]
    blosc: dict[str, Any] = {"id": "blosc", "cname": "zstd", "clevel": 3, "shuffle": 2, "blocksize": 0}
    for number, level in enumerate(spec.levels):
        shards = level.shard_shape
        group.create_array(
            str(number),
            # zarr 3.3.0 refuses numpy integers
            shape=tuple(int(n) for n in level.shape),
            chunks=tuple(int(n) for n in level.chunk_shape),
            shards=tuple(int(n) for n in shards) if shards else None,
            dtype=spec.dtype,
            compressors=codecs if v3 else blosc,
            fill_value=0,
            dimension_names=spec.axes if v3 else None,
            chunk_key_encoding={"name": "default" if v3 else "v2", "separator": "/"},
        )


def _group_attributes(spec: OutputSpec) -> dict[str, Any]:
    """Return the group's attributes, dumped from validated models."""
    from ome_zarr_models import v04, v05  # takes as long as zarr itself, and workers never need it

    models = v05.multiscales if spec.ome_version == "0.5" else v04.multiscales
    axis = v05.axes.Axis if spec.ome_version == "0.5" else v04.axes.Axis
    try:
        multiscale = models.Multiscale(
            name=spec.name,
            axes=[
                axis(name=name, type=_KINDS.get(name), unit=unit)
                for name, unit in zip(spec.axes, spec.units, strict=True)
            ],
            datasets=tuple(
                models.Dataset.build(path=str(number), scale=level.scale, translation=level.translation)
                for number, level in enumerate(spec.levels)
            ),
        )
    except ValueError as error:
        raise InvalidInputError(f"the output would be no valid OME-Zarr image: {_one_line(error)}") from error
    described = multiscale.model_dump(by_alias=True, exclude_none=True, mode="json")
    extra = {"omero": _omero(spec)} if spec.channels else {}
    own = {ATTRIBUTES_KEY: spec.attributes}
    if spec.ome_version == "0.5":
        return {"ome": {"version": "0.5", "multiscales": [described], **extra}, **own}
    return {"multiscales": [{"version": "0.4", **described}], **extra, **own}


def _omero(spec: OutputSpec) -> dict[str, Any]:
    """Return rendering settings for every channel; viewers need a color and a window for each."""
    from ome_zarr_models.common import omero

    dtype = np.dtype(spec.dtype)
    top = float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0
    channels = []
    for number, channel in enumerate(spec.channels):
        low, high, start, end = channel.window or (0.0, top, 0.0, top)
        # A single channel is shown in grey, several in colors that can be told apart.
        color = channel.color or _COLORS[number % len(_COLORS) if len(spec.channels) > 1 else 0]
        window = omero.Window(min=low, max=high, start=start, end=end)
        shown = {"label": channel.label, "active": True}
        try:
            channels.append(omero.Channel(color=color, window=window, **shown))
        except ValueError as error:
            raise InvalidInputError(f"channel {channel} cannot be described: {_one_line(error)}") from error
    return omero.Omero(channels=channels).model_dump(by_alias=True, exclude_none=True, mode="json")


# --- validate ---------------------------------------------------------------------------------------------------------


def validate(location: str | Path, *, deep: bool = False) -> list[str]:
    """Check an image against the specification and its levels against each other.

    Level n must be coarser than level 0 by whole factors f, with ``shape_0 / f`` voxels (rounded either way) and the
    translation ``t_0 + (s_n - s_0) / 2`` that a mean over f voxels has.

    Parameters
    ----------
    location : str or Path
        The image group; see `describe`.
    deep : bool
        Decode every chunk, a shard at a time, so that checksums speak up.  That reads the whole image.

    Returns
    -------
    list of str
        One sentence per problem, empty when valid.
    """
    try:
        where = resolve_location(location)
        group = _open_group(where)
        attributes = group.attrs.asdict()
        image = _parse_image(where, attributes)
    except (InvalidInputError, StoreError) as error:
        return [str(error)]
    problems = _model_problems(group, attributes)
    levels: list[_Level] = []
    for number in range(len(image.datasets)):
        try:
            levels.append(_open_level(where, image, number))
        except (InvalidInputError, StoreError) as error:
            problems.append(str(error))
    for level in levels[1:]:
        problems.extend(_level_problems(levels[0], level, image.axes))
    if deep:
        for level in levels:
            problems.extend(_chunk_problems(where, level))
    return problems


@dataclass(frozen=True, slots=True)
class _Level:
    path: str
    array: zarr.Array[Any]
    scales: tuple[float, ...]
    translations: tuple[float, ...]


def _open_level(where: str, image: _Image, number: int) -> _Level:
    path = _level_path(where, image, number)
    array = open_array(where, path)
    _check_array(where, path, array, image.axes)
    scales, translations, has_scale = _compose(where, image, number)
    if not (has_scale and all(math.isfinite(s) and s > 0 for s in scales)):
        raise InvalidInputError(f"level {number} of {where} has the scales {scales}; expected positive numbers")
    return _Level(path, array, scales, translations)


def _model_problems(group: zarr.Group, attributes: Mapping[str, Any]) -> list[str]:
    """Return what ome-zarr-models says."""
    from ome_zarr_models import v04, v05
    from pydantic import ValidationError

    model = v05.Image if "ome" in attributes else v04.Image
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.from_zarr(group)
        except ValidationError as error:
            return [f"{'.'.join(map(str, e['loc'])) or 'metadata'}: {e['msg']}" for e in error.errors()]
        except Exception as error:
            # It meets whatever is stored; that it stumbles is the finding.
            return [f"ome-zarr-models cannot open the image: {_one_line(error)}"]
    return [str(w.message) for w in caught if w.category.__name__ == "ValidationWarning"]


def _level_problems(first: _Level, level: _Level, axes: tuple[str, ...]) -> list[str]:
    """Compare a level with the finest one, axis by axis."""
    name, problems = f"array {level.path!r}", []
    if level.array.dtype != first.array.dtype:
        problems.append(f"{name} has dtype {level.array.dtype}, the finest level {first.array.dtype}")
    for i, axis in enumerate(axes):
        ratio = level.scales[i] / first.scales[i]
        factor = round(ratio)
        if factor < 1 or abs(ratio - factor) > 1e-6 * ratio:
            problems.append(f"{name} is coarser on axis {axis} by {ratio:.6g}, which is no whole factor")
            continue
        expected = first.translations[i] + (level.scales[i] - first.scales[i]) / 2
        if abs(level.translations[i] - expected) > 1e-6 * level.scales[i]:
            problems.append(
                f"{name} has translation {level.translations[i]:.9g} on axis {axis}, expected {expected:.9g}"
            )
        full, size = first.array.shape[i], level.array.shape[i]
        if not max(full // factor, 1) <= size <= ceil_div(full, factor):
            problems.append(f"{name} has {size} voxels on axis {axis}, expected {full} / {factor}")
    return problems


def _chunk_problems(where: str, level: _Level) -> Iterator[str]:
    """Decode an array file by file: one shard, or one chunk, in memory at a time."""
    array = level.array
    step = array.shards or array.chunks
    for position in product(*(range(ceil_div(n, s)) for n, s in zip(array.shape, step, strict=True))):
        start = tuple(p * s for p, s in zip(position, step, strict=True))
        region = tuple(slice(a, min(a + s, n)) for a, s, n in zip(start, step, array.shape, strict=True))
        try:
            with reported("decode", where, level.path):
                array[region]
        except StoreError as error:
            yield f"{error} (at {start})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
