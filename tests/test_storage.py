"""OME-Zarr in and out: what is written is read back, valid for others, and refused where it cannot be used."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import uuid
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import zarr

from bigdeconv.errors import InvalidInputError, OutputExistsError, StoreError
from bigdeconv.geometry import Box
from bigdeconv.storage import arrays
from bigdeconv.storage.arrays import read_box, read_region, sweep_partial, write_region
from bigdeconv.storage.omezarr import Channel, describe
from bigdeconv.storage.output import LevelSpec, OutputSpec, create_output
from bigdeconv.storage.validation import validate

LAYOUTS = {"0.5-sharded": ("0.5", True), "0.5": ("0.5", False), "0.4": ("0.4", False)}
EXTENT = {"t": 2, "c": 3, "v": 4, "z": 11, "y": 13, "x": 10}
UNITS = {"t": "second", "z": "micrometer", "y": "micrometer", "x": "micrometer"}
VOXEL = {"z": 0.5, "y": 0.25, "x": 0.2}
ORIGIN = {"z": 3.0, "y": -1.0, "x": 0.0}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def layout(request):
    return request.param


def make_spec(axes="tczyx", layout=("0.5", True), dtype="uint16", n_levels=2, extent=EXTENT, chunk=None, **changes):
    version, sharded = layout
    edge = chunk or (4 if sharded else 8)  # few files: making and removing them is most of the time
    levels = []
    for n in range(n_levels):
        factor = {a: 2**n if a in "zyx" else 1 for a in axes}
        shape = tuple(-(-extent[a] // factor[a]) for a in axes)
        chunks = tuple(edge if a in "zyx" else 1 for a in axes)
        scale = tuple(VOXEL.get(a, 1.0) * factor[a] for a in axes)
        levels.append(
            LevelSpec(
                shape=shape,
                chunk_shape=chunks,
                shard_shape=tuple(2 * c if a in "zyx" else 1 for a, c in zip(axes, chunks, strict=True))
                if sharded
                else None,
                scale=scale,
                translation=tuple(
                    ORIGIN.get(a, 0.0) + (s - VOXEL.get(a, 1.0)) / 2 for a, s in zip(axes, scale, strict=True)
                ),
            )
        )
    n_channels = extent["c"] if "c" in axes else 1
    spec = OutputSpec(
        axes=tuple(axes),
        units=tuple(UNITS.get(a) for a in axes),
        dtype=dtype,
        levels=tuple(levels),
        ome_version=version,
        name="embryo",
        channels=tuple(Channel(f"stain {i}") for i in range(n_channels)),
        attributes={"iterations": 50},
    )
    return replace(spec, **changes)


def make(path, *args, fill=True, **kwargs):
    """Create an output and fill every level with reproducible noise; return the arrays as written."""
    spec = make_spec(*args, **kwargs)
    create_output(path, spec)
    written = []
    for n, level in enumerate(spec.levels):
        data = np.random.default_rng(n).integers(0, 100, level.shape).astype(spec.dtype)
        if fill:
            write_region(path, str(n), tuple(slice(None) for _ in level.shape), data)
        written.append(data)
    return written


def edit(path, change):
    """Let ``change`` alter the OME attributes of a 0.5 image in place."""
    file = Path(path) / "zarr.json"
    metadata = json.loads(file.read_text())
    change(metadata["attributes"]["ome"])
    file.write_text(json.dumps(metadata))


def flip_bit(path, position, bit=3):
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1 << bit
    path.write_bytes(raw)


# --- write, describe, read back ---------------------------------------------------------------------------------------


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


# --- others read it too -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["zyx", "yx", "czyx", "tzyx", "tczyx", "tvzyx"])
def test_ome_zarr_models_accepts_the_output(tmp_path, layout, axes):
    from ome_zarr_models import open_ome_zarr

    path = tmp_path / "out.zarr"
    make(path, axes, layout, n_levels=3)
    image = open_ome_zarr(zarr.open_group(path, mode="r"))
    assert image.ome_zarr_version == layout[0]
    assert validate(path) == []
    assert validate(path, deep=True) == []


# ngff-zarr has no models for custom axes.
@pytest.mark.parametrize("axes", ["zyx", "yx", "czyx", "tzyx", "tczyx"])
def test_ngff_zarr_accepts_the_output(tmp_path, layout, axes):
    import ngff_zarr

    path = tmp_path / "out.zarr"
    written = make(path, axes, layout)
    multiscales = ngff_zarr.from_ngff_zarr(str(path), validate=True)
    assert len(multiscales.images) == 2
    for level, image in enumerate(multiscales.images):
        assert tuple(image.dims) == tuple(axes)
        for a in set(axes) & set("zyx"):
            assert image.scale[a] == pytest.approx(VOXEL[a] * 2**level)
            assert image.translation[a] == pytest.approx(ORIGIN[a] + VOXEL[a] * (2**level - 1) / 2)
        np.testing.assert_array_equal(np.asarray(image.data), written[level])


@pytest.mark.parametrize("axes", ["zyx", "yx", "czyx", "tczyx"])
def test_ome_zarr_reads_the_output(tmp_path, layout, axes):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    path = tmp_path / "out.zarr"
    written = make(path, axes, layout)
    [node] = list(Reader(parse_url(str(path)))())
    assert [a["name"] for a in node.metadata["axes"]] == list(axes)
    assert len(node.data) == 2
    for level, data in enumerate(written):
        np.testing.assert_array_equal(np.asarray(node.data[level]), data)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_input_from_ome_zarr(tmp_path, version):
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.writer import write_image

    path, data = tmp_path / "in.zarr", np.random.default_rng(0).integers(0, 999, (2, 9, 10, 12)).astype("uint16")
    write_image(
        data,
        str(path),
        axes="czyx",
        fmt={"0.4": FormatV04, "0.5": FormatV05}[version](),
        scale_factors=[{"z": 1, "y": 2, "x": 2}],
        scale={"c": 1.0, "z": 0.5, "y": 0.2, "x": 0.1},
        axes_units=dict.fromkeys("zyx", "micrometer"),
    )
    info = describe(path)
    assert (info.axes, info.shape, info.ome_version) == (("c", "z", "y", "x"), data.shape, version)
    assert info.voxel_zyx_um == pytest.approx((0.5, 0.2, 0.1))
    np.testing.assert_array_equal(read_box(info, Box((1, 2, 3), (8, 9, 11)), channel=1), data[1, 1:8, 2:9, 3:11])
    coarse = describe(path, level=1)
    assert coarse.zyx_shape == (9, 5, 6)
    assert coarse.voxel_zyx_um == pytest.approx((0.5, 0.4, 0.2))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_input_from_ngff_zarr(tmp_path, version):
    import ngff_zarr

    path, data = tmp_path / "in.zarr", np.random.default_rng(0).integers(0, 999, (8, 12, 16)).astype("uint16")
    image = ngff_zarr.to_ngff_image(
        data,
        dims=("z", "y", "x"),
        scale={"z": 500.0, "y": 200.0, "x": 100.0},
        translation={"z": 1000.0, "y": 0.0, "x": 0.0},
        axes_units=dict.fromkeys("zyx", "nanometer"),
    )
    multiscales = ngff_zarr.to_multiscales(image, scale_factors=[2], method=ngff_zarr.Methods.DASK_BIN_SHRINK, chunks=4)
    ngff_zarr.to_ngff_zarr(
        str(path), multiscales, version=version, **({"chunks_per_shard": 2} if version == "0.5" else {})
    )
    info = describe(path)
    assert (info.axes, info.shape) == (("z", "y", "x"), data.shape)
    assert info.voxel_zyx_um == pytest.approx((0.5, 0.2, 0.1))
    assert info.translation_zyx_um == pytest.approx((1.0, 0.0, 0.0))
    assert info.shard_shape == ((8, 8, 8) if version == "0.5" else None)
    np.testing.assert_array_equal(read_box(info, Box((1, 2, 3), (8, 9, 11))), data[1:8, 2:9, 3:11])
    assert describe(path, level=1).translation_zyx_um == pytest.approx((1.25, 0.1, 0.05))


# --- units, voxel sizes, channels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "um"),
    [
        ("angstrom", 1e-4),
        ("picometer", 1e-6),
        ("nanometer", 1e-3),
        ("micrometer", 1.0),
        ("µm", 1.0),
        ("μm", 1.0),
        ("millimeter", 1e3),
        ("centimeter", 1e4),
        ("inch", 25400.0),
        ("foot", 304800.0),
        ("yard", 914400.0),
        ("meter", 1e6),
        ("mile", 1609344000.0),
        ("parsec", 3.0856775814913673e22),
    ],
)
def test_units_become_micrometers(tmp_path, unit, um):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False, units=(unit,) * 3)
    info = describe(path)
    assert info.voxel_zyx_um == pytest.approx((0.5 * um, 0.25 * um, 0.2 * um), rel=1e-12)
    assert info.translation_zyx_um == pytest.approx((3.0 * um, -1.0 * um, 0.0), rel=1e-12)
    assert info.units == (unit,) * 3


def test_every_length_unit_of_the_specification_is_known():
    """OME-NGFF: units of space axes SHOULD be one of these, from UDUNITS-2."""
    from bigdeconv.storage.omezarr import UM_PER_UNIT

    prefixes = "yocto zepto atto femto pico nano micro milli centi deci hecto kilo mega giga tera peta exa zetta yotta"
    powers = [-24, -21, -18, -15, -12, -9, -6, -3, -2, -1, 2, 3, 6, 9, 12, 15, 18, 21, 24]
    for prefix, power in zip(prefixes.split(), powers, strict=True):
        assert UM_PER_UNIT[prefix + "meter"] == pytest.approx(10.0 ** (power + 6), rel=1e-12)
    assert {"angstrom", "foot", "inch", "meter", "mile", "parsec", "yard"} < set(UM_PER_UNIT)


def test_transformations_of_level_and_multiscale_are_composed(tmp_path):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False)

    def change(ome):
        ome["multiscales"][0]["coordinateTransformations"] = [
            {"type": "scale", "scale": [2, 3, 4]},
            {"type": "translation", "translation": [10, 20, 30]},
        ]

    edit(path, change)
    info = describe(path, level=1)
    assert info.scales == pytest.approx((2.0, 1.5, 1.6))
    assert info.translations == pytest.approx(((3 + 0.25) * 2 + 10, (-1 + 0.125) * 3 + 20, 0.1 * 4 + 30))
    assert info.voxel_zyx_um == pytest.approx(info.scales)
    assert info.translation_zyx_um == pytest.approx(info.translations)


def test_given_voxel_size_overrides_and_keeps_the_position_in_voxels(tmp_path):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False, units=(None,) * 3)
    info = describe(path, voxel_zyx_um=(1.0, 0.5, 0.5))
    assert info.voxel_zyx_um == (1.0, 0.5, 0.5)
    assert info.translation_zyx_um == pytest.approx((6.0, -2.0, 0.0))
    assert info.scales == (0.5, 0.25, 0.2)


@pytest.mark.parametrize("given", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (float("nan"), 1.0, 1.0)])
def test_given_voxel_size_must_be_three_positive_numbers(tmp_path, given):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False)
    with pytest.raises(InvalidInputError, match=r"voxel_zyx_um is .* three positive numbers"):
        describe(path, voxel_zyx_um=given)


def _set(key, value, *, dataset=None):
    def change(ome):
        target = ome["multiscales"][0]
        (target if dataset is None else target["datasets"][dataset])[key] = value

    return change


def _unit(value):
    def change(ome):
        for axis in ome["multiscales"][0]["axes"]:
            axis.pop("unit", None)
            if value is not None:
                axis["unit"] = value

    return change


def _scale(*vector):
    return _set("coordinateTransformations", [{"type": "scale", "scale": list(vector)}], dataset=0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set("coordinateTransformations", [], dataset=0), "it stores no scale"),
        (_set("coordinateTransformations", None, dataset=0), "it stores no scale"),
        (_unit(None), "axis z has no unit"),
        (_unit("pixel"), "axis z has the unit 'pixel'"),
        (_unit("second"), "axis z has the unit 'second'"),
        (_scale(1, 0, 1), "axis y has the scale 0"),
        (_scale(1, 1, -2.0), "axis x has the scale -2"),
        (_scale(1, float("inf"), 1), "axis y has the scale inf"),
        (_scale(float("nan"), 1, 1), "axis z has the scale nan"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_missing_voxel_size_asks_for_one(tmp_path, change, reason):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False)
    edit(path, change)
    with pytest.raises(InvalidInputError, match=f"no usable voxel size: {reason}.*--voxel-um Z,Y,X"):
        describe(path)
    assert describe(path, voxel_zyx_um=(3, 2, 1)).voxel_zyx_um == (3.0, 2.0, 1.0)


def test_channels_are_kept_and_completed(tmp_path, layout):
    path = tmp_path / "out.zarr"
    channels = (Channel("nuclei", "00FFAA", (0.0, 4000.0, 10.0, 900.0)), Channel("actin"), Channel("µ", None, None))
    make(path, "czyx", layout, channels=channels, fill=False)
    got = describe(path).channels
    assert got[0] == channels[0]
    assert [c.label for c in got] == ["nuclei", "actin", "µ"]
    assert got[1].window == (0.0, 65535.0, 0.0, 65535.0)
    assert len({c.color for c in got}) == 3


def test_rendering_settings_that_make_no_sense_are_dropped(tmp_path):
    path = tmp_path / "out.zarr"
    make(path, "czyx", fill=False)
    edit(path, lambda ome: ome.update(omero={"channels": [{"color": "nope", "window": {"min": "a"}}, {}, 5]}))
    assert describe(path).channels == (Channel("C0"), Channel("C1"), Channel("C2"))
    for bad in ({"channels": [{}]}, {"channels": 3}, [], None):
        edit(path, lambda ome, bad=bad: ome.update(omero=bad))
        assert describe(path).channels == ()


def test_no_channels_no_omero(tmp_path, layout):
    path = tmp_path / "out.zarr"
    make(path, "zyx", layout, channels=(), fill=False)
    assert describe(path).channels == ()
    assert validate(path) == []


@pytest.mark.parametrize(("version", "axes"), [("0.3", ["t", "c", "z", "y", "x"]), ("0.1", None)])
def test_old_versions_are_understood_once_the_voxel_size_is_given(tmp_path, version, axes):
    group = zarr.create_group(tmp_path / "old.zarr", zarr_format=2)
    group.create_array("0", data=np.ones((1, 2, 3, 4, 5), "uint8"), chunks=(1, 1, 3, 4, 5))
    multiscale = {"version": version, "datasets": [{"path": "0"}]} | ({"axes": axes} if axes else {})
    group.attrs["multiscales"] = [multiscale]
    with pytest.raises(InvalidInputError, match="--voxel-um"):
        describe(tmp_path / "old.zarr")
    info = describe(tmp_path / "old.zarr", voxel_zyx_um=(1, 1, 1))
    assert (info.axes, info.zyx_shape, info.n_channels) == (("t", "c", "z", "y", "x"), (3, 4, 5), 2)
    assert info.ome_version == version


def test_a_time_axis_of_another_name_is_t(tmp_path):
    path = tmp_path / "out.zarr"
    make(path, "tzyx", fill=False)
    edit(path, lambda ome: ome["multiscales"][0]["axes"][0].update(name="time"))
    assert describe(path).n_timepoints == 2


# --- bad input --------------------------------------------------------------------------------------------------------


def _axes(*axes):
    return _set("axes", [{"name": a} if isinstance(a, str) else a for a in axes])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ome: ome.pop("multiscales"), "not an OME-Zarr image: its metadata holds no multiscales"),
        (lambda ome: ome.update(multiscales="x"), "not an OME-Zarr image"),
        (lambda ome: (ome.pop("multiscales"), ome.update(plate={})), "it is a plate; give one of its images"),
        (lambda ome: (ome.pop("multiscales"), ome.update(well={})), "it is a well; give one of its images"),
        (lambda ome: (ome.pop("multiscales"), ome.update({"bioformats2raw.layout": 3})), "a collection of images"),
        (lambda ome: (ome["multiscales"][0].pop("axes"), _set("coordinateSystems", [])(ome)), "is not read yet"),
        (_set("axes", {"z": 1}), "has axes {'z': 1}; expected a list"),
        (_axes("z", {"type": "space"}, "x"), "has an axis without a name"),
        (_axes("z", "y", "y"), "an axis appears twice"),
        (_axes({"name": "t"}, {"name": "time", "type": "time"}, "y", "x"), "more than one of time"),
        (_axes("z", "y", {"name": "w", "type": "space"}), "has a space axis 'w'"),
        (_axes("c", "z", "y"), "at least y and x are needed"),
        (_axes("u", "v", "y", "x"), "at most one beside t, c, z, y, x"),
        (_axes("c", "z", "y", "x"), "has 3 dimensions, but the axes are"),
        (_set("datasets", []), "lists no levels"),
        (_set("datasets", ["0"]), "lists no levels"),
        (_set("path", "../secret", dataset=0), "has the path '../secret'; it must lie inside"),
        (_set("path", "a/../../secret", dataset=0), "it must lie inside"),
        (_set("path", "/etc", dataset=0), "it must lie inside"),
        (_set("path", None, dataset=0), "it must lie inside"),
        (_set("path", "7", dataset=0), "cannot open array '7'"),
        (_scale(1, 2), "expected a scale or translation of 3 numbers"),
        (_scale(1, 2, "3"), "expected a scale or translation of 3 numbers"),
        (_set("coordinateTransformations", [{"type": "affine"}], dataset=0), "expected a scale or translation"),
        (_set("coordinateTransformations", [7], dataset=0), "expected a scale or translation"),
    ],
)
def test_unusable_metadata_is_refused_in_one_sentence(tmp_path, change, message):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False)
    edit(path, change)
    with pytest.raises((StoreError, InvalidInputError), match=message) as caught:
        describe(path)
    assert "\n" not in str(caught.value)
    assert validate(path) != []


@pytest.mark.parametrize("level", [-1, 2, 99])
def test_missing_level_names_the_levels_there_are(tmp_path, level):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False)
    with pytest.raises(InvalidInputError, match=rf"level is {level}, but .* has levels 0 to 1 \(arrays 0, 1\)"):
        describe(path, level=level)


def test_what_is_no_group_is_refused(tmp_path):
    make(tmp_path / "out.zarr", "zyx", fill=False)
    (tmp_path / "plain").mkdir()
    (tmp_path / "file.tif").write_bytes(b"II*")
    for name, message in {
        "nowhere.zarr": "does not exist or is no folder",
        "file.tif": "does not exist or is no folder",
        "plain": "there is no zarr group",
        "out.zarr/0": "not an OME-Zarr image|cannot open",
    }.items():
        with pytest.raises(StoreError, match=message):
            describe(tmp_path / name)


@pytest.mark.parametrize("text", ["{", "", "[1, 2]", '{"zarr_format": 9, "node_type": "group"}'])
@pytest.mark.parametrize("victim", ["zarr.json", "0/zarr.json"])
def test_unreadable_metadata_is_reported(tmp_path, victim, text):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False)
    (path / victim).write_text(text)
    with pytest.raises(StoreError, match="cannot open"):
        describe(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((2, 2, 2), "complex64"), "dtype complex64; only integers and floats"),
        (np.zeros((2, 2, 2), bool), "convert a boolean mask to uint8"),
        (np.zeros((2, 2, 2), [("a", "u1"), ("b", "u2")]), "only integers and floats"),
        (np.zeros((2, 0, 2), "uint8"), "there are no voxels"),
    ],
)
def test_unusable_arrays_are_refused(tmp_path, data, message):
    group = zarr.create_group(tmp_path / "in.zarr", zarr_format=2)
    group.create_array("0", data=data, chunks=(2, 2, 2))
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    with pytest.raises(InvalidInputError, match=message):
        describe(tmp_path / "in.zarr")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("", "is empty"),
        ("ftp://host/a.zarr", "cannot open ftp:// locations"),
        ("https://me:secret@host/a.zarr", "holds a user name, query or fragment"),
        ("https://host/a.zarr?X-Amz-Signature=secret", "holds a user name, query or fragment"),
    ],
)
def test_unusable_locations_are_refused_without_telling_secrets(location, message):
    with pytest.raises(InvalidInputError, match=message) as caught:
        describe(location)
    assert "secret" not in str(caught.value)


def test_locations_become_absolute(tmp_path, monkeypatch):
    make(tmp_path / "o ut.zarr", "zyx", fill=False)
    monkeypatch.chdir(tmp_path)
    expected = str(tmp_path / "o ut.zarr")
    for location in ("o ut.zarr", "o ut.zarr/", Path("o ut.zarr"), (tmp_path / "o ut.zarr").as_uri()):
        assert describe(location).location == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"box": Box((0, 0, 0), (12, 1, 1))}, "reaches outside the volume"),
        ({"box": Box((-1, 0, 0), (1, 1, 1))}, "reaches outside the volume"),
        ({"timepoint": 2}, "timepoint is 2, but axis 't' allows 0 to 1"),
        ({"timepoint": -1}, "timepoint is -1"),
        ({"channel": 1}, "channel is 1, but axis 'c' allows 0 to 0"),
        ({"view_axis": None}, "axis 'v' has 4 entries; name it as the view axis"),
        ({"view_axis": "z"}, "view_axis 'z' is no axis of views"),
        ({"view_axis": "w"}, "view_axis 'w' is no axis of views"),
    ],
)
def test_read_box_refuses_what_does_not_fit(tmp_path, arguments, message):
    path = tmp_path / "out.zarr"
    make(path, "tvzyx", fill=False)
    with pytest.raises(InvalidInputError, match=message):
        read_box(describe(path), **({"box": Box((0, 0, 0), (1, 1, 1)), "view_axis": "v"} | arguments))


def test_no_channel_chosen_needs_a_single_one(tmp_path):
    make(tmp_path / "out.zarr", "czyx", fill=False)
    with pytest.raises(InvalidInputError, match="channel is None, but axis 'c' allows 0 to 2"):
        read_box(describe(tmp_path / "out.zarr"), Box((0, 0, 0), (1, 1, 1)), channel=None)


@pytest.mark.parametrize(
    ("index", "data", "message"),
    [
        ((slice(0, 4), slice(0, 4)), np.zeros((4, 4), "uint16"), "index has 2 items for an array of 3 axes"),
        ((slice(8, 16), slice(0, 8), slice(0, 8)), np.zeros((8, 8, 8), "uint16"), "reaches outside the array"),
        ((slice(0, 8, 2), slice(0, 8), slice(0, 8)), np.zeros((4, 8, 8), "uint16"), "or has a step"),
        ((-1, slice(0, 8), slice(0, 8)), np.zeros((8, 8), "uint16"), "reaches outside the array"),
        ((slice(0, 8), slice(0, 8), slice(0, 8)), np.zeros((1, 8, 8), "uint16"), r"data has shape \(1, 8, 8\)"),
        (
            (slice(0, 8), slice(0, 8), slice(0, 8)),
            np.zeros((8, 8, 8), "float32"),
            "dtype float32, but '0' holds uint16",
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


# --- open arrays are kept, but never the wrong ones -------------------------------------------------------------------


def test_an_array_is_opened_once(tmp_path, monkeypatch):
    path = tmp_path / "out.zarr"
    make(path, "zyx")
    info, opened = describe(path), []
    original = zarr.open_array
    monkeypatch.setattr(arrays.zarr, "open_array", lambda *a, **k: opened.append(1) or original(*a, **k))
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


# --- codecs and corruption --------------------------------------------------------------------------------------------


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


# --- creation ---------------------------------------------------------------------------------------------------------


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
        ({"ome_version": "0.6"}, "ome_version is '0.6'; 0.5 and 0.4 can be written"),
        ({"ome_version": "0.4"}, "0.4 knows no shards"),
        ({"levels": ()}, "got 0 levels"),
        ({"units": (None,)}, "1 units for axes"),
        ({"attributes": {"a": np.float32(1)}}, "attributes must be plain JSON"),
        ({"attributes": {"a": float("nan")}}, "attributes must be plain JSON"),
        (_level(shard_shape=(8, 8, 10)), r"shards \(8, 8, 10\), which are no multiple of its chunks"),
        (_level(scale=(1.0, 1.0)), "level 0 has not one shape, chunk, scale and translation per axis"),
        (_level(shape=(0, 3, 3)), "not positive"),
        ({"axes": ("x", "y", "t")}, "no valid OME-Zarr image"),
        ({"channels": (Channel("a", "green"),)}, "channel .*green.* cannot be described"),
    ],
)
def test_contradictory_specifications_are_refused(tmp_path, changes, message):
    with pytest.raises(InvalidInputError, match=message):
        create_output(tmp_path / "out.zarr", replace(make_spec("zyx"), **changes))
    assert list(tmp_path.iterdir()) == []


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


# --- validation -------------------------------------------------------------------------------------------------------


def _transform(scale, translation):
    return [{"type": "scale", "scale": scale}, {"type": "translation", "translation": translation}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _set("coordinateTransformations", _transform([1.01, 0.5, 0.4], [3.25, -0.875, 0.1]), dataset=1),
            "axis z by 2.02",
        ),
        (_set("coordinateTransformations", _transform([1.0, 0.5, 0.4], [3, -0.875, 0.1]), dataset=1), "expected 3.25"),
        (
            _set("coordinateTransformations", _transform([1.5, 0.5, 0.4], [3.5, -0.875, 0.1]), dataset=1),
            "expected 11 / 3",
        ),
        (_set("path", "9", dataset=1), "cannot open array '9'|does not exist"),
        (lambda ome: ome.update(version="0.9"), "version"),
        (lambda ome: ome["multiscales"][0]["axes"].reverse(), "dimension"),
        (_set("coordinateTransformations", [], dataset=1), "Length of transforms|expected positive numbers"),
    ],
)
def test_validation_names_the_problem(tmp_path, change, message):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False)
    edit(path, change)
    problems = validate(path)
    assert any(re.search(message, p) for p in problems), problems
    assert all("\n" not in p for p in problems)


def test_validation_compares_dtypes_and_existence(tmp_path):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False)
    shutil.rmtree(path / "1")
    assert any("cannot open array '1'" in p for p in validate(path))
    zarr.create_array(path / "1", shape=(6, 7, 5), chunks=(4, 4, 4), dtype="float32", dimension_names=("z", "y", "x"))
    assert validate(path) == ["array '1' has dtype float32, the finest level uint16"]


def test_validation_of_nothing(tmp_path):
    [problem] = validate(tmp_path / "nowhere.zarr")
    assert "does not exist" in problem
    [problem] = validate("ftp://host/x")
    assert "cannot open ftp://" in problem


def test_no_voxel_size_is_needed_to_validate_only_a_scale(tmp_path):
    path = tmp_path / "out.zarr"
    make(path, "zyx", fill=False, units=(None,) * 3)
    assert validate(path) == []
