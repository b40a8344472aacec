"""Other tools read the output, and their images are read here."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from bigdeconv.geometry import Box
from bigdeconv.storage.arrays import read_box
from bigdeconv.storage.omezarr import describe
from bigdeconv.storage.validation import validate
from tests.storage.images import ORIGIN, VOXEL, make

pytestmark = pytest.mark.slow


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
