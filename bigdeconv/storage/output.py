"""Creation of an OME-Zarr image: all arrays and metadata before the first voxel, described by ome-zarr."""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import zarr
from zarr.storage import MemoryStore

from bigdeconv.errors import InvalidInputError, OutputExistsError, StoreError
from bigdeconv.geometry import ceil_div
from bigdeconv.storage.atomic import new_folder
from bigdeconv.storage.codecs import compressors
from bigdeconv.storage.locations import is_remote, open_store, reported, resolve_location
from bigdeconv.storage.ome_parsing import KINDS, Channel, one_line
from bigdeconv.storage.ome_quiet import silent_ome_zarr
from bigdeconv.storage.omezarr import ATTRIBUTES_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ome_zarr.format import Format

OmeVersion = Literal["0.5", "0.4"]

_COLORS = ("FFFFFF", "00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")


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

    @property
    def file_grid(self) -> tuple[int, ...]:
        """Number of files along each axis."""
        return tuple(ceil_div(n, f) for n, f in zip(self.shape, self.shard_shape or self.chunk_shape, strict=True))


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """An OME-Zarr image to be created; ``attributes`` are stored as the group attribute ``bigdeconv``."""

    axes: tuple[str, ...]
    units: tuple[str | None, ...]
    dtype: str
    levels: tuple[LevelSpec, ...]
    ome_version: OmeVersion
    name: str
    channels: tuple[Channel, ...]
    attributes: dict[str, Any]

    @property
    def key_prefix(self) -> str:
        """Beginning of the keys of chunks."""
        return "c/" if self.ome_version == "0.5" else ""


def create_output(path: Path, spec: OutputSpec) -> None:
    """Create an image with all levels and metadata but no voxels, or nothing at all.

    Parameters
    ----------
    path : Path
        Place of the image: a local path that does not exist.  Folders above it are made.
    spec : OutputSpec
        Arrays and metadata.  The arrays are named ``0``, ``1``, ... and filled with 0.

    Raises
    ------
    OutputExistsError
        If something is there.
    InvalidInputError
        If the specification contradicts itself or the OME-Zarr version.
    StoreError
        If it cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> level = LevelSpec((8, 8, 8), (4, 4, 4), None, scale=(0.3, 0.1, 0.1), translation=(0.0, 0.0, 0.0))
    >>> spec = OutputSpec(("z", "y", "x"), ("micrometer",) * 3, "uint16", (level,), "0.5", "beads", (), {})
    >>> create_output(Path(tempfile.mkdtemp()) / "beads.zarr", spec)
    """
    where = resolve_location(path)
    if is_remote(where):
        raise StoreError(f"cannot write to {where}: output goes to local paths only")
    attributes = checked_attributes(spec)
    with new_output(Path(where)) as folder:
        _make_arrays(folder, spec, attributes)


def checked_attributes(spec: OutputSpec) -> dict[str, Any]:
    """Return the group attributes of an image; nothing is written.

    Raises
    ------
    InvalidInputError
        If the specification contradicts itself or the OME-Zarr version.
    """
    _check_spec(spec)
    return {**_multiscales(spec), ATTRIBUTES_KEY: spec.attributes}


@contextmanager
def new_output(path: Path) -> Iterator[Path]:
    """Yield the path of a hidden folder to be made, which becomes the output when the block ends without an error.

    Parameters
    ----------
    path : Path
        Place of the output: a local path that does not exist.  Folders above it are made.

    Raises
    ------
    OutputExistsError
        If something is there, or has appeared there meanwhile.
    StoreError
        If it cannot be written.
    """
    _refuse_existing(path)
    with reported("create", str(path)):
        try:
            with new_folder(path) as folder:
                yield folder
        except OSError:
            _refuse_existing(path)
            raise


def in_memory_group(ome_version: OmeVersion) -> tuple[zarr.Group, Format]:
    """Return a group for the writers of ome-zarr, so that they refuse bad metadata before anything is on disk, and its format."""
    # It takes as long to import as zarr itself, and workers never need it.
    with silent_ome_zarr():
        from ome_zarr.format import FormatV04, FormatV05

    fmt = FormatV05() if ome_version == "0.5" else FormatV04()
    return zarr.create_group(MemoryStore(), zarr_format=3 if ome_version == "0.5" else 2), fmt


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise OutputExistsError(
            f"output: {str(path)!r} already exists; continue it with --resume, replace it with --overwrite, or give another path"
        )


def _check_spec(spec: OutputSpec) -> None:
    """Refuse specifications that zarr or ome-zarr would refuse later, or would accept although they are wrong."""
    n_axes = len(spec.axes)
    if spec.ome_version not in ("0.4", "0.5"):
        raise InvalidInputError(f"ome_version: got {spec.ome_version!r}; expected '0.5' or '0.4'")
    if not spec.levels or len(spec.units) != n_axes:
        raise InvalidInputError(
            f"got {len(spec.levels)} levels and {len(spec.units)} units for the axes {spec.axes}; expected one level or more "
            "and one unit per axis"
        )
    _check_axes(spec.axes)
    _check_json(spec.attributes)
    for number, level in enumerate(spec.levels):
        _check_level(spec, number, level)
        coarser = spec.levels[min(number + 1, len(spec.levels) - 1)]
        if any(a > b for a, b in zip(level.scale, coarser.scale, strict=False)):
            raise InvalidInputError(
                f"level {number + 1} has the scale {coarser.scale}, finer than {level.scale} of level {number}; expected levels "
                "from the finest to the coarsest"
            )


