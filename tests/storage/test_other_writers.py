"""Images in the form of other writers' files, made by hand; `test_other_tools.py` has real libraries."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr

from bigdeconv.errors import InvalidInputError, StoreError
from bigdeconv.geometry import Box
from bigdeconv.storage.arrays import read_box
from bigdeconv.storage.omezarr import describe
from tests import make
from tests.make import bigdeconv

SHAPE = (2, 1, 8, 32, 32)
UM = {"z": 0.5, "y": 0.2, "x": 0.2}


def axes(*, unit="micrometer"):
    kinds = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
    return [{"name": n, "type": k} | ({"unit": unit} if k == "space" else {}) for n, k in kinds.items()]


def levels(count, scales):
    def scaled(n):
        return {"type": "scale", "scale": [s * f for s, f in zip(scales, _step(n), strict=True)]}

    return [{"path": str(n), "coordinateTransformations": [scaled(n)]} for n in range(count)]


def _step(n):
    return (1, 1, 1, 2**n, 2**n)


def arrays(group, data, count, *, separator="/", **options):
    for n in range(count):
        part = data[..., :: 2**n, :: 2**n]
        chunks = (1, 1, 1, *(min(s, 16) for s in part.shape[-2:]))
        encoding = {"name": "v2" if group.metadata.zarr_format == 2 else "default", "separator": separator}
        array = group.create_array(
            str(n), shape=part.shape, dtype=part.dtype, chunks=chunks, chunk_key_encoding=encoding, **options
        )
        array[...] = part


def bioformats2raw(path, data, *, name="0"):
    """A converted file: a root with the layout's number, the image as series 0, big-endian data, levels as floats of 2ⁿ."""
    root = zarr.create_group(path, zarr_format=2, attributes={"bioformats2raw.layout": 3})
    image = root.create_group("0")
    image.attrs.update(
        {
            "multiscales": [
                {
                    "metadata": {"method": "loci.common.image.SimpleImageScaler", "version": "Bio-Formats 8.1.0"},
                    "axes": axes(),
                    "name": name,
                    "datasets": levels(2, (1.0, 1.0, *UM.values())),
                    "version": "0.4",
                }
            ],
            "omero": {
                "channels": [
                    {
                        "active": True, "coefficient": 1, "color": "00FF00", "family": "linear", "label": "EGFP",
                        "window": {"start": 10.0, "end": 900.0, "min": 0.0, "max": 65535.0},
                    }
                ],
                "rdefs": {"defaultT": 0, "defaultZ": 4, "model": "greyscale"},
            },
        }
    )  # fmt: skip
    arrays(image, data.astype(">u2"), 2)
    (path / "OME").mkdir()
    (path / "OME" / "METADATA.ome.xml").write_text("<OME/>")
    return path / "0"


def acquisition(path, data):
    """A stream from a microscope: 0.5, shards, its own attributes beside, no name, time in seconds."""
    group = zarr.create_group(path, zarr_format=3)
    described = axes()
    described[0]["unit"] = "second"
    group.attrs["ome"] = {
        "version": "0.5",
        "name": "/",
        "multiscales": [{"axes": described, "datasets": levels(1, (0.1, 1.0, *UM.values())), "name": ""}],
    }
    group.attrs["acquisition"] = {"exposure_ms": 20, "frames": 16}
    arrays(group, data, 1, shards=(1, 1, 8, 32, 32))
    return path


def specification(path, data):
    """As in the specification's example: a scale of the level, then one of the multiscale."""
    group = zarr.create_group(path, zarr_format=3)
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [
            {
                "name": "example",
                "axes": axes(),
                "datasets": levels(2, (1.0, 1.0, 1.0, 1.0, 1.0)),
                "coordinateTransformations": [{"type": "scale", "scale": [0.1, 1.0, *UM.values()]}],
                "type": "gaussian",
                "metadata": {"method": "skimage.transform.pyramid_gaussian", "args": "[true]", "kwargs": {"multichannel": True}},
            }
        ],
    }  # fmt: skip
    arrays(group, data, 2)
    return path


def dotted(path, data):
    """Chunks in one folder, names with dots, and consolidated metadata that are out of date."""
    group = zarr.create_group(path, zarr_format=2)
    multiscale = {"version": "0.4", "axes": axes(), "datasets": levels(1, (1.0, 1.0, *UM.values()))}
    group.attrs["multiscales"] = [multiscale]
    arrays(group, data, 1, separator=".")
    (path / ".zmetadata").write_text(
        json.dumps({"zarr_consolidated_format": 1, "metadata": {".zgroup": {"zarr_format": 2}}})
    )
    return path


WRITERS = [bioformats2raw, acquisition, specification, dotted]


@pytest.fixture
def data():
    return make.scene(*SHAPE)


@pytest.mark.parametrize("writer", WRITERS)
def test_described_and_read(tmp_path, data, writer):
    info = describe(writer(tmp_path / "in.zarr", data))
    assert info.zyx_shape == SHAPE[2:]
    assert (info.n_timepoints, info.n_channels) == SHAPE[:2]
    assert info.voxel_zyx_um == pytest.approx(tuple(UM.values()))
    assert info.units[2:] == ("micrometer",) * 3
    found = read_box(info, Box((1, 3, 5), (7, 31, 30)), timepoint=1)
    np.testing.assert_array_equal(found, data[1, 0, 1:7, 3:31, 5:30])
    assert found.dtype == np.uint16


@pytest.mark.parametrize("writer", WRITERS)
def test_planned(tmp_path, data, writer):
    source = writer(tmp_path / "in.zarr", data)
    psf = make.psf_tiff(tmp_path / "psf.tif")
    result = bigdeconv("plan", source, "--psf", psf, "--method", "rl", "--iterations", "3", "--json")
    assert result.exit_code == 0, result.stdout
    plan = json.loads(result.stdout)
    assert (plan["volume_shape"], plan["timepoints"]) == (list(SHAPE[2:]), 2)
    assert plan["voxel_um"] == pytest.approx(list(UM.values()))


def test_channels_of_a_converted_file_are_kept(tmp_path, data):
    (channel,) = describe(bioformats2raw(tmp_path / "in.zarr", data)).channels
    assert (channel.label, channel.color, channel.window) == ("EGFP", "00FF00", (0.0, 65535.0, 10.0, 900.0))


def test_the_folder_of_a_converted_file_names_the_image_in_it(tmp_path, data):
    bioformats2raw(tmp_path / "in.zarr", data)
    with pytest.raises(StoreError, match="collection of images; give one of them, for instance 0 below it"):
        describe(tmp_path / "in.zarr")


def test_a_lower_level_that_is_missing_does_not_matter(tmp_path, data):
    source = specification(tmp_path / "in.zarr", data)
    (source / "1" / "zarr.json").unlink()
    assert describe(source).zyx_shape == SHAPE[2:]


def test_a_unit_that_is_no_length_asks_for_the_voxel_size(tmp_path, data):
    source = specification(tmp_path / "in.zarr", data)
    attributes = json.loads((source / "zarr.json").read_text())
    attributes["attributes"]["ome"]["multiscales"][0]["axes"] = axes(unit="pixel")
    (source / "zarr.json").write_text(json.dumps(attributes))
    with pytest.raises(InvalidInputError, match="--voxel-um"):
        describe(source)
