"""Refused input: one sentence that names what is at fault, an exit code, and an output that stays as it was."""

from __future__ import annotations

import json
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from bigdeconv import pipeline, psf
from bigdeconv.config import make_config
from bigdeconv.errors import InvalidInputError
from tests import make
from tests.make import RL, bigdeconv, psf_tiff, scene, volume

GAUSSIAN = psf.gaussian(make.SIGMA_ZYX, truncate=3.0)


def missing_input(folder):
    return {"input": folder / "nowhere.zarr"}, ("nowhere.zarr", "does not exist", "OME-Zarr")


def empty_folder(folder):
    (folder / "empty").mkdir()
    return {"input": folder / "empty"}, ("empty", "is not an OME-Zarr image", "zarr.json or .zattrs")


def file_for_a_folder(folder):
    return {"input": psf_tiff(folder / "in.tif")}, ("in.tif", "is no folder", "OME-Zarr")


def array_for_an_image(folder):
    image = volume(folder / "more.zarr", scene(8, 16, 16))
    return {"input": image / "0"}, ("more.zarr/0", "not an OME-Zarr image", "give the group")


def group_without_multiscales(folder):
    image = volume(folder / "bare.zarr", scene(8, 16, 16))
    metadata = json.loads((image / "zarr.json").read_text())
    del metadata["attributes"]["ome"]
    (image / "zarr.json").write_text(json.dumps(metadata))
    return {"input": image}, ("bare.zarr", "holds no multiscales", "give the group of one image")


def unreadable_group(folder):
    image = volume(folder / "torn.zarr", scene(8, 16, 16))
    (image / "zarr.json").write_text('{"zarr_format": 3, "node_')
    return {"input": image}, ("cannot open", "torn.zarr")


def unreadable_array(folder):
    image = volume(folder / "torn.zarr", scene(8, 16, 16))
    (image / "0" / "zarr.json").write_bytes(b"\xff\xfe\x00")
    return {"input": image}, ("cannot open array '0'", "torn.zarr")


def missing_array(folder):
    image = volume(folder / "hollow.zarr", scene(8, 16, 16))
    shutil.rmtree(image / "0")
    return {"input": image}, ("cannot open array '0'", "hollow.zarr")


def missing_level(folder):
    return {"flags": ("--level", "3")}, ("level is 3", "levels 0 to 0")


def no_voxel_size(folder):
    return {"input": volume(folder / "raw.zarr", scene(8, 16, 16), units=False)}, (
        "raw.zarr",
        "no usable voxel size",
        "--voxel-um Z,Y,X",
    )


def strange_axis(folder):
    image = volume(folder / "views.zarr", scene(2, 8, 16, 16), axes="vzyx")
    return {"input": image}, ("'v'", "t, c, z, y, x", "--views-axis v")


def no_such_axis(folder):
    return {"flags": ("--views-axis", "w")}, ("views-axis", "'w'", "z, y, x")


def no_such_channel(folder):
    return {"flags": ("--channels", "0,2")}, ("channels", "got 2", "has 1")


def no_such_timepoint(folder):
    return {"flags": ("--timepoints", "3")}, ("timepoints", "got 3", "has 1")


def region_outside(folder):
    return {"flags": ("--roi", "0:9,:,:")}, ("roi", "(9, 32, 32)", "inside the volume of (8, 32, 32)")


def region_turned_round(folder):
    return {"flags": ("--roi", "6:2,:,:")}, ("roi", "6", "2", "inside the volume")


def no_psf(folder):
    return {"psf": None}, ("psf: missing", "--psf FILE (TIFF or .npy)", "for no blur")


def missing_psf(folder):
    return {"psf": folder / "none.tif"}, ("psf", "none.tif", "give a TIFF or .npy file")


def text_for_a_psf(folder):
    (folder / "notes.tif").write_text("the PSF is in the drawer")
    return {"psf": folder / "notes.tif"}, ("psf", "notes.tif", "cannot be read")


def truncated_psf(folder):
    file = psf_tiff(folder / "cut.tif")
    file.write_bytes(file.read_bytes()[:-2000])
    return {"psf": file}, ("psf", "cut.tif", "cannot be read")


def truncated_npy(folder):
    np.save(folder / "cut.npy", GAUSSIAN)
    (folder / "cut.npy").write_bytes((folder / "cut.npy").read_bytes()[:-200])
    return {"psf": folder / "cut.npy"}, ("psf", "cut.npy", "cannot be read")


def pickled_psf(folder):
    np.save(folder / "evil.npy", np.array([make.Touch(folder / "was here")], dtype=object), allow_pickle=True)
    return {"psf": folder / "evil.npy"}, ("psf", "evil.npy", "cannot be read")


def complex_psf(folder):
    np.save(folder / "otf.npy", GAUSSIAN.astype(np.complex64))
    return {"psf": folder / "otf.npy"}, ("psf", "complex64", "real numbers")


