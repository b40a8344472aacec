"""Several images of one job, a list, a glob or a plate: finding them, creating their outputs, and checking them."""

from __future__ import annotations

import glob
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import zarr

from bigdeconv.errors import BigdeconvError, InvalidInputError, StoreError
from bigdeconv.geometry import ceil_div
from bigdeconv.storage import validation
from bigdeconv.storage.locations import is_remote, open_store, resolve_location
from bigdeconv.storage.ome_parsing import open_group
from bigdeconv.storage.ome_quiet import silent_ome_zarr
from bigdeconv.storage.output import OutputSpec, checked_attributes, create_output, in_memory_group, new_output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bigdeconv.storage.output import OmeVersion

LIST_SUFFIX = ".txt"
MAX_PLATE_CHUNKS = 2**18
"""Chunks of a plate up to which ome-zarr is asked to open it whole: its reader holds one task per chunk, 0.4 kB each."""


@dataclass(frozen=True, slots=True)
class Collection:
    """The images of a job, and the names of their outputs."""

    locations: tuple[str, ...]
    names: tuple[str, ...] = ("",)
    """Path of each image's output below the job's; empty for a single image, whose output is the job's own."""
    plate: dict[str, Any] | None = None
    """Metadata of the plate that the images are fields of."""
    wells: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Metadata of the plate's wells, by their paths."""

    def outputs(self, output: Path) -> tuple[Path, ...]:
        """Return the place of each image's output."""
        return tuple(output / name if name else output for name in self.names)


def find_images(location: str) -> Collection:
    """Find the images of a job.

    Parameters
    ----------
    location : str
        An image; a glob of local images; a local ``.txt`` file with one image per line, relative to the file, in which
        ``#`` begins a comment; or a plate (0.4 or 0.5).

    Returns
    -------
    Collection
        At least one image.

    Raises
    ------
    InvalidInputError
        If there are none, two of one name, or a plate whose metadata cannot be used.
    StoreError
        If a list, plate or well cannot be read.
    """
    path = Path(location).expanduser()
    if not is_remote(location) and not path.exists() and any(c in location for c in "*?["):
        return _several(sorted(glob.glob(str(path))), f"no image matches {location!r}")  # noqa: PTH207  (absolute ones too)
    if not is_remote(location) and path.suffix == LIST_SUFFIX and path.is_file():
        return _several(_read_list(path), f"the list {location!r} names no image")
    where = resolve_location(location)
    ome = _ome_attributes(open_group(where))
    return _plate(where, ome["plate"]) if "plate" in ome else Collection((location,))


def create_outputs(path: Path, collection: Collection, specs: Sequence[OutputSpec]) -> None:
    """Create the outputs of a job without voxels, all or none of them.

    A plate becomes a plate of the same wells and fields, a list a folder.

    Parameters
    ----------
    path : Path
        Place of the job's output: a local path that does not exist.
    collection : Collection
        Images of the job.
    specs : sequence of OutputSpec
        Arrays and metadata of each image's output.

    Raises
    ------
    OutputExistsError, InvalidInputError, StoreError
        See `create_output`.
    """
    if collection.names == ("",):
        create_output(path, specs[0])
        return
    with new_output(path) as folder:
        if collection.plate is not None:
            _make_plate(folder, collection.plate, collection.wells, specs[0].ome_version)
        for output, spec in zip(collection.outputs(folder), specs, strict=True):
            create_output(output, spec)


def check_specs(specs: Sequence[OutputSpec]) -> None:
    """Refuse outputs that could not be created, before anything is removed or written; see `create_output`."""
    for spec in specs:
        checked_attributes(spec)


def validate(location: str | Path, *, deep: bool = False) -> list[str]:
    """Check an image, every image of a plate and the plate itself, or every image in a folder; see `validation.validate`."""
    try:
        collection, problems = _stored_collection(location)
    except (InvalidInputError, StoreError) as error:
        return [str(error)]
    for image, name in zip(collection.locations, collection.names, strict=True):
        found = validation.validate(image, deep=deep)
        problems += [f"{name}: {problem}" for problem in found] if name else found
    return problems


