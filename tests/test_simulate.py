"""``bigdeconv simulate``: files equal the arrays of the functions, seeds reproduce bytes, and runs accept the files."""

import json

import numpy as np
import pytest
import tifffile
import zarr

from bigdeconv import psf, simulation
from bigdeconv.errors import BudgetError, InvalidInputError, OutputExistsError, StoreError
from bigdeconv.simulation import samples, volumes
from bigdeconv.storage import arrays, omezarr, output, validation
from tests import make
from tests.make import bigdeconv, pixels

SHAPE = (12, 32, 40)
VOXEL_UM = (0.2, 0.08, 0.08)
TUBES = ("--shape", "12,32,40", "--voxel-um", "0.2,0.08,0.08", "--sigma-um", "0.15")


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """A sample that no test writes to."""
    path = tmp_path_factory.mktemp("truth") / "truth.zarr"
    result = bigdeconv("simulate", "tubes", path, *TUBES, "--seed", 3, "--count", "5:6", "--outer-radius-um", "0.1:0.3")
    assert result.exit_code == 0, result.stderr
    return path


@pytest.fixture
def kernel(tmp_path):
    """One PSF and its file."""
    array = psf.gaussian(make.SIGMA_ZYX)
    return array, make.psf_tiff(tmp_path / "psf.tif", array)


# --- samples ----------------------------------------------------------------------------------------------------------


def test_tubes_equal_the_arrays_of_the_functions(truth):
    extent_um = [n * v for n, v in zip(SHAPE, VOXEL_UM, strict=True)]
    specimen = simulation.tubes(3, extent_um, count=(5, 6), outer_radius_um=(0.1, 0.3), sigma_um=0.15)
    expected = simulation.sample(specimen, SHAPE, VOXEL_UM, peak_one=True)
    assert pixels(truth).tobytes() == expected.tobytes()
    volume = omezarr.describe(truth)
    assert (volume.axes, volume.voxel_zyx_um, volume.units) == (tuple("zyx"), VOXEL_UM, ("micrometer",) * 3)
    assert validation.validate(truth, deep=True) == []


def test_the_calibration_sample_equals_the_array_of_the_function(tmp_path):
    path = tmp_path / "target.zarr"
    result = bigdeconv("simulate", "tubes", path, "--kind", "calibration", *TUBES[:4])
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"Wrote {path}: z,y,x = 12,32,40, float32\n"
    np.testing.assert_array_equal(pixels(path), simulation.calibration_target(SHAPE, VOXEL_UM))


def test_dark_chunks_have_files(tmp_path, kernel):
    """A run takes a chunk without one for lost."""
    sample, image = tmp_path / "sample.zarr", tmp_path / "image.zarr"
    grid = ("--shape", "8,192,192", "--voxel-um", "0.1,0.1,0.1", "--count", "1:1", "--sigma-um", "0.15")
    for command in (
        ("tubes", sample, *grid),
        ("acquire", sample, image, "--psf", kernel[1], "--photons", 5, "--background", 0),
    ):
        result = bigdeconv("simulate", *command)
        assert result.exit_code == 0, result.stderr
    stored = pixels(image)
    assert any(not stored[:, y : y + 64, x : x + 64].any() for y in (0, 64, 128) for x in (0, 64, 128))
    assert len([path for path in (image / "0" / "c").rglob("*") if path.is_file()]) == 36


def test_seeds_reproduce_bytes(tmp_path, kernel):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        sample, image = tmp_path / name / "sample.zarr", tmp_path / name / "image.zarr"
        assert bigdeconv("simulate", "tubes", sample, *TUBES, "--seed", seed).exit_code == 0
        assert bigdeconv("simulate", "acquire", tmp_path / "a" / "sample.zarr", image, "--psf", kernel[1],
                         "--seed", seed).exit_code == 0  # fmt: skip
    for image in ("sample.zarr", "image.zarr"):
        assert make.snapshot(tmp_path / "a" / image) == make.snapshot(tmp_path / "b" / image)
        assert (pixels(tmp_path / "a" / image) != pixels(tmp_path / "c" / image)).any()


def test_a_coarse_grid_is_remarked_upon(tmp_path):
    result = bigdeconv("simulate", "tubes", tmp_path / "a.zarr", *TUBES[:4], "--sigma-um", 0.1)
    assert result.exit_code == 0
    assert "wider than 1.4 sigma" in result.stderr
    assert "0.14 µm" in result.stderr


