"""Several images of one job: a list, a glob or a plate, found, made and checked."""

from __future__ import annotations

import glob
import shutil
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import zarr

from bigdeconv.errors import InvalidInputError, StoreError
from bigdeconv.storage import validation
from bigdeconv.storage.arrays import is_remote, open_store, reported, resolve_location
from bigdeconv.storage.omezarr import one_line, open_group
from bigdeconv.storage.output import OutputSpec, create_output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LIST_SUFFIX = ".txt"


@dataclass(frozen=True, slots=True)
class Collection:
    """The images of a job, and what their outputs will be called."""

    locations: tuple[str, ...]
    names: tuple[str, ...] = ("",)
    """Path of each image's output below the job's; empty for a single image, whose output is the job's own."""
    plate: dict[str, Any] | None = None
    """Metadata of the plate that the images are fields of."""
    wells: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Metadata of the plate's wells, by their paths."""

    def outputs(self, output: Path) -> tuple[Path, ...]:
        """Return where the output of each image lies."""
        return tuple(output / name if name else output for name in self.names)


def find_images(location: str) -> Collection:
    """Find the images of a job.

    Parameters
    ----------
    location
        An image; a glob of local images; a local ``.txt`` file with one image per line, relative to the file, in which
        ``#`` begins a comment; or a plate (0.4 or 0.5).

    Raises
    ------
    InvalidInputError
        If there are none, two of one name, or a plate's metadata name none.
    StoreError
        If a list, plate or well cannot be read.
    """
    path = Path(location).expanduser()
    if not is_remote(location) and not path.exists() and any(c in location for c in "*?["):
        return _several(sorted(glob.glob(str(path))), f"no image matches {location!r}")  # noqa: PTH207  (absolute ones too)
    if not is_remote(location) and path.suffix == LIST_SUFFIX and path.is_file():
        return _several(_read_list(path), f"the list {location!r} names no image")
    where = resolve_location(location)
    ome = _ome_attributes(where)
    return _plate(where, ome["plate"]) if "plate" in ome else Collection((location,))


def create_outputs(path: Path, collection: Collection, specs: Sequence[OutputSpec]) -> None:
    """Create the outputs of a job without voxels, all or none of them; see `create_output`.

    A plate becomes a plate of the same wells and fields, a list a folder.
    """
    if collection.names == ("",):
        create_output(path, specs[0])
        return
    hidden = path.parent / f".{path.name}.{uuid4().hex[:12]}.tmp"
    try:
        with reported("create", str(path)):
            if collection.plate is not None:
                _make_plate(hidden, collection, specs[0].ome_version)
            for output, spec in zip(collection.outputs(hidden), specs, strict=True):
                create_output(output, spec)
            hidden.rename(path)
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(hidden)


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


def _ome_attributes(where: str) -> Mapping[str, Any]:
    attributes = open_group(where).attrs.asdict()
    inner = attributes.get("ome")
    return inner if isinstance(inner, dict) else attributes


def _plate(where: str, plate: object) -> Collection:
    """Return the fields of a plate in the order of its metadata."""
    from ome_zarr_models.common.plate import PlateBase
    from ome_zarr_models.common.well_types import WellMeta

    try:
        paths = [well.path for well in PlateBase.model_validate(plate).wells]
        wells = {path: _ome_attributes(f"{where}/{path}").get("well") for path in paths}
        fields = [(p, image.path) for p, w in wells.items() for image in WellMeta.model_validate(w).images]
    except ValueError as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"input: {where} is no valid plate: {one_line(error)}") from error
    names = tuple(f"{well}/{image}" for well, image in fields)
    if not names or len(set(names)) < len(names) or any({"", ".", ".."} & set(name.split("/")) for name in names):
        raise InvalidInputError(
            f"input: the plate {where} must list one field or more, each once, and each below itself."
        )
    assert isinstance(plate, dict)
    return Collection(tuple(f"{where}/{n}" for n in names), names, plate, {p: dict(w or {}) for p, w in wells.items()})


def _make_plate(folder: Path, collection: Collection, ome_version: Literal["0.5", "0.4"]) -> None:
    """Write the groups of a plate, its rows and wells."""
    own = {"version": ome_version}
    _make_group(folder, ome_version, {"plate": {**(collection.plate or {}), **own}})
    for row in dict.fromkeys(path.split("/")[0] for path in collection.wells):
        _make_group(folder / row, ome_version, {})
    for path, well in collection.wells.items():
        _make_group(folder / path, ome_version, {"well": {**well, **own}})


def _make_group(folder: Path, ome_version: str, ome: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    nested = {"ome": {"version": ome_version, **ome}} if ome and ome_version == "0.5" else ome
    zarr_format: Literal[2, 3] = 3 if ome_version == "0.5" else 2
    zarr.create_group(open_store(str(folder), writable=True), zarr_format=zarr_format, attributes=nested)


def _stored_collection(location: str | Path) -> tuple[Collection, list[str]]:
    """Return the images at a location, and what is wrong with the plate that they make up."""
    where = resolve_location(location)
    if not is_remote(where) and (images := _images_in(Path(where))):
        return Collection(tuple(str(path) for path in images), tuple(path.name for path in images)), []
    collection = find_images(where)
    return collection, _plate_problems(where) if collection.plate is not None else []


def _images_in(folder: Path) -> list[Path]:
    """Return the images in a folder that is no image itself."""
    if not folder.is_dir() or is_group(folder):
        return []
    return sorted(path for path in folder.iterdir() if is_group(path))


def is_group(folder: Path) -> bool:
    """Tell whether a folder is a zarr group."""
    return any((folder / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))


def _plate_problems(where: str) -> list[str]:
    """Return what ome-zarr-models says of the plate."""
    from ome_zarr_models import v04, v05

    group = open_group(where)
    model = v05.HCS if "ome" in group.attrs else v04.HCS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.from_zarr(group)
        except Exception as error:
            # It meets whatever is stored; that it stumbles is the finding.
            return [f"plate: {one_line(error)}"]
    return [f"plate: {w.message}" for w in caught if w.category.__name__ == "ValidationWarning"]
