"""Creation of images: all or nothing, in the right codecs, and refused where the specification contradicts itself."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from bigdeconv.errors import InvalidInputError, OutputExistsError, StoreError
from bigdeconv.storage.arrays import sweep_partial, write_region
from bigdeconv.storage.ome_parsing import Channel
from bigdeconv.storage.output import create_output
from bigdeconv.storage.validation import validate
from tests.storage.images import make, make_spec


def test_chunks_are_blosc_zstd_with_a_checksum(tmp_path):
    make(tmp_path / "s.zarr", "zyx", ("0.5", True), fill=False)
    make(tmp_path / "u.zarr", "zyx", ("0.5", False), fill=False)
    make(tmp_path / "v2.zarr", "zyx", ("0.4", False), fill=False)
    [sharding] = json.loads((tmp_path / "s.zarr/0/zarr.json").read_text())["codecs"]
    for codecs in (
        sharding["configuration"]["codecs"],
        json.loads((tmp_path / "u.zarr/0/zarr.json").read_text())["codecs"],
    ):
        assert [c["name"] for c in codecs] == ["bytes", "blosc", "crc32c"]
        assert codecs[1]["configuration"]["cname"] == "zstd"
        assert codecs[1]["configuration"]["typesize"] == 2
    metadata = json.loads((tmp_path / "v2.zarr/0/.zarray").read_text())
    assert (metadata["compressor"]["id"], metadata["compressor"]["cname"]) == ("blosc", "zstd")
    assert metadata["dimension_separator"] == "/"
    assert not list(tmp_path.rglob(".zmetadata"))
    for name in ("s.zarr", "u.zarr"):
        group = json.loads((tmp_path / name / "zarr.json").read_text())
        assert "consolidated_metadata" not in group
        assert json.loads((tmp_path / name / "0/zarr.json").read_text())["dimension_names"] == ["z", "y", "x"]


def test_creation_refuses_what_is_there_and_leaves_it_alone(tmp_path, layout):
    path = tmp_path / "out.zarr"
    for existing in ("folder", "file", "dangling link"):
        if existing == "folder":
            path.mkdir()
        elif existing == "file":
            path.write_text("mine")
        else:
            path.symlink_to(tmp_path / "nowhere")
        with pytest.raises(OutputExistsError, match=r"already exists; .*--resume.*--overwrite"):
            create_output(path, make_spec("zyx", layout))
        assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]
        path.rmdir() if existing == "folder" else path.unlink()


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "out.zarr"
    rename = Path.rename

    def late(self, target):
        Path(target).mkdir()
        (Path(target) / "theirs").touch()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(OutputExistsError, match="already exists"):
        create_output(path, make_spec("zyx"))
    assert [p.name for p in tmp_path.rglob("*")] == ["out.zarr", "theirs"]


def test_failed_creation_leaves_nothing(tmp_path, monkeypatch):
    original, calls = zarr.Group.create_array, []

    def fail_at_second(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(zarr.Group, "create_array", fail_at_second)
    with pytest.raises(StoreError, match=r"cannot create .*No space left"):
        create_output(tmp_path / "out.zarr", make_spec("zyx"))
    assert list(tmp_path.iterdir()) == []


def test_creation_is_local_only():
    with pytest.raises(StoreError, match="output goes to local paths only"):
        create_output("s3://bucket/out.zarr", make_spec("zyx"))


def _level(**changes):
    return {"levels": (replace(make_spec("zyx").levels[0], **changes),)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ome_version": "0.6"}, "ome_version: got '0.6'; expected '0.5' or '0.4'"),
        ({"ome_version": "0.4"}, r"level 0: got shards .*; OME-Zarr 0\.4 has none"),
        ({"levels": ()}, "got 0 levels"),
        ({"units": (None,)}, "1 units for the axes"),
        ({"attributes": {"a": np.float32(1)}}, "attributes: expected plain JSON"),
        ({"attributes": {"a": float("nan")}}, "attributes: expected plain JSON"),
        (_level(shard_shape=(8, 8, 10)), r"level 0: got shards \(8, 8, 10\); expected a multiple of the chunks"),
        (_level(scale=(1.0, 1.0)), "level 0: got .*; expected one shape, chunk, scale and translation per axis"),
        (_level(shape=(0, 3, 3)), "expected positive extents"),
        ({"axes": ("x", "y", "t")}, "no valid OME-Zarr image"),
        ({"axes": ("y", "y", "x")}, "no valid OME-Zarr image: .*different ones"),
        ({"axes": ("c", "t", "x")}, "no valid OME-Zarr image: .*two or three of z, y, x"),
        ({"levels": make_spec("zyx").levels[::-1]}, "level 1 has the scale .*, finer than .* of level 0"),
        (
            {"channels": (Channel("a", "green"),)},
            r"channel 0 \('a'\): got color 'green'; expected six hexadecimal digits",
        ),
    ],
)
def test_contradictory_specifications_are_refused(tmp_path, changes, message):
    with pytest.raises(InvalidInputError, match=message):
        create_output(tmp_path / "out.zarr", replace(make_spec("zyx"), **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_specification_that_ome_zarr_refuses_leaves_nothing(tmp_path, layout):
    with pytest.raises(InvalidInputError, match="no valid OME-Zarr image: 'time' axis must be first") as caught:
        create_output(tmp_path / "out.zarr", make_spec("ctyx", layout))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_metadata_are_what_ome_zarr_writes_and_no_more(tmp_path, layout):
    path = tmp_path / "out.zarr"
    make(path, "vzyx", layout, n_levels=1, fill=False, channels=(Channel("dye", None, (0, 9, 1, 8)),))
    attributes = zarr.open_group(path, mode="r").attrs.asdict()
    transforms = [
        {"type": "scale", "scale": [1.0, 0.5, 0.25, 0.2]},
        {"type": "translation", "translation": [0.0, 3.0, -1.0, 0.0]},
    ]
    multiscale = {
        "name": "embryo",
        "axes": [{"name": "v"}, *({"name": a, "type": "space", "unit": "micrometer"} for a in "zyx")],
        "datasets": [{"path": "0", "coordinateTransformations": transforms}],
    }
    window = {"min": 0.0, "max": 9.0, "start": 1.0, "end": 8.0}
    omero = {"channels": [{"label": "dye", "active": True, "color": "FFFFFF", "window": window}]}
    assert attributes.pop("bigdeconv") == {"iterations": 50}
    if layout[0] == "0.5":
        assert attributes == {"ome": {"version": "0.5", "multiscales": [multiscale], "omero": omero}}
    else:
        assert attributes == {"multiscales": [{"version": "0.4", **multiscale}], "omero": omero}


def test_numpy_integers_are_as_good_as_any(tmp_path):
    level = make_spec("zyx").levels[0]
    level = replace(
        level,
        shape=tuple(np.array(level.shape)),
        chunk_shape=tuple(np.array(level.chunk_shape)),
        shard_shape=tuple(np.array(level.shard_shape)),
    )
    create_output(tmp_path / "deep/er/out.zarr", make_spec("zyx", levels=(level,)))
    assert validate(tmp_path / "deep/er/out.zarr") == []


def test_attributes_are_stored_and_must_be_json(tmp_path, layout):
    make(tmp_path / "out.zarr", "zyx", layout)
    assert zarr.open_group(tmp_path / "out.zarr", mode="r").attrs["bigdeconv"] == {"iterations": 50}
    with pytest.raises(InvalidInputError, match="plain JSON"):
        create_output(tmp_path / "new.zarr", make_spec("zyx", layout, attributes={"path": tmp_path}))


def test_sweeping_removes_what_killed_writers_left(tmp_path):
    path = tmp_path / "out.zarr"
    make(path, "zyx")
    for folder in (path / "0/c/0/0", path):
        (folder / f"0.{uuid.uuid4().hex}.partial").write_bytes(b"torn")
    (path / "notes.partial").write_text("not zarr's")
    assert sweep_partial(path) == 2
    assert sweep_partial(path) == 0
    assert (path / "notes.partial").exists()
    assert validate(path, deep=True) == []
    assert sweep_partial(tmp_path / "nowhere") == 0


def test_zarr_still_names_its_temporary_files_as_we_sweep_them(tmp_path, monkeypatch):
    make(tmp_path / "out.zarr", "zyx", fill=False)
    monkeypatch.setattr(Path, "replace", lambda self, target: None)  # killed before the rename
    write_region(tmp_path / "out.zarr", "0", (slice(0, 8),) * 3, np.ones((8, 8, 8), "uint16"))
    monkeypatch.undo()
    assert sweep_partial(tmp_path / "out.zarr") == 1
