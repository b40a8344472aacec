"""Bad input: one clear sentence that names what is at fault, an exit code, and an output that stays as it was."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from bigdeconv import pipeline, psf
from bigdeconv.config import make_config
from bigdeconv.errors import InvalidInputError
from bigdeconv.storage.ledger import ledger_path
from tests import make
from tests.make import RL, bigdeconv, plan_of, psf_tiff, scene, volume

GAUSSIAN = psf.gaussian(make.SIGMA_ZYX, truncate=3.0)
ONE_BLOCK = ("--halo", "2,4,4")


class Touch:
    """Something that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


# --- refused ----------------------------------------------------------------------------------------------------------


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
    return {"psf": None}, ("psf: is missing", "--psf FILE")


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
    np.save(folder / "evil.npy", np.array([Touch(folder / "was here")], dtype=object), allow_pickle=True)
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
        r"needs 0\.4\d GiB",
        "allowed are 0.10 GiB",
        r"--memory 0\.\d\dGiB would do",
    )


def no_memory_for_the_block(folder):
    return {"flags": ("--memory", "450MiB", "--block-shape", "8,16,16", "--halo", "8,16,16")}, (
        "memory: a block of 8,16,16 with its halo of 8,16,16 needs",
        "allowed are 0.44 GiB",
        "--memory 0.",
    )


def no_such_model(folder):
    return {"flags": ("--model", "tubes9000", "--method", "garl")}, (
        "model",
        "'tubes9000'",
        "shipped: compact, large, standin",
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
    (folder / "model.pkl").write_bytes(pickle.dumps(Touch(folder / "was here")))
    return {"flags": ("--model", folder / "model.pkl", "--method", "garl")}, ("model.pkl", "is not a safetensors file")


def checkpoint_for_a_model(folder):
    torch.save({"state_dict": Touch(folder / "was here")}, folder / "model.pth")
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
    broken_psf("psf_all_zero", np.zeros((3, 5, 5)), "only zeros", "check the file"),
    broken_psf("psf_with_negative_sum", GAUSSIAN - 0.1, "got a sum of -", "allowed is a positive one"),
    as_npy("psf_with_one_axis", np.ones(5, np.float32), "shape (5,)", "z y x or v z y x"),
    as_npy("psf_with_five_axes", np.ones((1, 1, 3, 3, 3), np.float32), "shape (1, 1, 3, 3, 3)", "select one channel"),
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
    monkeypatch.setattr("bigdeconv.pipeline.connect", lambda *_: pytest.fail("it was not refused"))
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


# --- mended -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, cluster_address):
    """Run a job on an array: return the output, the summary, and what was said on the way."""

    def run(data, *flags, kernel=GAUSSIAN, exit_code=0, **image):
        source = volume(tmp_path / "in.zarr", data, **image)
        output = tmp_path / "out.zarr"
        job = (source, output, "--psf", psf_tiff(tmp_path / "psf.tif", kernel), *RL, *flags)
        result = bigdeconv("run", *job, "--scheduler", cluster_address)
        assert result.exit_code == exit_code, result.stderr
        quiet = bigdeconv("run", *job, "--scheduler", cluster_address, "--overwrite", "--json")
        summary = json.loads(quiet.stdout)
        assert bigdeconv("validate", output, "--deep").exit_code == 0
        stored = make.pixels(output)
        assert stored.shape == data.shape
        assert np.isfinite(stored).all()
        return output, summary, result

    return run


@pytest.fixture
def clean(run, tmp_path):
    """Run a job on an array first, to compare with."""

    def clean(data, *flags):
        output, _, _ = run(data, *flags)
        stored = make.pixels(output).astype(float)
        for path in (output, ledger_path(output), tmp_path / "in.zarr"):
            shutil.rmtree(path)
        return stored

    return clean


def shifted(kernel, by):
    return np.roll(np.pad(kernel, 3), by, axis=(0, 1, 2))


def with_negatives(kernel):
    return np.where(kernel < 0.02 * kernel.max(), kernel - 0.02 * kernel.max(), kernel)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("kernel", "flags", "words"),
    {
        "negative": (with_negatives(GAUSSIAN), (), "negative voxels"),
        "off-centre": (shifted(GAUSSIAN, (1, 0, -2)), (), "moved by -1.00,0.00,2.00 voxels"),
        "other voxels": (GAUSSIAN, ("--psf-voxel-um", "0.15,0.1,0.1"), "resampled from voxels of 0.15,0.1,0.1 µm"),
    }.values(),
    ids=["negative", "off-centre", "other voxels"],
)
def test_a_psf_that_can_be_mended_is_mended_and_that_is_said_and_recorded(kernel, flags, words, run):
    output, summary, result = run(scene(8, 32, 32), *flags, kernel=kernel)
    assert re.search(rf"^warning: psf psf\.tif: {words}", result.stderr, re.MULTILINE)
    assert any(words in w for w in summary["warnings"])
    assert any(words in w for w in plan_of(output)["warnings"])


