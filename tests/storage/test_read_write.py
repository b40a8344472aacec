"""Voxels in and out: written values are read back, misfits are refused, and no array is taken for another."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest
import zarr

from bigdeconv.errors import InvalidInputError, StoreError
from bigdeconv.geometry import Box
from bigdeconv.storage.arrays import read_box, read_region, write_region
from bigdeconv.storage.omezarr import describe
from tests.storage.images import ORIGIN, UNITS, VOXEL, make


@pytest.mark.parametrize("axes", ["zyx", "yx", "czyx", "tzyx", "tczyx", "vzyx", "tvzyx"])
def test_written_volume_is_described_and_read_back(tmp_path, layout, axes):
    path = tmp_path / "out.zarr"
    written = make(path, axes, layout)
    for level, data in enumerate(written):
        info = describe(path, level=level)
        assert info.axes == tuple(axes)
        assert info.shape == data.shape
        assert info.ome_version == layout[0]
        assert info.chunk_shape == tuple((4 if layout[1] else 8) if a in "zyx" else 1 for a in axes)
        assert info.shard_shape == (tuple(8 if a in "zyx" else 1 for a in axes) if layout[1] else None)
        assert np.dtype(info.dtype) == np.uint16
        assert info.fill_value == 0
        size = {a: VOXEL[a] * 2**level for a in "zyx"}
        if "z" not in axes:
            size["z"] = size["y"]
        assert info.voxel_zyx_um == pytest.approx(tuple(size.values()))
        for a, shift in zip("zyx", info.translation_zyx_um, strict=True):
            expected = ORIGIN[a] + VOXEL[a] * (2**level - 1) / 2 if a in axes else 0
            assert shift == pytest.approx(expected)
        assert info.n_timepoints == (2 if "t" in axes else 1)
        assert info.n_channels == (3 if "c" in axes else 1)
        assert info.extent("v") == (4 if "v" in axes else 1)
        assert info.axis_index("y") == axes.index("y")
        assert info.axis_index("q") is None
        assert info.units == tuple(UNITS.get(a) for a in axes)
        assert info.name == "embryo"
        assert pickle.loads(pickle.dumps(info)) == info

        box = Box.of_shape(info.zyx_shape).intersect(Box((1, 2, 3), (5, 6, 5)))
        where = {"t": 1, "c": 2} | dict(zip("zyx", box.slices, strict=True))
        if "z" not in axes:
            box = Box((0, 2, 3), (1, 6, 5))
            where |= dict(zip("zyx", box.slices, strict=True))
        view = "v" if "v" in axes else None
        got = read_box(info, box, timepoint=1 if "t" in axes else 0, channel=2 if "c" in axes else None, view_axis=view)
        expected = data[tuple(where.get(a, slice(None)) for a in axes)]
        if "z" not in axes:
            expected = expected[None]
        np.testing.assert_array_equal(got, expected, strict=True)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", ">u2", "int32", "uint64", "float16", "float32", ">f8"])
def test_every_numeric_dtype_survives(tmp_path, layout, dtype):
    path = tmp_path / "out.zarr"
    [data] = make(path, "zyx", layout, dtype=dtype, n_levels=1)
    info = describe(path)
    assert np.dtype(info.dtype).newbyteorder("=") == np.dtype(dtype).newbyteorder("=")
    got = read_box(info, Box.of_shape(info.zyx_shape))
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, data.astype(data.dtype.newbyteorder("=")), strict=True)
    np.testing.assert_array_equal(read_region(path, "0", (3, slice(None), slice(1, 4))), got[3, :, 1:4], strict=True)


def test_big_endian_v2_input(tmp_path):
    data = np.arange(2 * 3 * 4, dtype=">i2").reshape(2, 3, 4)
    group = zarr.create_group(tmp_path / "in.zarr", zarr_format=2)
    group.create_array("full", data=data, chunks=(1, 2, 2))
    axes = [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
    transform = [{"type": "scale", "scale": [400, 100, 100]}]
    group.attrs["multiscales"] = [
        {"version": "0.4", "axes": axes, "datasets": [{"path": "full", "coordinateTransformations": transform}]}
    ]
    info = describe(tmp_path / "in.zarr")
    assert (info.dtype, info.ome_version, info.array_path, info.name) == (">i2", "0.4", "full", "in.zarr")
    assert info.voxel_zyx_um == pytest.approx((0.4, 0.1, 0.1))
    got = read_box(info, Box((0, 1, 1), (2, 3, 4)))
    assert got.dtype == np.dtype("int16")
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, data[:, 1:3, 1:4])


@pytest.mark.parametrize("order", ["".join(p) for p in permutations("czyx")][::5])
def test_axes_are_found_by_name_in_any_order(tmp_path, order):
    path = tmp_path / "in.zarr"
    data = np.arange(3 * 5 * 6 * 7, dtype="int32").reshape([{"c": 3, "z": 5, "y": 6, "x": 7}[a] for a in order])
    group = zarr.create_group(path)
    group.create_array("a", data=data, chunks=(2, 2, 2, 2))
    size = {"c": 1.0, "z": 3.0, "y": 2.0, "x": 1.0}
    axes = [{"name": a} if a == "c" else {"name": a, "unit": "micrometer"} for a in order]
    transform = [{"type": "scale", "scale": [size[a] for a in order]}]
    datasets = [{"path": "a", "coordinateTransformations": transform}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    info = describe(path)
    assert info.zyx_shape == (5, 6, 7)
    assert info.voxel_zyx_um == (3.0, 2.0, 1.0)
    czyx = data.transpose([order.index(a) for a in "czyx"])
    box = Box((1, 0, 2), (4, 5, 7))
    got = read_box(info, box, channel=2)
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, czyx[2][box.slices])
    np.testing.assert_array_equal(read_box(info, box, channel=None, view_axis="c"), czyx[:, 1:4, 0:5, 2:7])


def test_unwritten_regions_are_fill_and_make_no_files(tmp_path, layout):
    path = tmp_path / "out.zarr"
    make(path, "zyx", layout, fill=False)
    before = sorted(path.rglob("*"))
    info = describe(path)
    assert not read_box(info, Box.of_shape(info.zyx_shape)).any()
    write_region(path, "0", (slice(0, 8), slice(0, 8), slice(0, 8)), np.zeros((8, 8, 8), "uint16"))
    assert [p for p in sorted(path.rglob("*")) if p.is_file()] == [p for p in before if p.is_file()]


def test_one_shard_is_one_file(tmp_path):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False)
    write_region(path, "0", (slice(8, 11), slice(8, 13), slice(8, 10)), np.ones((3, 5, 2), "uint16"))
    assert [p.relative_to(path / "0").as_posix() for p in (path / "0/c").rglob("*") if p.is_file()] == ["c/1/1/1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"box": Box((0, 0, 0), (12, 1, 1))}, "expected one inside the volume"),
        ({"box": Box((-1, 0, 0), (1, 1, 1))}, "expected one inside the volume"),
        ({"timepoint": 2}, "timepoint: got 2; expected 0 to 1 on axis 't'"),
        ({"timepoint": -1}, "timepoint: got -1"),
        ({"channel": 1}, "channel: got 1; expected 0 to 0 on axis 'c'"),
        ({"view_axis": None}, "axis 'v' has 4 entries; name it as the view axis"),
        ({"view_axis": "z"}, "view_axis: got 'z'; expected an axis of views"),
        ({"view_axis": "w"}, "view_axis: got 'w'; expected an axis of views"),
    ],
)
def test_read_box_refuses_what_does_not_fit(tmp_path, arguments, message):
    path = tmp_path / "out.zarr"
    make(path, "tvzyx", fill=False)
    with pytest.raises(InvalidInputError, match=message):
        read_box(describe(path), **({"box": Box((0, 0, 0), (1, 1, 1)), "view_axis": "v"} | arguments))


def test_no_channel_chosen_needs_a_single_one(tmp_path):
    make(tmp_path / "out.zarr", "czyx", fill=False)
    with pytest.raises(InvalidInputError, match="channel: got None; expected 0 to 2 on axis 'c'"):
        read_box(describe(tmp_path / "out.zarr"), Box((0, 0, 0), (1, 1, 1)), channel=None)


@pytest.mark.parametrize(
    ("index", "data", "message"),
    [
        ((slice(0, 4), slice(0, 4)), np.zeros((4, 4), "uint16"), "index: got 2 items; expected 3, one per axis"),
        ((slice(8, 16), slice(0, 8), slice(0, 8)), np.zeros((8, 8, 8), "uint16"), "expected a region inside the array"),
        ((slice(0, 8, 2), slice(0, 8), slice(0, 8)), np.zeros((4, 8, 8), "uint16"), ", without steps"),
        ((-1, slice(0, 8), slice(0, 8)), np.zeros((8, 8), "uint16"), "expected a region inside the array"),
        (
            (slice(0, 8), slice(0, 8), slice(0, 8)),
            np.zeros((1, 8, 8), "uint16"),
            r"data: got shape \(1, 8, 8\); expected \(8, 8, 8\)",
        ),
        (
            (slice(0, 8), slice(0, 8), slice(0, 8)),
            np.zeros((8, 8, 8), "float32"),
            "data: got dtype float32; expected uint16",
        ),
    ],
)
def test_write_region_neither_clips_broadcasts_nor_casts(tmp_path, index, data, message):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False)
    with pytest.raises(InvalidInputError, match=message):
        write_region(path, "0", index, data)


def test_regions_of_missing_arrays(tmp_path):
    with pytest.raises(StoreError, match="cannot open array '0'"):
        read_region(tmp_path / "no.zarr", "0", (0, 0, 0))
    with pytest.raises(StoreError, match="there is no such folder"):
        write_region(tmp_path / "no.zarr", "0", (0,), np.zeros((), "uint16"))
    assert not (tmp_path / "no.zarr").exists()
    with pytest.raises(StoreError, match="output goes to local paths only"):
        write_region("s3://bucket/no.zarr", "0", (0,), np.zeros((), "uint16"))


def test_an_unwritable_disk_is_a_store_error(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False)
    monkeypatch.setattr(zarr.storage.LocalStore, "set", full)
    with pytest.raises(StoreError, match=r"cannot write array '0' of .*No space left on device"):
        write_region(path, "0", (slice(0, 8),) * 3, np.ones((8, 8, 8), "uint16"))
    with pytest.raises(StoreError, match="No space left"):
        make(tmp_path / "other.zarr", "zyx")
    assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]


def test_a_worker_imports_neither_ome_zarr_nor_what_it_brings(tmp_path):
    """They take as long to import as zarr itself, in every worker."""
    make(tmp_path / "out.zarr", "zyx", n_levels=1)
    code = """