def is_group(folder: Path) -> bool:
    """Tell whether a folder is a zarr group."""
    return any((folder / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))


def _several(locations: Sequence[str], nothing: str) -> Collection:
    if not locations:
        raise InvalidInputError(f"input: {nothing}; give OME-Zarr images.")
    by_name: dict[str, str] = {}
    for location in locations:
        name = location.rstrip("/").rsplit("/", 1)[-1]
        if name in by_name:
            raise InvalidInputError(
                f"input: {by_name[name]!r} and {location!r} are both called {name!r}, and so would be their outputs; "
                "run them apart."
            )
        by_name[name] = location
    return Collection(tuple(by_name.values()), tuple(by_name))


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"input: the list {str(path)!r} cannot be read ({error}).") from error
    entries = [line.split("#", 1)[0].strip() for line in lines]
    return [entry if "://" in entry else str(path.parent / Path(entry).expanduser()) for entry in entries if entry]


def _ome_attributes(group: zarr.Group) -> dict[str, Any]:
    """Return the attributes of a group that belong to OME-Zarr, wherever its version keeps them."""
    attributes: dict[str, Any] = group.attrs.asdict()
    inner = attributes.get("ome")
    return inner if isinstance(inner, dict) else attributes


def _plate(where: str, plate: object) -> Collection:
    """Return the fields of a plate in the order of its metadata; entries of no use here, such as acquisitions, pass unchecked."""
    rows, columns = (_names(where, plate, key) for key in ("rows", "columns"))
    wells: dict[str, dict[str, Any]] = {}
    names: list[str] = []
    for path in _texts(where, plate, "wells", "path"):
        row, _, column = path.partition("/")
        if row not in rows or column not in columns:
            raise _bad_plate(where, f"wells: got the path {path!r}; expected a row, a slash and a column")
        well = _ome_attributes(open_group(f"{where}/{path}")).get("well")
        images = _texts(f"{where}/{path}", well, "images", "path")
        names += [f"{path}/{image}" for image in images]
        assert isinstance(well, dict)
        wells[path] = well
    fields = [name.split("/") for name in names]
    if not names or len(set(names)) < len(names) or any(len(f) != 3 or {"", ".", ".."} & set(f) for f in fields):
        raise InvalidInputError(
            f"input: the plate {where} must list one field or more, each once, and each right below its well."
        )
    assert isinstance(plate, dict)
    return Collection(tuple(f"{where}/{name}" for name in names), tuple(names), plate, wells)


def _names(where: str, plate: object, key: str) -> list[str]:
    """Return the names of a plate's rows or columns."""
    names = _texts(where, plate, key, "name")
    if len(set(names)) < len(names) or not all(name.isascii() and name.isalnum() for name in names):
        raise _bad_plate(where, f"{key}: got the names {names}; expected different ones of letters and digits")
    return names


def _texts(where: str, owner: object, key: str, inner: str) -> list[str]:
    """Return one text of each entry of a list in the metadata of a plate or well."""
    entries = owner.get(key) if isinstance(owner, dict) else None
    if not isinstance(entries, list):
        raise _bad_plate(where, f"{key}: got {entries!r}; expected a list")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get(inner), str):
            raise _bad_plate(where, f"{key}: got the entry {entry!r}; expected an object with a text {inner!r}")
    return [entry[inner] for entry in entries]


def _bad_plate(where: str, reason: str) -> InvalidInputError:
    return InvalidInputError(f"input: {where} is no valid plate: {reason}; correct its metadata.")