def test_the_defaults_of_the_help_are_those_of_the_command(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        simulation, "write_tubes", lambda *a, **k: seen.update(args=a, **k) or simulation.Written((), (), "")
    )
    assert bigdeconv("simulate", "tubes", tmp_path / "a.zarr").exit_code == 0
    assert seen.pop("args")[1:] == ((64, 256, 256), (0.1, 0.05, 0.05))
    assert seen == {"seed": 0, "count": (4, 12), "outer_radius_um": (0.05, 0.2), "sigma_um": 0.075}


# --- images -----------------------------------------------------------------------------------------------------------


def test_an_acquisition_equals_the_array_of_the_function(truth, tmp_path, kernel):
    path = tmp_path / "image.zarr"
    camera = ("--camera-offset", 100, "--gain", 0.5, "--read-noise", 1.5)
    light = ("--photons", 80, "--background", 3, "--seed", 9)
    result = bigdeconv("simulate", "acquire", truth, path, "--psf", kernel[1], *light, *camera)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"Wrote {path}: z,y,x = 12,32,40, uint16\n"
    expected = simulation.acquire(
        pixels(truth), kernel[0], photons=80, background=3, seed=9, offset=100, gain=0.5, read_noise=1.5
    )
    np.testing.assert_array_equal(pixels(path), expected)
    assert omezarr.describe(path).voxel_zyx_um == VOXEL_UM
    assert validation.validate(path, deep=True) == []
    made_of = zarr.open_group(path, mode="r").attrs["bigdeconv"]["simulation"]
    assert (made_of["kind"], made_of["photons"], made_of["camera"]["gain"]) == ("acquisition", 80, 0.5)


def test_views_lie_along_the_axis_v_and_a_run_can_be_planned(truth, tmp_path):
    path, file = tmp_path / "views.zarr", tmp_path / "detector.tif"
    result = bigdeconv("simulate", "acquire", truth, path, "--airyscan", 5, "--save-psf", file, "--seed", 2)
    assert result.exit_code == 0, result.stderr
    psf_views = psf.airyscan(voxel_zyx_um=VOXEL_UM, n_views=5)
    np.testing.assert_array_equal(tifffile.imread(file), psf_views)
    np.testing.assert_array_equal(pixels(path), simulation.acquire(pixels(truth), psf_views, photons=100, seed=2))
    volume = omezarr.describe(path)
    assert volume.axes == ("v", "z", "y", "x")
    assert volume.chunk_shape[0] == 1
    assert validation.validate(path, deep=True) == []
    plan = bigdeconv("plan", path, "--psf", file, "--views-axis", "v", "--method", "rl", "--device", "cpu", "--json")
    assert plan.exit_code == 0, plan.stdout
    assert json.loads(plan.stdout)["views"] == 5


def test_views_of_a_file_are_summed_for_a_confocal_image(truth, tmp_path):
    psf_views = psf.airyscan(voxel_zyx_um=VOXEL_UM, n_views=7)
    np.save(tmp_path / "views.npy", psf_views)
    path, file = tmp_path / "confocal.zarr", tmp_path / "sum.npy"
    result = bigdeconv(
        "simulate", "acquire", truth, path, "--psf", tmp_path / "views.npy", "--confocal", "--save-psf", file
    )
    assert result.exit_code == 0, result.stderr
    views = simulation.acquire(pixels(truth), psf_views, photons=100, seed=0)
    np.testing.assert_array_equal(pixels(path), simulation.confocal(views))
    np.testing.assert_array_equal(np.load(file), psf_views.sum(axis=0))
    plan = bigdeconv("plan", path, "--psf", file, "--method", "rl", "--device", "cpu", "--json")
    assert plan.exit_code == 0, plan.stdout


def test_one_view_has_no_axis_of_views(truth, tmp_path):
    result = bigdeconv("simulate", "acquire", truth, tmp_path / "a.zarr", "--airyscan", 1)
    assert result.exit_code == 0, result.stderr
    assert omezarr.describe(tmp_path / "a.zarr").axes == ("z", "y", "x")


def test_a_psf_that_a_run_would_correct_is_used_as_corrected(truth, tmp_path, kernel):
    moved = np.pad(kernel[0], [(0, 0), (0, 0), (0, 6)])
    path, file = tmp_path / "image.zarr", make.psf_tiff(tmp_path / "moved.tif", moved)
    result = bigdeconv("simulate", "acquire", truth, path, "--psf", file)
    assert result.exit_code == 0, result.stderr
    assert "to the centre" in result.stderr
    corrected = psf.prepare(moved, voxel_zyx_um=VOXEL_UM).views[0]
    np.testing.assert_array_equal(pixels(path), simulation.acquire(pixels(truth), corrected, photons=100, seed=0))


