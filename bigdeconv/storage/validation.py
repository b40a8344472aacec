"""Checks of a stored OME-Zarr image: by ome-zarr-models, by ome-zarr, and of its levels against each other."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from bigdeconv.errors import InvalidInputError, StoreError
from bigdeconv.geometry import ceil_div
from bigdeconv.storage.locations import is_remote, open_array, reported, resolve_location
from bigdeconv.storage.ome_parsing import (
    StoredImage,
    check_array,
    compose,
    level_path,
    one_line,
    open_group,
    parse_image,
)
from bigdeconv.storage.ome_quiet import silent_ome_zarr

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import ModuleType

    import zarr

VERSIONS = ("0.5", "0.4")
"""Versions of OME-Zarr that an image can be valid in."""


def validate(location: str | Path, *, deep: bool = False) -> list[str]:
    """Check an image against the specification and its levels against each other.

    Level n must be coarser than level 0 by whole factors f, with ``shape_0 / f`` voxels (rounded either way) and the
    translation ``t_0 + (s_n - s_0) / 2`` that a mean over f voxels has.

    Parameters
    ----------
    location : str or Path
        The image group; see `describe`.
    deep : bool
        Decode every chunk, a shard at a time, and so compare its checksum.  That reads the whole image.

    Returns
    -------
    list of str
        One sentence per problem, empty when valid.
    """
    try:
        where = resolve_location(location)
        group = open_group(where)
        image = parse_image(where, group.attrs.asdict())
    except (InvalidInputError, StoreError) as error:
        return [str(error)]
    models = models_package()
    problems = [] if models is None else model_problems(models, group, "Image")
    levels: list[_Level] = []
    for number in range(len(image.datasets)):
        try:
            levels.append(_open_level(where, image, number))
        except (InvalidInputError, StoreError) as error:
            problems.append(str(error))
    if models is None:
        problems.extend(_metadata_problems(image, levels))
    for level in levels[1:]:
        problems.extend(_level_problems(levels[0], level, image.axes))
    if len(levels) == len(image.datasets) and not is_remote(where):
        # Over a network it would request twice as many files as all other checks together.
        problems.extend(reader_problems(where, "image", [level.array.shape for level in levels]))
    if deep:
        for level in levels:
            problems.extend(_chunk_problems(where, level))
    return problems


def models_package() -> ModuleType | None:
    """Return the package ome-zarr-models, or None where it is not installed."""
    try:
        import ome_zarr_models
    except ImportError:
        return None
    return ome_zarr_models


def model_problems(models: ModuleType, group: zarr.Group, kind: Literal["Image", "HCS"]) -> list[str]:
    """Return the findings of ome-zarr-models.

    Parameters
    ----------
    models : module
        See `models_package`.
    group : zarr.Group
        An image or a plate.
    kind : {"Image", "HCS"}
        Name of its model.

    Returns
    -------
    list of str
        One sentence per problem, empty when valid.
    """
    from pydantic import ValidationError

    model = getattr(models.v05 if "ome" in group.attrs else models.v04, kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.from_zarr(group)
        except ValidationError as error:
            return [f"{'.'.join(map(str, e['loc'])) or 'metadata'}: {one_line(e['msg'])}" for e in error.errors()]
        except Exception as error:
            # Whatever it raises is a finding about the stored data.
            return [f"ome-zarr-models cannot open it: {one_line(error)}"]
    return [one_line(w.message) for w in caught if w.category.__name__ == "ValidationWarning"]


def reader_problems(where: str, kind: Literal["image", "plate"], shapes: Sequence[tuple[int, ...]]) -> list[str]:
    """Return what is wrong with a local image or plate when ome-zarr opens it.

    Parameters
    ----------
    where : str
        The group, a resolved local path.
    kind : {"image", "plate"}
        Word for it in the sentences.
    shapes : sequence of tuple of int
        Shapes of its levels, finest first; for a plate, those of all its wells side by side.

    Returns
    -------
    list of str
        One sentence per problem, empty when ome-zarr opens it with levels of these shapes.
    """
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    with silent_ome_zarr():
        try:
            group = parse_url(where)
            nodes = [] if group is None else list(Reader(group)())
        except Exception as error:
            # Whatever it raises is a finding about the stored data.
            return [f"ome-zarr cannot open the {kind}: {one_line(error)}"]
    # Labels, and the image that a label belongs to, are nodes as well.
    found = [level.shape for node in nodes if node.zarr is group for level in node.data]
    if not found:
        return [f"ome-zarr opens the {kind}, but finds no levels in it"]
    if found != list(shapes):
        return [f"ome-zarr opens the {kind} with levels of shapes {found}; expected {list(shapes)}"]
    return []


def level_arrays(location: str | Path) -> list[tuple[str, zarr.Array[Any]]]:
    """Open all levels of an image; see `describe`.

    Returns
    -------
    list of tuple
        Path below the image and array, from the finest level to the coarsest.

    Raises
    ------
    InvalidInputError, StoreError
        If the image or one of its levels cannot be opened.
    """
    where = resolve_location(location)
    image = parse_image(where, open_group(where).attrs.asdict())
    paths = [level_path(where, image, number) for number in range(len(image.datasets))]
    return [(path, open_array(where, path)) for path in paths]


@dataclass(frozen=True, slots=True)
class _Level:
    path: str
    array: zarr.Array[Any]
    scales: tuple[float, ...]
    translations: tuple[float, ...]


def _open_level(where: str, image: StoredImage, number: int) -> _Level:
    path = level_path(where, image, number)
    array = open_array(where, path)
    check_array(where, path, array, image.axes)
    scales, translations, has_scale = compose(where, image, number)
    if not (has_scale and all(math.isfinite(s) and s > 0 for s in scales)):
        raise InvalidInputError(f"level {number} of {where} has the scales {scales}; expected positive numbers")
    return _Level(path, array, scales, translations)


def _metadata_problems(image: StoredImage, levels: Sequence[_Level]) -> Iterator[str]:
    """Check the version and the names of dimensions, as ome-zarr-models does where it is installed."""
    if image.version not in VERSIONS:
        yield f"version: got {image.version!r}; expected one of {VERSIONS}"
    for level in levels:
        names = getattr(level.array.metadata, "dimension_names", None)
        # An axis of time is called t here, whatever its stored name.
        if names is not None and any(n != a for n, a in zip(names, image.axes, strict=True) if a != "t"):
            yield f"array {level.path!r} has the dimension names {names}; expected the axes {image.axes}"


def _level_problems(first: _Level, level: _Level, axes: tuple[str, ...]) -> list[str]:
    """Compare a level with the finest one, axis by axis."""
    name, problems = f"array {level.path!r}", []
    if level.array.dtype != first.array.dtype:
        problems.append(f"{name} has dtype {level.array.dtype}, the finest level {first.array.dtype}")
    for i, axis in enumerate(axes):
        ratio = level.scales[i] / first.scales[i]
        factor = round(ratio)
        if factor < 1 or abs(ratio - factor) > 1e-6 * ratio:
            problems.append(f"{name} is coarser on axis {axis} by {ratio:.6g}; expected a whole factor")
            continue
        expected = first.translations[i] + (level.scales[i] - first.scales[i]) / 2
        if not abs(level.translations[i] - expected) <= 1e-6 * level.scales[i]:
            problems.append(
                f"{name} has translation {level.translations[i]:.9g} on axis {axis}; expected {expected:.9g}"
            )
        full, size = first.array.shape[i], level.array.shape[i]
        if not max(full // factor, 1) <= size <= ceil_div(full, factor):
            problems.append(f"{name} has {size} voxels on axis {axis}; expected {full} / {factor}")
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