@pytest.mark.cluster
def test_a_psf_off_centre_gives_what_the_centred_one_gives(run, clean):
    expected = clean(scene(8, 32, 32), "--output-scale", "8")
    output, _, _ = run(scene(8, 32, 32), "--output-scale", "8", kernel=shifted(GAUSSIAN, (1, 0, -2)))
    assert np.abs(make.pixels(output) - expected).max() <= 1


def test_blocks_grow_with_a_psf_that_is_wider_than_they_would_be(tmp_path):
    """With memory for more, a block is never narrower than the PSF; with too little, the error says how much it takes."""
    data = np.zeros((16, 256, 256), np.uint16)
    image, wide = volume(tmp_path / "in.zarr", data), np.ones((3, 91, 91), np.float32)
    job = ("plan", image, "--psf", psf_tiff(tmp_path / "psf.tif", wide), *RL, "--json")
    plan = json.loads(bigdeconv(*job).stdout)
    assert all(b >= p for b, p in zip(plan["block_shape"], [3, 91, 91], strict=True))
    result = bigdeconv(*job, "--memory", "460MiB")
    assert result.exit_code == 3
    assert re.search(r"needs 0\.\d\d GiB per worker, allowed are 0\.45 GiB", json.loads(result.stdout)["error"])


@pytest.mark.cluster
def test_a_block_smaller_than_the_psf_runs(run):
    wide = psf.gaussian((1.0, 4.0, 4.0), truncate=3.0)
    output, summary, _ = run(scene(8, 32, 32), "--block-shape", "8,16,16", kernel=wide)
    assert max(plan_of(output)["plans"][0]["psf_shape"]) > 16
    assert summary["blocks_total"] == 4


@pytest.mark.cluster
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_what_is_not_finite_has_no_weight_and_is_counted(value, run, clean):
    data = scene(8, 32, 32, dtype="float32")
    expected = clean(data, *ONE_BLOCK)
    data[3, 10:12, 10:12] = value
    output, summary, result = run(data, *ONE_BLOCK)
    assert summary["counts"] == {"not_finite": 4}
    assert "4 voxels not finite" in result.stdout
    assert make.pixels(output).max() < 1.2 * expected.max()
    # Far from the hole nothing has changed but the estimates of background and scale.
    assert np.allclose(make.pixels(output)[:, 24:, 24:], expected[:, 24:, 24:], rtol=0.2, atol=5)


@pytest.mark.cluster
def test_fill_of_a_mosaic_has_no_weight_and_is_counted(run, clean):
    data = scene(8, 32, 48, background=100)
    expected = clean(data, *ONE_BLOCK, "--dtype", "float32")
    data[:, :, 36:] = 0
    output, summary, result = run(data, *ONE_BLOCK, "--dtype", "float32")
    assert summary["counts"] == {"fill": 8 * 32 * 12}
    assert f"{8 * 32 * 12} voxels fill" in result.stdout
    rim = np.s_[:, :, 33:36]
    assert make.pixels(output)[rim].max() < 1.5 * expected[rim].max() + 20


@pytest.mark.cluster
def test_hot_pixels_have_no_weight_and_are_counted(run, clean):
    data = scene(8, 32, 48)
    expected = clean(data, *ONE_BLOCK, "--dtype", "float32")
    hot = ([2, 4, 6], [5, 20, 26], [40, 9, 30])
    data[hot] = 4000
    output, summary, result = run(data, *ONE_BLOCK, "--dtype", "float32")
    assert summary["counts"] == {"hot": 3}
    assert "3 voxels hot" in result.stdout
    assert make.pixels(output)[hot].max() < 1.2 * expected.max()


@pytest.mark.cluster
def test_a_voxel_in_the_halo_of_another_block_is_counted_once(run):
    data = scene(8, 32, 64, dtype="float32")
    data[4, 16, 31:34] = np.nan
    _, summary, _ = run(data, *ONE_BLOCK, "--block-shape", "8,32,32")
    assert summary["blocks_total"] == 2
    assert summary["counts"] == {"not_finite": 3}


@pytest.mark.cluster
def test_without_a_mask_fill_and_hot_pixels_are_data(run):
    data = scene(8, 32, 48, background=100)
    data[:, :, 36:] = 0
    data[4, 16, 16] = 4000
    _, summary, _ = run(data, *ONE_BLOCK, "--mask", "none")
    assert summary["counts"] == {}