def test_saturation_is_counted(truth, tmp_path, kernel):
    path = tmp_path / "image.zarr"
    result = bigdeconv("simulate", "acquire", truth, path, "--psf", kernel[1], "--photons", 1e5)
    assert result.exit_code == 0
    n = np.count_nonzero(pixels(path) == 65535)
    assert n > 0
    assert f"{n} voxels are saturated at 65535 counts" in result.stderr


def test_position_and_other_units_are_carried_over(tmp_path, kernel):
    data = np.zeros((4, 20, 20), np.float32)
    data[2, 10, 10] = 1
    level = output.LevelSpec(data.shape, data.shape, None, (300.0, 100.0, 100.0), (600.0, 0.0, 50.0))
    spec = output.OutputSpec(tuple("zyx"), ("nanometer",) * 3, data.dtype.str, (level,), "0.4", "nm", (), {})
    output.create_output(tmp_path / "truth.zarr", spec)
    arrays.write_region(tmp_path / "truth.zarr", "0", (slice(None),) * 3, data)
    result = bigdeconv("simulate", "acquire", tmp_path / "truth.zarr", tmp_path / "a.zarr", "--psf", kernel[1])
    assert result.exit_code == 0, result.stderr
    volume = omezarr.describe(tmp_path / "a.zarr")
    np.testing.assert_allclose(volume.voxel_zyx_um, (0.3, 0.1, 0.1))
    np.testing.assert_allclose(volume.translation_zyx_um, (0.6, 0.0, 0.05))


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--shape", "12,32"),
            "shape: got '12,32'; expected three whole numbers of 1 or more, for example 64,256,256.",
        ),
        (("--shape", "12,32,0"), "shape: got '12,32,0'"),
        (("--shape", "12,3.5,9"), "shape: got '12,3.5,9'"),
        (("--voxel-um", "1,2,nan"), "voxel-um: got '1,2,nan'; expected three positive lengths"),
        (("--voxel-um", "0.1"), "voxel-um: got '0.1'"),
        (("--seed", "-1"), "seed: got -1; expected a number of 0 or more."),
        (("--count", "5"), "count: got '5'; expected two whole numbers, 1 <= A <= B, for example 4:12."),
        (("--count", "0:5"), "count: got '0:5'"),
        (("--count", "9:5"), "count: got '9:5'"),
        (("--outer-radius-um", "0.2:0.1"), "outer-radius-um: got '0.2:0.1'"),
        (("--outer-radius-um", "a:b"), "outer-radius-um: got 'a:b'"),
        (("--sigma-um", "0"), "sigma-um: got 0.0; expected a positive number."),
        (("--kind", "calibration", "--count", "1:2"), "count: the calibration sample is always the same; leave it out"),
    ],
)
def test_tubes_refuse_bad_values(tmp_path, arguments, message):
    result = bigdeconv("simulate", "tubes", tmp_path / "a.zarr", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"bigdeconv: {message}")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "psf, airyscan: one of the two is needed"),
        (("--psf", "a.tif", "--airyscan", "3"), "psf, airyscan: one of the two is needed"),
        (("--airyscan", "0"), "airyscan: got 0; expected 1 to 1000 elements, for example 32."),
        (("--airyscan", "3", "--photons", "-1"), "photons: got -1.0; expected a number of 0 or more."),
        (("--airyscan", "3", "--photons", "inf"), "photons: got inf"),
        (("--airyscan", "3", "--background", "nan"), "background: got nan"),
        (("--airyscan", "3", "--gain", "0"), "gain: got 0.0; expected a positive number."),
        (("--airyscan", "3", "--read-noise", "-2"), "read-noise: got -2.0"),
        (("--airyscan", "3", "--camera-offset", "inf"), "camera-offset: got inf; expected a finite number."),
        (("--airyscan", "3", "--seed", "-5"), "seed: got -5"),
        (("--airyscan", "3", "--voxel-um", "1,1"), "voxel-um: got '1,1'"),
    ],
)
def test_acquire_refuses_bad_values(truth, tmp_path, arguments, message):
    result = bigdeconv("simulate", "acquire", truth, tmp_path / "a.zarr", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"bigdeconv: {message}")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def _nan_psf(folder):
    bad = np.ones((3, 3, 3), np.float32)
    bad[0, 0, 0] = np.nan
    return make.psf_tiff(folder / "nan.tif", bad)