import sys
from bigdeconv.geometry import Box
from bigdeconv.storage import arrays, omezarr
info = omezarr.describe(sys.argv[1])
arrays.write_region(sys.argv[1], "0", (slice(0, 8),) * 3, arrays.read_box(info, Box((0, 0, 0), (8, 8, 8))))
print({"ome_zarr", "ome_zarr_models", "skimage", "dask", "torch"} & set(sys.modules))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "out.zarr")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "set()\n"


def test_an_array_is_opened_once(tmp_path, monkeypatch):
    path = tmp_path / "out.zarr"
    make(path, "zyx")
    info, opened = describe(path), []
    original = zarr.open_array
    monkeypatch.setattr(zarr, "open_array", lambda *a, **k: opened.append(1) or original(*a, **k))
    for _ in range(5):
        read_box(info, Box((0, 0, 0), (2, 2, 2)))
    assert len(opened) == 1


def test_a_volume_made_anew_is_opened_anew(tmp_path):
    """The same path, shape and dtype, but other shards: writing with the old ones would destroy it."""
    path = tmp_path / "out.zarr"
    make(path, "zyx", ("0.5", True), n_levels=1)
    shutil.rmtree(path)
    make(path, "zyx", ("0.5", False), n_levels=1, chunk=4, fill=False)
    write_region(path, "0", (slice(0, 8),) * 3, np.ones((8, 8, 8), "uint16"))
    assert len([p for p in (path / "0/c").rglob("*") if p.is_file()]) == 8
    assert (zarr.open_array(path, path="0", mode="r")[:8, :8, :8] == 1).all()


