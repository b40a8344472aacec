"""Validation: every defect is named in one sentence, with and without ome-zarr-models."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest
import zarr

from bigdeconv.errors import StoreError
from bigdeconv.geometry import Box
from bigdeconv.storage import validation
from bigdeconv.storage.arrays import read_box
from bigdeconv.storage.omezarr import describe
from bigdeconv.storage.validation import validate
from tests.storage.images import edit, flip_bit, make, with_entry


@pytest.fixture(params=["models", "no models"])
def models(request, monkeypatch):
    """Tell whether ome-zarr-models is there; it is an optional dependency."""
    if request.param == "no models":
        monkeypatch.setattr(validation, "models_package", lambda: None)
    return request.param == "models"


@pytest.mark.parametrize("sharded", [True, False])
@pytest.mark.parametrize("where", [0.0, 0.13, 0.5, 0.77, 0.999])
def test_one_flipped_bit_is_noticed(tmp_path, sharded, where):
    path = tmp_path / "out.zarr"
    make(path, "zyx", ("0.5", sharded), n_levels=1)
    info = describe(path)
    file = path / "0/c/0/0/0"
    flip_bit(file, int(where * file.stat().st_size))
    with pytest.raises(StoreError, match="cannot read array '0' of "):
        read_box(info, Box((0, 0, 0), (8, 8, 8)))
    assert validate(path) == []
    [problem] = validate(path, deep=True)
    assert "cannot decode array '0'" in problem
    assert "(at (0, 0, 0))" in problem


def test_a_truncated_shard_is_noticed(tmp_path):
    path = tmp_path / "out.zarr"
    make(path, "zyx")
    file = path / "1/c/0/0/0"
    file.write_bytes(file.read_bytes()[:-100])
    [problem] = validate(path, deep=True)
    assert "cannot decode array '1'" in problem


def _transform(scale, translation):
    return [{"type": "scale", "scale": scale}, {"type": "translation", "translation": translation}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            with_entry("coordinateTransformations", _transform([1.01, 0.5, 0.4], [3.25, -0.875, 0.1]), dataset=1),
            "axis z by 2.02",
        ),
        (
            with_entry("coordinateTransformations", _transform([1.0, 0.5, 0.4], [3, -0.875, 0.1]), dataset=1),
            "expected 3.25",
        ),
        (
            with_entry("coordinateTransformations", _transform([1.5, 0.5, 0.4], [3.5, -0.875, 0.1]), dataset=1),
            "expected 11 / 3",
        ),
        (with_entry("path", "9", dataset=1), "cannot open array '9'|does not exist"),
        (lambda ome: ome.update(version="0.9"), "version"),
        (lambda ome: ome["multiscales"][0]["axes"].reverse(), "dimension"),
        (with_entry("coordinateTransformations", [], dataset=1), "Length of transforms|expected positive numbers"),
    ],
)
def test_validation_names_the_problem(tmp_path, models, change, message):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False)
    edit(path, change)
    problems = validate(path)
    assert any(re.search(message, p) for p in problems), problems
    assert all("\n" not in p for p in problems)


def test_validation_compares_dtypes_and_existence(tmp_path, models):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False)
    shutil.rmtree(path / "1")
    assert any("cannot open array '1'" in p for p in validate(path))
    zarr.create_array(path / "1", shape=(6, 7, 5), chunks=(4, 4, 4), dtype="float32", dimension_names=("z", "y", "x"))
    assert validate(path) == ["array '1' has dtype float32, the finest level uint16"]


def test_validation_of_nothing(tmp_path, models):
    [problem] = validate(tmp_path / "nowhere.zarr")
    assert "does not exist" in problem
    [problem] = validate("ftp://host/x")
    assert "cannot open ftp://" in problem


def test_no_voxel_size_is_needed_to_validate_only_a_scale(tmp_path, models):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False, units=(None,) * 3)
    assert validate(path) == []


@pytest.mark.parametrize("axes", ["zyx", "yx", "tczyx", "tvzyx"])
def test_an_output_is_valid_with_either(tmp_path, layout, models, axes):
    path = tmp_path / "out.zarr"
    make(path, axes, layout, n_levels=3, fill=False)
    assert validate(path, deep=True) == []


def test_a_time_axis_may_have_any_name(tmp_path, models):
    path = tmp_path / "out.zarr"
    make(path, "tzyx", fill=False)
    for file in path.rglob("zarr.json"):
        metadata = json.loads(file.read_text())
        if "dimension_names" in metadata:
            metadata["dimension_names"][0] = "time"
            file.write_text(json.dumps(metadata))
    edit(path, lambda ome: ome["multiscales"][0]["axes"][0].update(name="time"))
    assert validate(path) == []


def test_ome_zarr_models_is_optional(monkeypatch):
    assert validation.models_package() is sys.modules["ome_zarr_models"]
    monkeypatch.setitem(sys.modules, "ome_zarr_models", None)
    assert validation.models_package() is None


# --- the second opinion: ome-zarr -------------------------------------------------------------------------------------


def add_labels(path, *, broken=False):
    """Add a label image that names the image as its source; a broken one lacks its level."""
    from ome_zarr.format import FormatV05
    from ome_zarr.writer import add_metadata, write_multiscales_metadata

    version = {"version": "0.5"}
    zarr.create_group(path / "labels", attributes={"ome": {**version, "labels": ["cells"]}})
    group = zarr.create_group(path / "labels/cells")
    if not broken:
        group.create_array("0", shape=(11, 13, 10), chunks=(11, 13, 10), dtype="uint8", dimension_names=("z", "y", "x"))
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    transforms = [{"type": "scale", "scale": [0.5, 0.25, 0.2]}]
    datasets = [{"path": "0", "coordinateTransformations": transforms}]
    write_multiscales_metadata(group, datasets, fmt=FormatV05(), axes=axes, name="cells")
    add_metadata(group, {"image-label": {**version, "source": {"image": "../../"}}}, fmt=FormatV05())


def test_ome_zarr_is_asked_about_the_image_alone_where_there_are_labels(tmp_path, models):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False, n_levels=1)
    add_labels(path)
    assert validate(path) == []
    assert validate(path / "labels/cells") == []


def test_an_image_that_ome_zarr_cannot_open_is_reported(tmp_path, models):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False)
    add_labels(path, broken=True)
    [problem] = [p for p in validate(path) if p.startswith("ome-zarr cannot open the image: ")]
    assert "labels/cells" in problem
    assert "\n" not in problem


def test_levels_of_other_shapes_are_reported(tmp_path):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False)
    assert validation.reader_problems(str(path), "image", [(11, 13, 10), (6, 7, 5)]) == []
    [problem] = validation.reader_problems(str(path), "image", [(11, 13, 10), (6, 7, 6)])
    assert problem == (
        "ome-zarr opens the image with levels of shapes [(11, 13, 10), (6, 7, 5)]; expected [(11, 13, 10), (6, 7, 6)]"
    )
    zarr.create_group(tmp_path / "empty.zarr")
    for place in ("empty.zarr", "nowhere.zarr"):
        [problem] = validation.reader_problems(str(tmp_path / place), "plate", [(1, 1)])
        assert problem == "ome-zarr opens the plate, but finds no levels in it"


def test_ome_zarr_is_silent_while_it_is_asked(tmp_path, layout, caplog, recwarn, capfd):
    """Its reader logs a warning for each image of 0.4, and errors for rendering settings that it cannot read."""
    path = tmp_path / "out.zarr"
    make(path, "czyx", layout, fill=False)
    if layout[0] == "0.5":
        edit(path, lambda ome: ome.update(omero={"channels": [{"color": "nope"}]}))
    validate(path)
    assert (caplog.records, list(recwarn), capfd.readouterr()) == ([], [], ("", ""))