def _wide_psf(folder):
    return make.psf_tiff(folder / "wide.tif", psf.gaussian((1, 30, 30)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda f: ("--psf", f / "none.tif"), "psf: there is no file"),
        (lambda f: ("--psf", _nan_psf(f)), "psf: got NaN or infinity in 1 voxels"),
        (lambda f: ("--psf", _wide_psf(f)), "psf: got a PSF of"),
        (lambda f: ("--airyscan", 3, "--save-psf", f / "a.png"), "save-psf: got"),
        (lambda f: ("--airyscan", 3, "--save-psf", f / "no" / "a.tif"), "save-psf: the folder "),
        (lambda f: ("--airyscan", 3, "--save-psf", make.psf_tiff(f / "here.tif")), "save-psf: "),
        (
            lambda f: ("--psf", make.psf_tiff(f / "one.tif"), "--confocal"),
            "confocal: got a PSF of one view",
        ),
        (lambda f: ("--airyscan", 3, "--photons", 1e18), "photons, background: got 1e+18 and 0"),
    ],
)
def test_acquire_refuses_unusable_files_and_numbers(truth, tmp_path, arguments, message):
    arguments = arguments(tmp_path)
    before = make.snapshot(tmp_path)
    result = bigdeconv("simulate", "acquire", truth, tmp_path / "a.zarr", *arguments)
    assert result.exit_code == 3
    assert result.stderr.startswith(f"bigdeconv: {message}")
    assert result.stderr.count("\n") == 1
    assert make.snapshot(tmp_path) == before


def test_acquire_refuses_images_that_are_no_sample(tmp_path, kernel):
    negative = make.volume(tmp_path / "negative.zarr", np.full((4, 20, 20), -1.0, np.float32))
    times = make.volume(tmp_path / "times.zarr", np.ones((2, 1, 4, 20, 20), np.uint8))
    unitless = make.volume(tmp_path / "unitless.zarr", np.ones((4, 20, 20), np.uint8), units=False)
    for image, message in (
        (negative, "truth: got negative voxels, NaN or infinity"),
        (times, "truth: got 2 time points and 1 channels"),
        (unitless, "give it in µm with --voxel-um"),
        (tmp_path / "none.zarr", "does not exist"),
    ):
        result = bigdeconv("simulate", "acquire", image, tmp_path / "a.zarr", "--psf", kernel[1])
        assert result.exit_code == 3
        assert message in result.stderr
        assert not (tmp_path / "a.zarr").exists()
    given = ("--psf", kernel[1], "--voxel-um", "0.3,0.1,0.1")
    assert bigdeconv("simulate", "acquire", unitless, tmp_path / "a.zarr", *given).exit_code == 0
    assert omezarr.describe(tmp_path / "a.zarr").voxel_zyx_um == (0.3, 0.1, 0.1)


def test_an_existing_output_is_left_alone(truth, tmp_path):
    taken = tmp_path / "taken.zarr"
    taken.mkdir()
    before = make.snapshot(tmp_path)
    for arguments in (
        ("tubes", taken),
        ("tubes", taken, "--kind", "calibration"),
        ("acquire", truth, taken, "--airyscan", 2),
    ):
        result = bigdeconv("simulate", *arguments)
        assert result.exit_code == 3
        assert "taken.zarr' exists; give another path" in result.stderr
    assert make.snapshot(tmp_path) == before
    with pytest.raises(OutputExistsError, match="exists"):
        volumes.write_volume(taken, np.zeros((1, 2, 3)), voxel_zyx_um=VOXEL_UM, name="a")
    with pytest.raises(StoreError, match="expected a local path"):
        volumes.write_volume("s3://bucket/a.zarr", np.zeros((1, 2, 3)), voxel_zyx_um=VOXEL_UM, name="a")


def test_a_volume_beyond_the_memory_is_refused(tmp_path, monkeypatch):
    result = bigdeconv("simulate", "tubes", tmp_path / "a.zarr", "--shape", "1000000,1000000,1000000")
    assert result.exit_code == 3
    assert "shape: got 1000000,1000000,1000000 voxels, which take about" in result.stderr
    assert "Simulate a smaller volume" in result.stderr

    def too_much(*_, **__):
        raise MemoryError

    monkeypatch.setattr(samples, "calibration_target", too_much)
    with pytest.raises(BudgetError, match="Simulate a smaller volume"):
        simulation.write_calibration_target(tmp_path / "a.zarr", (2, 3, 4), VOXEL_UM)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise StoreError("no space left")

    monkeypatch.setattr(volumes, "write_region", full)
    with pytest.raises(StoreError, match="no space left"):
        volumes.write_volume(tmp_path / "a.zarr", np.zeros((1, 2, 3)), voxel_zyx_um=VOXEL_UM, name="a")
    assert list(tmp_path.iterdir()) == []


def test_python_is_asked_for_one_of_psf_and_detector(truth, tmp_path):
    with pytest.raises(InvalidInputError, match="expected one of the two"):
        simulation.write_acquisition(truth, tmp_path / "a.zarr", photons=1, background=0, seed=0)