def _check_axes(axes: tuple[str, ...]) -> None:
    """Refuse axes that OME-Zarr does not know; ome-zarr itself checks little but the axes of time and channel."""
    n_space = sum(KINDS.get(name) == "space" for name in axes)
    if (
        len(set(axes)) < len(axes)
        or not 2 <= len(axes) <= 5
        or n_space < 2
        or any(KINDS.get(name) != "space" for name in axes[-n_space:])
    ):
        raise InvalidInputError(
            f"the output would be no valid OME-Zarr image: axes: got {axes}; expected two to five different ones that end with "
            "two or three of z, y, x"
        )


def _check_level(spec: OutputSpec, number: int, level: LevelSpec) -> None:
    shards = level.shard_shape
    fields = (level.shape, level.chunk_shape, level.scale, level.translation, shards or level.chunk_shape)
    if any(len(field) != len(spec.axes) for field in fields):
        raise InvalidInputError(
            f"level {number}: got {level}; expected one shape, chunk, scale and translation per axis"
        )
    if min(*level.shape, *level.chunk_shape) < 1:
        raise InvalidInputError(
            f"level {number}: got shape {level.shape} and chunks {level.chunk_shape}; expected positive extents"
        )
    if shards and spec.ome_version == "0.4":
        raise InvalidInputError(
            f"level {number}: got shards {shards}; OME-Zarr 0.4 has none, leave them out or write 0.5"
        )
    if shards and any(s < 1 or s % c for s, c in zip(shards, level.chunk_shape, strict=True)):
        raise InvalidInputError(
            f"level {number}: got shards {shards}; expected a multiple of the chunks {level.chunk_shape} on every axis"
        )


def _check_json(attributes: object) -> None:
    try:
        json.dumps(attributes, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"attributes: expected plain JSON values ({error})") from error


def _make_arrays(folder: Path, spec: OutputSpec, attributes: dict[str, Any]) -> None:
    """Write group and arrays into a folder that does not exist yet."""
    v3 = spec.ome_version == "0.5"
    folder.mkdir(parents=True)
    group = zarr.create_group(open_store(str(folder), writable=True), zarr_format=3 if v3 else 2, attributes=attributes)
    for number, level in enumerate(spec.levels):
        shards = level.shard_shape
        group.create_array(
            str(number),
            # zarr 3.3.0 refuses numpy integers
            shape=tuple(int(n) for n in level.shape),
            chunks=tuple(int(n) for n in level.chunk_shape),
            shards=tuple(int(n) for n in shards) if shards else None,
            dtype=spec.dtype,
            compressors=compressors(3 if v3 else 2),
            fill_value=0,
            dimension_names=spec.axes if v3 else None,
            chunk_key_encoding={"name": "default" if v3 else "v2", "separator": "/"},
        )


def _multiscales(spec: OutputSpec) -> dict[str, Any]:
    """Return the attributes that ome-zarr writes for an image."""
    with silent_ome_zarr():
        from ome_zarr.writer import write_multiscales_metadata
    axes = []
    for name, unit in zip(spec.axes, spec.units, strict=True):
        stored = {"name": name, "type": KINDS.get(name), "unit": unit}
        axes.append({key: value for key, value in stored.items() if value is not None})
    datasets = [
        {
            "path": str(number),
            "coordinateTransformations": [
                {"type": "scale", "scale": [float(s) for s in level.scale]},
                {"type": "translation", "translation": [float(t) for t in level.translation]},
            ],
        }
        for number, level in enumerate(spec.levels)
    ]
    rendering = {"omero": _omero(spec)} if spec.channels else {}
    group, fmt = in_memory_group(spec.ome_version)
    try:
        with silent_ome_zarr():
            write_multiscales_metadata(group, datasets, fmt=fmt, axes=axes, name=spec.name, metadata=rendering)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInputError(f"the output would be no valid OME-Zarr image: {one_line(error)}") from error
    attributes: dict[str, Any] = group.attrs.asdict()
    _check_json(attributes)
    return attributes


def _omero(spec: OutputSpec) -> dict[str, Any]:
    """Return rendering settings for every channel; viewers need a color and a window for each."""
    dtype = np.dtype(spec.dtype)
    top = float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0
    channels = []
    for number, channel in enumerate(spec.channels):
        # A single channel is shown in grey, several in colors that can be told apart.
        color = channel.color or _COLORS[number % len(_COLORS) if len(spec.channels) > 1 else 0]
        if not re.fullmatch("[0-9a-fA-F]{6}", color):
            raise InvalidInputError(
                f"channel {number} ({channel.label!r}): got color {color!r}; expected six hexadecimal digits"
            )
        window = zip(("min", "max", "start", "end"), channel.window or (0.0, top, 0.0, top), strict=True)
        channels.append(
            {
                "label": channel.label,
                "active": True,
                "color": color,
                "window": {key: float(value) for key, value in window},
            }
        )
    return {"channels": channels}