def _make_plate(folder: Path, plate: dict[str, Any], wells: dict[str, dict[str, Any]], ome_version: OmeVersion) -> None:
    """Write the groups of a plate, its rows and wells."""
    with silent_ome_zarr():
        from ome_zarr.writer import write_plate_metadata, write_well_metadata

    rows, columns = ([entry["name"] for entry in plate[key]] for key in ("rows", "columns"))
    group, fmt = in_memory_group(ome_version)
    write_plate_metadata(group, rows, columns, list(wells), fmt=fmt)
    stored = {well["path"]: well for well in plate["wells"]}
    numbered = [{**stored[well["path"]], **well} for well in _ome_attributes(group)["plate"]["wells"]]
    _save(folder, group, ome_version, "plate", {**plate, "wells": numbered})
    for row in dict.fromkeys(path.split("/")[0] for path in wells):
        _make_group(folder / row, ome_version, {})
    for path, well in wells.items():
        group, fmt = in_memory_group(ome_version)
        write_well_metadata(group, [image["path"] for image in well["images"]], fmt=fmt)
        _save(folder / path, group, ome_version, "well", well)


def _save(folder: Path, group: zarr.Group, ome_version: OmeVersion, key: str, stored: dict[str, Any]) -> None:
    """Create a group that ome-zarr has described in memory, with those entries of the input that it does not write."""
    attributes: dict[str, Any] = group.attrs.asdict()
    ome = attributes["ome"] if ome_version == "0.5" else attributes
    ome[key] = {**ome[key], **stored, "version": ome_version}
    _make_group(folder, ome_version, attributes)


def _make_group(folder: Path, ome_version: OmeVersion, attributes: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    zarr_format: Literal[2, 3] = 3 if ome_version == "0.5" else 2
    zarr.create_group(open_store(str(folder), writable=True), zarr_format=zarr_format, attributes=attributes)


def _stored_collection(location: str | Path) -> tuple[Collection, list[str]]:
    """Return the images at a location, and what is wrong with the plate that they make up."""
    where = resolve_location(location)
    if not is_remote(where) and (images := _images_in(Path(where))):
        return Collection(tuple(str(path) for path in images), tuple(path.name for path in images)), []
    collection = find_images(where)
    return collection, [] if collection.plate is None else _plate_problems(where, collection)


def _images_in(folder: Path) -> list[Path]:
    """Return the images in a folder that is no image itself."""
    if not folder.is_dir() or is_group(folder):
        return []
    return sorted(path for path in folder.iterdir() if is_group(path))


def _plate_problems(where: str, collection: Collection) -> list[str]:
    """Return what ome-zarr-models and ome-zarr find wrong with a plate, its images apart."""
    problems = []
    if (models := validation.models_package()) is not None:
        problems += [f"plate: {problem}" for problem in validation.model_problems(models, open_group(where), "HCS")]
    if not is_remote(where) and (shapes := _stitched_shapes(where, collection)):
        problems += validation.reader_problems(where, "plate", shapes)
    return problems


def _stitched_shapes(where: str, collection: Collection) -> list[tuple[int, ...]]:
    """Return the shapes of the image that ome-zarr makes of a plate: one field of each well, in rows and columns.

    It takes the field that the first well names first, and expects it in all wells with the same levels.  Where a valid plate has
    other fields, or more chunks than its reader can hold, there are no shapes.
    """
    plate, first = collection.plate or {}, min(collection.wells)
    images = collection.wells[first]["images"]
    if not images:
        return []
    try:
        fields = [validation.level_arrays(f"{where}/{well}/{images[0]['path']}") for well in collection.wells]
    except BigdeconvError:
        # A missing field is either none that the well names, or is reported with its image.
        return []
    levels = {tuple((path, array.shape) for path, array in field) for field in fields}
    chunks = sum(
        math.prod(ceil_div(n, c) for n, c in zip(array.shape, array.chunks, strict=True))
        for field in fields
        for _, array in field
    )
    if len(levels) > 1 or chunks > MAX_PLATE_CHUNKS:
        return []
    n_rows, n_columns = len(plate["rows"]), len(plate["columns"])
    return [(*shape[:-2], shape[-2] * n_rows, shape[-1] * n_columns) for _, shape in levels.pop()]