def test_a_volume_that_changed_since_it_was_described_is_refused(tmp_path):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False)
    info = describe(path)
    shutil.rmtree(path)
    make(path, "zyx", dtype="float32", fill=False)
    with pytest.raises(StoreError, match=r"is float32 .* but was <u2 .* describe it again"):
        read_box(info, Box((0, 0, 0), (1, 1, 1)))


PACKED = {
    "zlib": (2, {"id": "zlib", "level": 9}),
    "gzip of version 2": (2, {"id": "gzip", "level": 9}),
    "zstd of version 2": (2, {"id": "zstd", "level": 9}),
    "blosc of version 2": (2, {"id": "blosc", "cname": "zstd", "clevel": 9, "shuffle": 1, "blocksize": 0}),
    "gzip": (3, zarr.codecs.GzipCodec(level=9)),
    "zstd": (3, zarr.codecs.ZstdCodec(level=9)),
    "blosc": (3, zarr.codecs.BloscCodec(cname="zstd")),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_chunk_that_unpacks_to_more_than_it_should_is_refused(tmp_path, name):
    """Read as it should be where it is sound; a bomb costs neither its memory nor its time."""
    zarr_format, codec = PACKED[name]
    group = zarr.create_group(tmp_path / "in.zarr", zarr_format=zarr_format)
    kwargs = {"chunk_key_encoding": {"name": "v2", "separator": "/"}} if zarr_format == 2 else {}
    array = group.create_array("0", shape=(8, 16, 16), chunks=(8, 16, 16), dtype="uint16", compressors=codec, **kwargs)
    data = np.random.default_rng(0).integers(0, 99, (8, 16, 16)).astype("uint16")
    array[:] = data
    whole = (slice(0, 8), slice(0, 16), slice(0, 16))
    np.testing.assert_array_equal(read_region(tmp_path / "in.zarr", "0", whole), data)
    bomb = zarr.create_array(
        zarr.storage.MemoryStore(),
        shape=(64 * 2**20,),
        chunks=(64 * 2**20,),
        dtype="u1",
        zarr_format=zarr_format,
        compressors=codec,
    )
    bomb[:] = 0
    bomb[0] = 1
    (key,) = (k for k in bomb.store_path.store._store_dict if not k.endswith((".json", ".zarray", ".zattrs")))
    (chunk,) = (
        p for p in (tmp_path / "in.zarr" / "0").rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr.json"))
    )
    chunk.write_bytes(bomb.store_path.store._store_dict[key].to_bytes())
    assert chunk.stat().st_size < 2**20
    with pytest.raises(StoreError, match=r"unpacks to more than the \d+ bytes of a chunk"):
        read_region(tmp_path / "in.zarr", "0", whole)
