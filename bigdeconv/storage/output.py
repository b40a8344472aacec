"""Making an OME-Zarr image: all arrays and metadata before the first voxel, through the models of ome-zarr-models."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from bigdeconv.errors import InvalidInputError, OutputExistsError, StoreError
from bigdeconv.storage.arrays import is_remote, open_store, reported, resolve_location
from bigdeconv.storage.omezarr import KINDS, Channel, one_line

ATTRIBUTES_KEY = "bigdeconv"
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
                axis(name=name, type=KINDS.get(name), unit=unit)
                for name, unit in zip(spec.axes, spec.units, strict=True)
            ],
            datasets=tuple(
                models.Dataset.build(path=str(number), scale=level.scale, translation=level.translation)
                for number, level in enumerate(spec.levels)
            ),
        )
    except ValueError as error:
        raise InvalidInputError(f"the output would be no valid OME-Zarr image: {one_line(error)}") from error
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
            raise InvalidInputError(f"channel {channel} cannot be described: {one_line(error)}") from error
    return omero.Omero(channels=channels).model_dump(by_alias=True, exclude_none=True, mode="json")
