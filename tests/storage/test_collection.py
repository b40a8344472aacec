"""Plates: parsed tolerantly, created whole or not at all, with everything that the input's metadata say, and checked."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import zarr

from bigdeconv.errors import InvalidInputError, OutputExistsError, StoreError
from bigdeconv.storage import collection, validation
from bigdeconv.storage.collection import create_outputs, find_images
from tests.storage.images import EXTENT, edit, make, make_plate, make_spec

VERSIONS = ("0.5", "0.4")


@pytest.fixture(params=["models", "no models"])
def models(request, monkeypatch):
    """Tell whether ome-zarr-models is there; it is an optional dependency."""
    if request.param == "no models":
        monkeypatch.setitem(sys.modules, "ome_zarr_models", None)
    return request.param == "models"


def attributes(path):
    stored = zarr.open_group(path, mode="r").attrs.asdict()
    return stored.get("ome", stored)


def test_a_plate_has_its_fields_in_order_and_its_metadata(tmp_path, models):
    path = make_plate(tmp_path / "in.zarr", names=("B/2/1", "B/2/0", "A/1/0"))
    found = find_images(str(path))
    assert found.names == ("B/2/1", "B/2/0", "A/1/0")
    assert found.locations == tuple(f"{path}/{name}" for name in found.names)
    assert found.plate == attributes(path)["plate"]
    assert found.wells == {well: attributes(path / well)["well"] for well in ("B/2", "A/1")}


@pytest.mark.parametrize("written", VERSIONS)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_plate_is_written_with_every_entry_of_the_input(tmp_path, version, written, models):
    source = make_plate(tmp_path / "in.zarr", version)
    found = find_images(str(source))
    create_outputs(tmp_path / "out.zarr", found, [make_spec("zyx", (written, False))] * 3)
    stored, made = attributes(source)["plate"], attributes(tmp_path / "out.zarr")["plate"]
    assert made == stored | {"version": written}
    assert made["robot"] == {"arm": 1}
    assert made["wells"][1] == {"path": "B/2", "rowIndex": 1, "columnIndex": 1, "drug": "DMSO"}
    for well in ("A/1", "B/2"):
        stored, made = attributes(source / well)["well"], attributes(tmp_path / "out.zarr" / well)["well"]
        assert made == stored | {"version": written}
        assert made["operator"] == "K."
    assert attributes(tmp_path / "out.zarr/A") == {}
    assert collection.validate(source, deep=True) == []
    assert collection.validate(tmp_path / "out.zarr", deep=True) == []


def test_wrong_indices_of_wells_are_corrected_and_entries_that_decide_nothing_kept(tmp_path):
    source = make_plate(tmp_path / "in.zarr")
    edit(source, lambda ome: ome["plate"]["wells"][1].update(rowIndex=0, columnIndex=7))
    edit(source, lambda ome: ome["plate"].update(acquisitions=[{"id": "3"}]))
    edit(source / "A/1", lambda ome: ome["well"]["images"][0].update(acquisition=None))
    create_outputs(tmp_path / "out.zarr", find_images(str(source)), [make_spec("zyx")] * 3)
    assert attributes(tmp_path / "out.zarr")["plate"]["wells"][1] == {
        "path": "B/2",
        "rowIndex": 1,
        "columnIndex": 1,
        "drug": "DMSO",
    }
    assert attributes(tmp_path / "out.zarr")["plate"]["acquisitions"] == [{"id": "3"}]
    assert attributes(tmp_path / "out.zarr/A/1")["well"]["images"][0] == {"path": "0", "acquisition": None}


def _plate_entry(key, value):
    return "", lambda ome: ome["plate"].update({key: value})


def _images(value):
    return "A/1", lambda ome: ome["well"].update(images=value)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (("", lambda ome: ome.update(plate=[1])), "rows: got None; expected a list"),
        (("", lambda ome: ome["plate"].pop("rows")), "rows: got None; expected a list"),
        (_plate_entry("columns", ["1"]), "columns: got the entry '1'; expected an object with a text 'name'"),
        (_plate_entry("rows", [{"name": "A"}] * 2), r"rows: got the names \['A', 'A'\]; expected different ones"),
        (_plate_entry("rows", [{"name": "A-"}, {"name": "B"}]), "expected different ones of letters and digits"),
        (_plate_entry("wells", {"A/1": {}}), "wells: got .*; expected a list"),
        (_plate_entry("wells", [{"path": "A"}]), "wells: got the path 'A'; expected a row, a slash and a column"),
        (_plate_entry("wells", [{"path": "A/1/0"}]), "wells: got the path 'A/1/0'; expected a row"),
        (_plate_entry("wells", [{"path": "../1"}]), "wells: got the path '../1'; expected a row"),
        (("A/1", lambda ome: ome.pop("well")), r"A/1 is no valid plate: images: got None; expected a list"),
        (_images([{"acquisition": 3}]), "images: got the entry .*; expected an object with a text 'path'"),
    ],
)
def test_a_plate_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, fault, message, models):
    path = make_plate(tmp_path / "in.zarr")
    edit(path / fault[0], fault[1])
    with pytest.raises(
        InvalidInputError, match=rf"^input: .*is no valid plate: {message}|^input: .*{message}"
    ) as caught:
        find_images(str(path))
    assert "\n" not in str(caught.value)
    assert collection.validate(path) == [str(caught.value)]


@pytest.mark.parametrize("field", ["..", ".", "", "a/b", "0"])
def test_fields_lie_right_below_their_well_and_appear_once(tmp_path, field):
    path = make_plate(tmp_path / "in.zarr")
    edit(path / "A/1", lambda ome: ome["well"]["images"][1].update(path=field))
    with pytest.raises(
        InvalidInputError, match="must list one field or more, each once, and each right below its well"
    ):
        find_images(str(path))


def test_a_plate_without_wells_is_refused(tmp_path):
    path = make_plate(tmp_path / "in.zarr")
    edit(path, lambda ome: ome["plate"].update(wells=[]))
    with pytest.raises(InvalidInputError, match="must list one field or more"):
        find_images(str(path))


# --- creation ---------------------------------------------------------------------------------------------------------


def test_an_existing_output_is_refused_and_left_alone(tmp_path):
    found = find_images(str(make_plate(tmp_path / "in.zarr")))
    path = tmp_path / "out.zarr"
    path.mkdir()
    with pytest.raises(OutputExistsError, match=r"already exists; .*--resume.*--overwrite"):
        create_outputs(path, found, [make_spec("zyx")] * 3)
    assert {p.name for p in tmp_path.iterdir()} == {"in.zarr", "out.zarr"}
    assert list(path.iterdir()) == []


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    found, path, rename = find_images(str(make_plate(tmp_path / "in.zarr"))), tmp_path / "out.zarr", Path.rename

    def late(self, target):
        if target == path:
            path.mkdir()
            (path / "theirs").touch()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(OutputExistsError, match="already exists"):
        create_outputs(path, found, [make_spec("zyx")] * 3)
    assert {p.name for p in tmp_path.iterdir()} == {"in.zarr", "out.zarr"}
    assert [p.name for p in path.iterdir()] == ["theirs"]


def test_failed_creation_leaves_nothing(tmp_path, monkeypatch):
    found, calls, original = find_images(str(make_plate(tmp_path / "in.zarr"))), [], zarr.Group.create_array

    def fail_at_fourth(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(zarr.Group, "create_array", fail_at_fourth)
    with pytest.raises(StoreError, match=r"cannot create .*No space left"):
        create_outputs(tmp_path / "out.zarr", found, [make_spec("zyx")] * 3)
    assert [p.name for p in tmp_path.iterdir()] == ["in.zarr"]


# --- validation -------------------------------------------------------------------------------------------------------


def test_ome_zarr_is_asked_for_all_wells_side_by_side(tmp_path, monkeypatch, models):
    asked = []
    original = validation.reader_problems
    monkeypatch.setattr(validation, "reader_problems", lambda *a: asked.append(a) or original(*a))
    path = make_plate(tmp_path / "in.zarr")
    assert collection.validate(path) == []
    assert asked[0] == (str(path), "plate", [(11, 2 * 13, 3 * 10), (6, 2 * 7, 3 * 5)])
    assert [kind for _, kind, _ in asked[1:]] == ["image"] * 3


@pytest.mark.parametrize(
    ("names", "extents"),
    [
        (("A/1/0", "B/2/0"), (EXTENT, EXTENT | {"z": 7})),
        (("A/1/0", "B/2/1"), (EXTENT, EXTENT)),
    ],
    ids=["other shapes", "other fields"],
)
def test_a_valid_plate_that_ome_zarr_cannot_stitch_is_valid(tmp_path, names, extents, models):
    assert collection.validate(make_plate(tmp_path / "in.zarr", names=names, extents=extents)) == []


def test_a_plate_too_large_for_ome_zarr_is_checked_image_by_image(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(collection, "MAX_PLATE_CHUNKS", 2 * (2 * 2 * 2 + 1) - 1)
    monkeypatch.setattr(validation, "reader_problems", lambda *a: asked.append(a[1]) or [])
    assert collection.validate(make_plate(tmp_path / "in.zarr")) == []
    assert asked == ["image"] * 3


def test_what_is_wrong_with_plate_and_images_is_said_of_each(tmp_path, models):
    path = make_plate(tmp_path / "in.zarr")
    edit(path / "B/2", lambda ome: ome["well"]["images"][0].update(acquisition=4))
    shutil.rmtree(path / "A/1/1/1")
    problems = collection.validate(path)
    assert any(p.startswith("A/1/1: ") and "cannot open array '1'" in p for p in problems)
    assert all("\n" not in p for p in problems)
    assert any(p.startswith("plate: ") for p in problems) == models


def test_a_folder_is_checked_image_by_image(tmp_path, models):
    for name in ("a.zarr", "b.zarr"):
        make(tmp_path / "out" / name, "zyx", fill=False)
    assert collection.validate(tmp_path / "out") == []
    metadata = tmp_path / "out/b.zarr/1/zarr.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"data_type": "int16"}))
    assert collection.validate(tmp_path / "out") == [
        "b.zarr: array '1' has dtype int16, the finest level uint16",
    ]