@pytest.mark.cluster
@pytest.mark.parametrize(("share", "warned"), [(0.05, True), (0.005, False)], ids=["5 %", "0.5 %"])
def test_negative_pixels_count_as_zero_and_many_are_warned_of(share, warned, run):
    data = scene(8, 32, 32) + np.uint16(100)
    below = np.random.default_rng(1).choice(data.size, int(share * data.size), replace=False)
    data.ravel()[below] = 60
    output, summary, result = run(data, *ONE_BLOCK, "--camera-offset", "100")
    assert summary["counts"] == {"negative": len(below)}
    assert f"{len(below)} voxels negative" in result.stdout
    said = [w for w in summary["warnings"] if "below the camera offset" in w]
    assert len(said) == warned  # once
    if warned:
        assert re.search(r"5\.0 % of .* voxels lie below the camera offset; check --camera-offset", said[0])
        assert "--camera-offset" in said[0]
        assert result.stderr.count("below the camera offset") == 1
        assert any("camera offset" in w for w in plan_of(output)["warnings"])


@pytest.mark.cluster
def test_negative_values_of_floating_point_are_counted_too(run):
    data = scene(8, 32, 32, dtype="float32")
    data[:, :2] = -5
    _, summary, _ = run(data, *ONE_BLOCK)
    assert summary["counts"] == {"negative": 8 * 2 * 32}
    assert any("6.2 %" in w for w in summary["warnings"])


@pytest.mark.cluster
@pytest.mark.parametrize(("level", "method"), [(0, "rl"), (0, "garl"), (100, "rl"), (100, "rltv")])
def test_a_volume_without_anything_in_it_is_written_with_a_warning(level, method, run):
    output, summary, result = run(np.full((8, 32, 32), level, np.uint16), "--method", method, "--iterations", "30")
    assert re.search(r"^warning: Channel 0: The volume looks constant or empty", result.stderr, re.MULTILINE)
    assert any("constant or empty" in w for w in summary["warnings"])
    assert any("constant or empty" in w for w in plan_of(output)["warnings"])
    assert summary["complete"]
    # What is there is background, save the little that its estimate leaves.
    assert make.pixels(output).max() <= 5 * plan_of(output)["channels"]["0"]["output_scale"]


@pytest.mark.cluster
def test_a_volume_of_nothing_but_nan_is_written_with_a_warning(run):
    output, summary, _ = run(np.full((8, 32, 32), np.nan, np.float32))
    assert any("constant or empty" in w for w in summary["warnings"])
    assert (summary["blocks_skipped"], summary["counts"]) == (1, {"not_finite": 8 * 32 * 32})
    assert not make.pixels(output).any()


# --- other shapes -----------------------------------------------------------------------------------------------------


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("shape", "kernel", "method"),
    {
        "2-D": ((48, 40), GAUSSIAN[3], "rl"),
        "2-D, learned": ((48, 40), GAUSSIAN[3], "garl"),
        "2-D with a 3-D PSF": ((48, 40), GAUSSIAN, "rltv"),
        "one plane": ((1, 48, 40), GAUSSIAN, "rl"),
        "thinner than the PSF": ((3, 48, 40), GAUSSIAN, "rl"),
        "thinner, learned": ((3, 48, 40), GAUSSIAN, "garl"),
    }.values(),
    ids=["2-D", "2-D, learned", "2-D with a 3-D PSF", "one plane", "thinner than the PSF", "thinner, learned"],
)
def test_flat_and_thin_volumes_work(shape, kernel, method, run):
    data = scene(*shape)
    output, summary, _ = run(data, "--method", method, kernel=kernel)
    assert summary["complete"]
    scale = plan_of(output)["channels"]["0"]["output_scale"]
    stored = make.pixels(output) / scale
    # It has become sharper, and holds the light above the background.
    assert stored.max() > data.max() - 20
    assert stored.sum() == pytest.approx((data - 20.0).clip(0).sum(), rel=0.5)


@pytest.mark.cluster
def test_a_voxel_size_given_by_hand_is_taken_and_written(run):
    output, _, _ = run(scene(8, 32, 32), "--voxel-um", "0.5,0.2,0.2", units=False)
    image = json.loads((output / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    assert image["datasets"][0]["coordinateTransformations"][0]["scale"] == [0.5, 0.2, 0.2]
    assert {a["unit"] for a in image["axes"]} == {"micrometer"}


@pytest.mark.cluster
def test_voxels_that_are_clipped_are_counted_and_warned_of(run):
    output, summary, result = run(scene(8, 32, 32), *ONE_BLOCK, "--output-scale", "500")
    clipped = summary["counts"]["clipped"]
    assert clipped == np.count_nonzero(make.pixels(output) == 65535) > 0
    assert any(f"{clipped} voxels" in w and "--output-scale" in w for w in summary["warnings"])
    assert f"{clipped} voxels clipped" in result.stdout
    assert "lower --output-scale" in result.stderr


@pytest.mark.parametrize("as_given", ["file://{}", "{}"])
def test_overwriting_never_removes_what_is_read(tmp_path, as_given):
    """However the input is named: as a path, as a URL of a file, or as the mask beside another input."""
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