def broken_psf(name, kernel, *words):
    def case(folder):
        return {"psf": psf_tiff(folder / "bad.tif", kernel.astype(np.float32))}, ("psf bad.tif", *words)

    case.__name__ = name
    return case


def planted(value):
    kernel = GAUSSIAN.copy()
    kernel[1, 2, 3] = value
    return kernel


def as_npy(name, array, *words):
    def case(folder):
        np.save(folder / "bad.npy", array)
        return {"psf": folder / "bad.npy"}, ("psf bad.npy", *words)

    case.__name__ = name
    return case


def views_for_one(folder):
    return {"psf": psf_tiff(folder / "views.tif", np.stack([GAUSSIAN] * 3))}, (
        "'views.tif' holds 3 views, the data 1",
        "--views-axis",
    )


def wider_psf(folder):
    return {"psf": psf_tiff(folder / "wide.tif", np.ones((3, 41, 41), np.float32))}, (
        "psf wide.tif",
        "41,41",
        "the volume's 32,32",
        "crop the PSF",
    )


def psf_of_another_channel(folder):
    return {"psf": f"C1={psf_tiff(folder / 'one.tif')}"}, ("psf", "for channel 1,", "the job does not have")


def block_off_the_chunks(folder):
    return {"flags": ("--block-shape", "8,24,24", "--chunks", "8,16,16")}, (
        "block-shape",
        "8,24,24",
        "8,16,16",
        "multiple of the chunk",
    )


def blend_wider_than_the_core(folder):
    return {"flags": ("--block-shape", "8,16,16", "--blend", "0,9,9")}, (
        "blend",
        "0,9,9",
        "8,16,16",
        "lower --blend or raise --block-shape",
    )


def no_memory(folder):
    return {"flags": ("--memory", "100MiB")}, (
        "memory",
        r"needs 0\.[47]\d GiB",
        "its budget is 0.10 GiB",
        r"--memory 0\.\d\dGiB would fit",
    )


def no_memory_for_the_block(folder):
    return {"flags": ("--memory", "450MiB", "--block-shape", "8,16,16", "--halo", "8,16,16")}, (
        "memory: a block of 8,16,16 with its halo of 8,16,16 needs",
        "its budget is 0.44 GiB",
        "--memory 0.",
    )


def no_such_model(folder):
    return {"flags": ("--model", "tubes9000", "--method", "garl")}, (
        "model",
        "'tubes9000'",
        "neither a file nor a shipped model",
        "one of compact, large, finite-differences",
    )


def text_for_a_model(folder):
    (folder / "model.safetensors").write_text("the weights are in the drawer")
    return {"flags": ("--model", folder / "model.safetensors", "--method", "garl")}, (
        "model.safetensors",
        "is not a safetensors file",
        "bigdeconv model import",
    )


def empty_model(folder):
    (folder / "model.safetensors").touch()
    return {"flags": ("--model", folder / "model.safetensors", "--method", "garl")}, ("is not a safetensors file",)


def folder_for_a_model(folder):
    (folder / "model").mkdir()
    return {"flags": ("--model", folder / "model", "--method", "garl")}, ("model", "give the path of a model file")


def pickle_for_a_model(folder):
    (folder / "model.pkl").write_bytes(pickle.dumps(make.Touch(folder / "was here")))
    return {"flags": ("--model", folder / "model.pkl", "--method", "garl")}, ("model.pkl", "is not a safetensors file")


def checkpoint_for_a_model(folder):
    torch.save({"state_dict": make.Touch(folder / "was here")}, folder / "model.pth")
    return {"flags": ("--model", folder / "model.pth", "--method", "garl")}, ("model.pth", "is not a safetensors file")


def weights_of_others(folder):
    save_file({"layer0": np.zeros((3, 1, 3, 3, 3), np.float32)}, folder / "unet.safetensors")
    return {"flags": ("--model", folder / "unet.safetensors", "--method", "garl")}, (
        "unet.safetensors",
        "format None, expected 'bigdeconv-wcrr-1'",
    )


def incomplete_model(folder):
    metadata = {"format": "bigdeconv-wcrr-1", "config": "{}", "card": "{}"}
    save_file({"scaling": np.zeros((3, 2), np.float32)}, folder / "half.safetensors", metadata)
    return {"flags": ("--model", folder / "half.safetensors", "--method", "garl")}, ("half.safetensors", "incomplete")


