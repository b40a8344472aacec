"""Checking an OME-Zarr image: what ome-zarr-models says, and what it does not look at."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from bigdeconv.errors import InvalidInputError, StoreError
from bigdeconv.geometry import ceil_div
from bigdeconv.storage.arrays import open_array, reported, resolve_location
from bigdeconv.storage.omezarr import StoredImage, check_array, compose, level_path, one_line, open_group, parse_image

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import zarr


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
        group = open_group(where)
        attributes = group.attrs.asdict()
        image = parse_image(where, attributes)
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


def _open_level(where: str, image: StoredImage, number: int) -> _Level:
    path = level_path(where, image, number)
    array = open_array(where, path)
    check_array(where, path, array, image.axes)
    scales, translations, has_scale = compose(where, image, number)
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
            return [f"ome-zarr-models cannot open the image: {one_line(error)}"]
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
