"""Metadata of OME-Zarr images, read tolerantly: strict validation refuses many real files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.errors import ContainsArrayError

from bigdeconv.errors import InvalidInputError, StoreError
from bigdeconv.storage.locations import is_remote, open_store, reported

if TYPE_CHECKING:
    from collections.abc import Mapping

_SPACE = ("z", "y", "x")
MAX_EXTENT = 10_000_000
"""Voxels, time points or channels on an axis: a metre of 0.1 µm."""
MAX_CHUNK_BYTES = 2**33
"""Of a chunk, which is decoded as a whole."""
KINDS = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


@dataclass(frozen=True, slots=True)
class Channel:
    """Rendering settings of one channel: ``color`` as ``RRGGBB``, ``window`` as (min, max, start, end) in stored values."""

    label: str
    color: str | None = None
    window: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class StoredImage:
    """First multiscale of a group; axes and the list of levels are checked, the levels themselves are not."""

    version: str
    axes: tuple[str, ...]
    units: tuple[str | None, ...]
    datasets: tuple[Mapping[str, Any], ...]
    transformations: Any
    channels: tuple[Channel, ...]
    name: str


def open_group(where: str) -> zarr.Group:
    """Open the group of an image for reading.

    Parameters
    ----------
    where : str
        A resolved location; see `resolve_location`.

    Raises
    ------
    StoreError
        If there is no group.
    """
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
    """Read the attributes of an image group, wherever its version keeps them.

    Parameters
    ----------
    where : str
        Location of the group, for error messages and as a substitute for a missing name.
    attributes : mapping
        All attributes of the group.

    Raises
    ------
    StoreError
        If it is no image.
    InvalidInputError
        If its axes or list of levels cannot be used.
    """
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
    """Return a sentence on a group without multiscales: its kind, and the path of an image below it."""
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
            raise InvalidInputError(f"{where} has a space axis {name!r}; expected z, y or x")
        names.append("t" if kind == "time" and name not in KINDS else name)
        units.append(unit if isinstance(unit, str) else None)
    if len(set(names)) != len(names):
        raise InvalidInputError(f"{where} has axes {names}; expected each once, and at most one of time")
    if not {"y", "x"} <= set(names):
        raise InvalidInputError(f"{where} has axes {names}; expected at least y and x")
    if len(set(names) - set(KINDS)) > 1:
        raise InvalidInputError(f"{where} has axes {names}; expected at most one beside t, c, z, y, x")
    return tuple(names), tuple(units)


def _parse_channels(omero: object) -> tuple[Channel, ...]:
    """Return the rendering settings as far as they can be understood; they decide nothing, so nothing is refused."""
    stored = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(stored, list):
        return ()
    channels = []
    for number, entry in enumerate(stored):
        entry = entry if isinstance(entry, dict) else {}
        color = str(entry.get("color", "")).lstrip("#").upper()
        window = entry.get("window")
        limits = [window.get(key) for key in ("min", "max", "start", "end")] if isinstance(window, dict) else []
        numbers = [float(v) for v in limits if isinstance(v, int | float) and _is_number(v) and math.isfinite(v)]
        channels.append(
            Channel(
                label=str(entry.get("label") or f"C{number}"),
                color=color if len(color) == 6 and set(color) <= set("0123456789ABCDEF") else None,
                window=(numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else None,
            )
        )
    return tuple(channels)


def level_path(where: str, image: StoredImage, level: int) -> str:
    """Return the path of a level's array inside the group.

    Raises
    ------
    InvalidInputError
        If there is no such level, or its path leaves the group.
    """
    n_levels = len(image.datasets)
    if not 0 <= level < n_levels:
        paths = ", ".join(str(d.get("path")) for d in image.datasets)
        raise InvalidInputError(f"level is {level}, but {where} has levels 0 to {n_levels - 1} (arrays {paths})")
    path = image.datasets[level].get("path")
    if not isinstance(path, str) or not path or path.startswith("/") or "\\" in path or ".." in path.split("/"):
        raise InvalidInputError(f"level {level} of {where} has the path {path!r}; it must lie inside the image group")
    return path


def check_array(where: str, path: str, array: zarr.Array[Any], axes: tuple[str, ...], kinds: str = "iuf") -> None:
    """Check the dimensions and dtype of a level's array.

    Parameters
    ----------
    where, path : str
        Group and array, for error messages.
    array : zarr.Array
        The level.
    axes : tuple of str
        Axes of the image.
    kinds : str
        Expected kinds of dtype, as NumPy abbreviates them.

    Raises
    ------
    InvalidInputError
        If the array does not fit the axes, is empty, or holds values of another kind.
    """
    if array.ndim != len(axes):
        raise InvalidInputError(f"array {path!r} of {where} has {array.ndim} dimensions, but the axes are {axes}")
    if 0 in array.shape:
        raise InvalidInputError(f"array {path!r} of {where} has shape {array.shape}: there are no voxels")
    if 0 in array.chunks or 0 in (array.shards or ()):
        raise InvalidInputError(
            f"array {path!r} of {where} has chunks of shape {array.chunks}; expected 1 or more voxels"
        )
    if max(array.shape) > MAX_EXTENT:
        raise InvalidInputError(
            f"array {path!r} of {where} has shape {array.shape}; expected at most {MAX_EXTENT} on an axis. Its metadata may be "
            "damaged."
        )
    if math.prod(array.chunks) * array.dtype.itemsize > MAX_CHUNK_BYTES:
        raise InvalidInputError(
            f"array {path!r} of {where} has chunks of shape {array.chunks}, of which each takes more than "
            f"{MAX_CHUNK_BYTES / 2**30:g} GiB; write it again in smaller chunks."
        )
    if array.dtype.kind not in kinds and "b" in kinds:
        raise InvalidInputError(f"array {path!r} of {where} has dtype {array.dtype}; a mask holds integers or booleans")
    if array.dtype.kind not in kinds or array.dtype.itemsize > 8:
        raise InvalidInputError(
            f"array {path!r} of {where} has dtype {array.dtype}; only integers and floats can be deconvolved "
            "(convert a boolean mask to uint8)"
        )


def compose(where: str, image: StoredImage, level: int) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Compose a level's transformations with those of the multiscale, which come second.

    Parameters
    ----------
    where : str
        Location of the group, for error messages.
    image : StoredImage
        See `parse_image`.
    level : int
        Index of the level.

    Returns
    -------
    scales, translations : tuple of float
        In stored units, per stored axis.
    has_scale : bool
        Whether any scale is stored.

    Raises
    ------
    InvalidInputError
        If a transformation is neither a scale nor a translation with one number per axis.
    """
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
                and all(_is_number(v) for v in vector)
                and (kind == "scale" or all(math.isfinite(v) for v in vector))
            ):
                raise InvalidInputError(
                    f"level {level} of {where} has the transformation {one_line(repr(entry))[:200]}; expected a scale or "
                    f"translation of {len(scales)} finite numbers"
                )
            if kind == "scale":
                has_scale = True
                scales = [s * v for s, v in zip(scales, vector, strict=True)]
                shifts = [t * v for t, v in zip(shifts, vector, strict=True)]
            else:
                shifts = [t + v for t, v in zip(shifts, vector, strict=True)]
    return tuple(scales), tuple(shifts), has_scale


def _is_number(value: object) -> bool:
    """Tell whether a value of JSON is a number that a float can hold; JSON allows integers of any length."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and float(value) is not None
    except OverflowError:
        return False


def one_line(error: object) -> str:
    """Return the text of an error or warning without line breaks."""
    return " ".join(str(error).split())