REFUSED = [
    missing_input,
    empty_folder,
    file_for_a_folder,
    array_for_an_image,
    group_without_multiscales,
    unreadable_group,
    unreadable_array,
    missing_array,
    missing_level,
    no_voxel_size,
    strange_axis,
    no_such_axis,
    no_such_channel,
    no_such_timepoint,
    region_outside,
    region_turned_round,
    no_psf,
    missing_psf,
    text_for_a_psf,
    truncated_psf,
    truncated_npy,
    pickled_psf,
    complex_psf,
    broken_psf("psf_with_nan", planted(np.nan), "NaN or infinity in 1 voxels", "finite numbers"),
    broken_psf("psf_with_infinity", planted(np.inf), "NaN or infinity in 1 voxels"),
    broken_psf(
        "psf_all_zero", np.zeros((3, 5, 5)), "got only zeros", "expected a PSF with positive voxels", "Check the file"
    ),
    broken_psf(
        "psf_with_negative_sum", GAUSSIAN - 0.1, "got a sum of -", "expected a positive one", "Subtract less background"
    ),
    as_npy("psf_with_one_axis", np.ones(5, np.float32), "shape (5,)", "z y x or v z y x"),
    as_npy("psf_with_five_axes", np.ones((1, 1, 3, 3, 3), np.float32), "shape (1, 1, 3, 3, 3)", "Select one channel"),
    as_npy("psf_of_nothing", np.ones((0, 3, 3), np.float32), "shape (0, 3, 3)", "without an empty axis"),
    views_for_one,
    wider_psf,
    psf_of_another_channel,
    block_off_the_chunks,
    blend_wider_than_the_core,
    no_memory,
    no_memory_for_the_block,
    no_such_model,
    text_for_a_model,
    empty_model,
    folder_for_a_model,
    pickle_for_a_model,
    checkpoint_for_a_model,
    weights_of_others,
    incomplete_model,
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.__name__)
def test_bad_input_is_refused_in_one_sentence_and_nothing_changes(case, tmp_path, monkeypatch):
    monkeypatch.setattr("bigdeconv.pipeline.connect", lambda *_, **__: pytest.fail("it was not refused"))
    folder = tmp_path / "user"
    folder.mkdir()
    changed, words = case(folder)
    image = changed.get("input") or volume(folder / "in.zarr", scene(8, 32, 32))
    kernel = changed.get("psf", folder / "psf.tif")
    psf_tiff(folder / "psf.tif")
    job = (*(("--psf", kernel) if kernel else ()), *RL, *changed.get("flags", ()))
    existing = volume(folder / "out.zarr", scene(4, 8, 8))
    before = make.snapshot(tmp_path)
    for command in (
        ("run", image, folder / "new.zarr", *job),
        ("run", image, existing, *job, "--overwrite"),
        ("run", image, folder / "new.zarr", *job, "--dry-run"),
        ("plan", image, *job),
    ):
        result = bigdeconv(*command)
        assert result.exit_code == 3, result.stderr
        assert result.stdout == ""
        assert result.stderr.startswith("bigdeconv: ")
        for word in words:
            assert re.search(word if "\\" in word else re.escape(word), result.stderr), (word, result.stderr)
        # One sentence, not a page.
        assert result.stderr.count("\n") == 1
        assert len(result.stderr) < 600
    result = bigdeconv("run", image, folder / "new.zarr", *job, "--json")
    assert json.loads(result.stdout) == {"error": json.loads(result.stdout)["error"], "exit_code": 3}
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""
    assert make.snapshot(tmp_path) == before


@pytest.mark.parametrize("location", ["s3://bucket/out.zarr", "https://example.invalid/out.zarr"])
def test_an_output_that_is_no_local_path_is_refused(location, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, kernel = volume(tmp_path / "in.zarr", scene(8, 16, 16)), psf_tiff(tmp_path / "psf.tif")
    before = make.snapshot(tmp_path)
    result = bigdeconv("run", image, location, "--psf", kernel, *RL)
    assert result.exit_code == 3
    assert location in result.stderr
    assert "must be a local path" in result.stderr
    assert make.snapshot(tmp_path) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    image, kernel = volume(tmp_path / "in.zarr", scene(8, 16, 16)), psf_tiff(tmp_path / "psf.tif")
    result = bigdeconv("plan", image, "--psf", kernel, *RL, "--device", "cuda")
    assert result.exit_code == 3
    assert "device: got cuda" in result.stderr
    assert "--device cpu or auto" in result.stderr


@pytest.mark.parametrize("as_given", ["file://{}", "{}"])
def test_overwriting_never_removes_what_is_read(tmp_path, as_given):
    """The input may be named as a path, as a URL of a file, or as the mask beside another input."""
    make.volume(tmp_path / "input.zarr", make.scene(16, 24, 24))
    make.volume(tmp_path / "other.zarr", make.scene(16, 24, 24))
    make.psf_tiff(tmp_path / "psf.tif", psf.gaussian((1.0, 1.0, 1.0)))
    before = make.snapshot(tmp_path / "input.zarr")
    common = {"output": str(tmp_path / "input.zarr"), "psf": (str(tmp_path / "psf.tif"),), "method": "rl"}
    located = as_given.format(tmp_path / "input.zarr")
    for job in ({"input": located}, {"input": str(tmp_path / "other.zarr"), "mask": located}):
        with pytest.raises(InvalidInputError, match="holds or lies in the input"):
            pipeline.run(make_config(common | job), overwrite=True)
    assert make.snapshot(tmp_path / "input.zarr") == before
