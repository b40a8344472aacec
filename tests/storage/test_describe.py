"""Descriptions of images: voxel sizes, channels and versions, and metadata that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from bigdeconv.errors import InvalidInputError, StoreError
from bigdeconv.storage.ome_parsing import Channel
from bigdeconv.storage.omezarr import describe
from bigdeconv.storage.validation import validate
from tests.storage.images import edit, make, with_entry, with_scale, with_unit


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
    if not 1e-6 <= 0.2 * um <= 0.5 * um <= 1e6:  # no voxel is as large as a parsec
        with pytest.raises(
            InvalidInputError, match=rf"has no usable voxel size: axis z has the scale 0.5, unit {unit}"
        ):
            describe(path)
        return
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
    with pytest.raises(InvalidInputError, match=r"voxel_zyx_um is .* expected three numbers z,y,x in µm, each from"):
        describe(path, voxel_zyx_um=given)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_entry("coordinateTransformations", [], dataset=0), "it stores no scale"),
        (with_entry("coordinateTransformations", None, dataset=0), "it stores no scale"),
        (with_unit(None), "axis z has no unit"),
        (with_unit("pixel"), "axis z has the unit 'pixel'"),
        (with_unit("second"), "axis z has the unit 'second'"),
        (with_scale(1, 0, 1), "axis y has the scale 0"),
        (with_scale(1, 1, -2.0), "axis x has the scale -2"),
        (with_scale(1, float("inf"), 1), "axis y has the scale inf"),
        (with_scale(float("nan"), 1, 1), "axis z has the scale nan"),
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


def _axes(*axes):
    return with_entry("axes", [{"name": a} if isinstance(a, str) else a for a in axes])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ome: ome.pop("multiscales"), "not an OME-Zarr image: its metadata holds no multiscales"),
        (lambda ome: ome.update(multiscales="x"), "not an OME-Zarr image"),
        (lambda ome: (ome.pop("multiscales"), ome.update(plate={})), "it is a plate; give one of its images"),
        (lambda ome: (ome.pop("multiscales"), ome.update(well={})), "it is a well; give one of its images"),
        (lambda ome: (ome.pop("multiscales"), ome.update({"bioformats2raw.layout": 3})), "a collection of images"),
        (lambda ome: (ome["multiscales"][0].pop("axes"), with_entry("coordinateSystems", [])(ome)), "is not read yet"),
        (with_entry("axes", {"z": 1}), "has axes {'z': 1}; expected a list"),
        (_axes("z", {"type": "space"}, "x"), "has an axis without a name"),
        (_axes("z", "y", "y"), "expected each once"),
        (_axes({"name": "t"}, {"name": "time", "type": "time"}, "y", "x"), "at most one of time"),
        (_axes("z", "y", {"name": "w", "type": "space"}), "has a space axis 'w'"),
        (_axes("c", "z", "y"), "expected at least y and x"),
        (_axes("u", "v", "y", "x"), "expected at most one beside t, c, z, y, x"),
        (_axes("c", "z", "y", "x"), "has 3 dimensions, but the axes are"),
        (with_entry("datasets", []), "lists no levels"),
        (with_entry("datasets", ["0"]), "lists no levels"),
        (with_entry("path", "../secret", dataset=0), "has the path '../secret'; it must lie inside"),
        (with_entry("path", "a/../../secret", dataset=0), "it must lie inside"),
        (with_entry("path", "/etc", dataset=0), "it must lie inside"),
        (with_entry("path", None, dataset=0), "it must lie inside"),
        (with_entry("path", "7", dataset=0), "cannot open array '7'"),
        (with_scale(1, 2), "expected a scale or translation of 3 finite numbers"),
        (with_scale(1, 2, "3"), "expected a scale or translation of 3 finite numbers"),
        (with_entry("coordinateTransformations", [{"type": "affine"}], dataset=0), "expected a scale or translation"),
        (with_entry("coordinateTransformations", [7], dataset=0), "expected a scale or translation"),
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
