"""Settings: what may be said, who has the last word, and one sentence for what may not be said."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ByteSize, ValidationError

from bigdeconv.config import JobConfig, make_config, resolve
from bigdeconv.errors import InvalidInputError

PLACES = {"input": "in.zarr", "output": "out.zarr"}


def made(**settings):
    return make_config(PLACES | settings)


GOOD = [
    ("psf", "psf.tif", ("psf.tif",)),
    ("psf", ["C0=a.tif", "C1.V3=b.tif"], ("C0=a.tif", "C1.V3=b.tif")),
    ("psf", Path("psf.tif"), ("psf.tif",)),
    ("psf_voxel_um", "0.2,0.1, 0.1", (0.2, 0.1, 0.1)),
    ("update", "reference", "reference"),
    ("voxel_um", [1, 0.5, 0.5], (1.0, 0.5, 0.5)),
    ("level", "2", 2),
    ("channels", "0,2", (0, 2)),
    ("channels", 1, (1,)),
    ("channels", [0, 2], (0, 2)),
    ("timepoints", "0:5", (0, 1, 2, 3, 4)),
    ("timepoints", "1, 4:6 ,9", (1, 4, 5, 9)),
    ("roi", "0:10,5:20,:", ((0, 10), (5, 20), (None, None))),
    ("roi", "3:,:7, 0:1 ", ((3, None), (None, 7), (0, 1))),
    ("roi", [[0, 10], [5, 20], [None, None]], ((0, 10), (5, 20), (None, None))),
    ("views_axis", "v", "v"),
    ("method", "rltv", "rltv"),
    ("iterations", "0", 0),
    ("iterations", "auto", None),
    ("psf_scale", "0.8,1,1", (0.8, 1.0, 1.0)),
    ("psf_scale", "auto", None),
    ("strict", True, True),
    ("require_tls", True, True),
    ("missing", "error", "error"),
    ("max_failures", "auto", None),
    ("max_failures", 5, "5"),
    ("max_failures", "2.5%", "2.5%"),
    ("dashboard", False, False),
    ("fsync", True, True),
    ("tau", "auto", None),
    ("tau", "1e-3", 1e-3),
    ("tau", 0, 0.0),
    ("sigma", "0.01", 0.01),
    ("model", "finite-differences", "finite-differences"),
    ("background", "auto", None),
    ("background", "12.5", 12.5),
    ("intensity_scale", "300", 300.0),
    ("camera_offset", "-3", -3.0),
    ("gain", "0.5", 0.5),
    ("read_noise", "1.4", 1.4),
    ("mask", "none", "none"),
    ("mask", "labels.zarr", "labels.zarr"),
    ("block_shape", "64,128,128", (64, 128, 128)),
    ("block_shape", "auto", None),
    ("block_shape", (64, 128, 128), (64, 128, 128)),
    ("halo", "0,8,8", (0, 8, 8)),
    ("seam_tolerance", "1e-4", 1e-4),
    ("seam_probes", "0", 0),
    ("blend", "0,0,0", (0, 0, 0)),
    ("blend", "auto", None),
    ("memory", "auto", None),
    ("memory", "8GiB", 8 * 2**30),
    ("memory", "8 gib", 8 * 2**30),
    ("memory", "8G", 8 * 10**9),
    ("memory", "1.5GB", 1_500_000_000),
    ("memory", "512MiB", 512 * 2**20),
    ("memory", "2Ti", 2 * 2**40),
    ("memory", "700 kB", 700_000),
    ("memory", "123456", 123_456),
    ("memory", 10**9, 10**9),
    ("dtype", "float32", "float32"),
    ("output_scale", "16", 16.0),
    ("keep_bits", "10", 10),
    ("chunks", "32,64,64", (32, 64, 64)),
    ("shards", "128,256,256", (128, 256, 256)),
    ("levels", "auto", None),
    ("levels", "4", 4),
    ("ome_version", "0.4", "0.4"),
    ("device", "cpu", "cpu"),
    ("workers", "3", 3),
    ("scheduler", "tcp://10.0.0.1:8786", "tcp://10.0.0.1:8786"),
]

WRONG = [
    ("schema_version", 2, "2"),
    ("input", 3, "3"),
    ("output", ["a"], "['a']"),
    ("psf", 7, "7"),
    ("psf_voxel_um", "0.2,0.1", "0.1"),
    ("update", "fast", "fast"),
    ("psf_voxel_um", "0.2,0.1,0", "0"),
    ("psf_voxel_um", "auto", "auto"),
    ("voxel_um", "1,1,nan", "nan"),
    ("voxel_um", "1,1,x", "x"),
    ("level", "full", "full"),
    ("channels", "red", "red"),
    ("channels", "-1", "-1"),
    ("channels", "0,,2", "0,,2"),
    ("channels", "", ""),
    ("timepoints", "5:2", "5:2"),
    ("timepoints", "0:4:2", "0:4:2"),
    ("roi", "0:10,0:10", "0:10,0:10"),
    ("roi", "1,2,3", "1,2,3"),
    ("roi", "a:b,0:1,0:1", "a:b"),
    ("roi", [[0, 1]], "0, 1"),
    ("roi", [[0, 1, 2]] * 3, "0, 1, 2"),
    ("views_axis", 3, "3"),
    ("method", "wiener", "wiener"),
    ("psf_scale", "0.8,0,1", "0"),
    ("psf_scale", "0.8", "0.8"),
    ("strict", "perhaps", "perhaps"),
    ("require_tls", "perhaps", "perhaps"),
    ("missing", "perhaps", "perhaps"),
    ("max_failures", "-1", "-1"),
    ("max_failures", "200%", "200%"),
    ("max_failures", "some", "some"),
    ("dashboard", "perhaps", "perhaps"),
    ("fsync", "perhaps", "perhaps"),
    ("iterations", "-1", "-1"),
    ("iterations", "many", "many"),
    ("iterations", "2.5", "2.5"),
    ("tau", "-0.1", "-0.1"),
    ("tau", "strong", "strong"),
    ("tau", "nan", "nan"),
    ("sigma", "0", "0"),
    ("sigma", "inf", "inf"),
    ("model", 1, "1"),
    ("background", "-1", "-1"),
    ("intensity_scale", "0", "0"),
    ("camera_offset", "nan", "nan"),
    ("gain", "-2", "-2"),
    ("read_noise", "-1", "-1"),
    ("mask", "", "''"),
    ("block_shape", "64", "64"),
    ("block_shape", "64,64,64,64", "64"),
    ("block_shape", "64,64,0", "0"),
    ("block_shape", "big", "big"),
    ("halo", "-1,0,0", "-1"),
    ("seam_tolerance", "0", "0"),
    ("seam_tolerance", "1", "1"),
    ("seam_tolerance", "nan", "nan"),
    ("seam_probes", "-1", "-1"),
    ("halo", "8", "8"),
    ("blend", "1.5,1,1", "1.5"),
    ("memory", "lots", "lots"),
    ("memory", "8XiB", "8XiB"),
    ("memory", "8.GiB", "8.GiB"),
    ("memory", "8Gbit", "8Gbit"),
    ("memory", "0GiB", "0"),
    ("memory", "-8GiB", "-8GiB"),
    ("memory", "1.2.3GiB", "1.2.3"),
    ("memory", "8,5GiB", "8,5GiB"),
    ("memory", "8GiB each", "8GiB each"),
    ("dtype", "int32", "int32"),
    ("output_scale", "-1", "-1"),
    ("keep_bits", "0", "0"),
    ("keep_bits", "24", "24"),
    ("chunks", "0,1,1", "0"),
    ("chunks", "64x64x64", "64x64x64"),
    ("shards", "64,64", "64"),
    ("levels", "0", "0"),
    ("levels", "all", "all"),
    ("ome_version", "0.6", "0.6"),
    ("device", "tpu", "tpu"),
    ("workers", "0", "0"),
    ("scheduler", 8786, "8786"),
]


def ids(case):
    return str(case)[:30] if isinstance(case, str | int | list | tuple) else ""


class TestValues:
    @pytest.mark.parametrize(("name", "said", "meant"), GOOD, ids=ids)
    def test_good(self, name, said, meant):
        found = getattr(made(**{name: said}), name)
        assert found == meant
        assert type(found) is (ByteSize if name == "memory" and said != "auto" else type(meant))

    @pytest.mark.parametrize(("name", "said", "got"), WRONG, ids=ids)
    def test_wrong(self, name, said, got):
        """One sentence: the option, what it got, what is expected."""
        option = name.replace("_", "-")
        with pytest.raises(InvalidInputError, match=rf"^{option}: got .*{re.escape(got)}.*; expected .+") as caught:
            made(**{name: said})
        text = str(caught.value)
        assert text.count(f"{option}: got") == 1
        assert "\n" not in text
        assert "pydantic" not in text
        assert "invalid literal" not in text
        assert "could not convert" not in text

    def test_every_option_is_tried(self):
        """A new option needs a good and a wrong value here."""
        fields = set(JobConfig.model_fields)
        assert {name for name, *_ in WRONG} == fields
        # Of these there is only one legal value, or any text is.
        assert fields - {name for name, *_ in GOOD} == {"schema_version", "input", "output"}

    def test_every_option_describes_itself(self):
        for name, field in JobConfig.model_fields.items():
            if name != "schema_version":
                assert field.description, name
                assert field.description.endswith("."), name

    @given(st.integers(1, 10**6), st.sampled_from(["KiB", "MiB", "GiB", "TiB"]))
    def test_sizes(self, n, unit):
        factor = 2 ** (10 * (1 + ["KiB", "MiB", "GiB", "TiB"].index(unit)))
        assert made(memory=f"{n}{unit}").memory == n * factor

    @given(st.lists(st.integers(0, 50), min_size=1, max_size=6))
    def test_lists_of_indices(self, indices):
        assert made(channels=",".join(map(str, indices))).channels == tuple(indices)

    def test_several_faults_are_told_at_once(self):
        with pytest.raises(InvalidInputError, match=r"^gain: got '-1'; .*workers: got '0'; "):
            made(gain="-1", workers="0")

    def test_an_unknown_setting(self):
        with pytest.raises(
            InvalidInputError, match=r"^blok_shape: no such setting; `bigdeconv run --help` lists them\.$"
        ):
            made(blok_shape="1,2,3")

    def test_missing_places(self):
        with pytest.raises(InvalidInputError, match=r"^output: missing; it is required\.$"):
            make_config({"input": "in.zarr"})

    def test_settings_that_contradict_each_other(self):
        with pytest.raises(InvalidInputError, match=r"^shards: OME-Zarr 0\.4 has none; drop --shards or"):
            made(shards="64,64,64", ome_version="0.4")
        with pytest.raises(InvalidInputError, match=r"^keep_bits: rounds floating point only; drop --keep-bits or"):
            made(keep_bits=10, dtype="uint16")

    def test_settings_do_not_change(self):
        with pytest.raises(ValidationError, match="frozen"):
            made().gain = 2.0

    def test_defaults(self):
        config = made()
        assert (config.method, config.tau, config.ome_version, config.dtype) == ("garl", None, "0.5", None)
        assert config.psf == ()
        assert made(**{k: v for k, v in config.model_dump().items() if k not in PLACES}) == config


class TestAutomatic:
    """``auto`` is a word of the border: behind it, what is left open is None, and what is written to a file says auto again."""

    NAMES = (
        *("tau", "background", "intensity_scale", "mask", "block_shape", "halo", "blend", "memory"),
        *("dtype", "output_scale", "levels", "device", "iterations", "sigma", "gain", "psf_scale"),
        "max_failures",
    )

    def test_they_are_those_whose_help_names_it(self):
        options = {n: f.json_schema_extra for n, f in JobConfig.model_fields.items() if f.json_schema_extra}
        named = {n for n, extra in options.items() if "auto" in (extra["metavar"] or "").split("|")}
        assert named == set(self.NAMES)

    @pytest.mark.parametrize("name", NAMES)
    def test_it_becomes_none_and_auto_again(self, name):
        for said in ("auto", None):
            assert getattr(made(**{name: said}), name) is None
        config = made(**{name: "auto"})
        assert config.model_dump()[name] == config.model_dump(mode="json")[name] == "auto"
        assert config.deciding().get(name, "auto") == "auto"

    def test_no_value_behind_the_border_is_the_word(self):
        config = made(**dict.fromkeys(self.NAMES, "auto"))
        assert "auto" not in {getattr(config, name) for name in JobConfig.model_fields}
        # The width of the PSF is the one number that the data do not decide unless they are asked.
        assert config == made(psf_scale="auto")

    def test_zero_is_not_auto(self):
        config = made(tau=0, background="0", blend="0,0,0")
        assert (config.tau, config.background, config.blend) == (0.0, 0.0, (0, 0, 0))

    @pytest.mark.parametrize("name", ["psf_voxel_um", "chunks", "keep_bits", "workers", "level"])
    def test_other_settings_do_not_know_it(self, name):
        with pytest.raises(InvalidInputError, match=rf"^{name.replace('_', '-')}: got .*auto"):
            made(**{name: "auto"})

    @pytest.mark.parametrize(
        ("said", "labels", "masks"),
        [("auto", None, True), ("none", None, False), ("labels.zarr", "labels.zarr", True)],
    )
    def test_a_mask_says_two_things(self, said, labels, masks):
        config = made(mask=said)
        assert (config.mask_labels, config.masks_defects) == (labels, masks)

    @pytest.mark.parametrize(("name", "said", "_"), GOOD, ids=ids)
    def test_what_is_written_to_a_file_is_read_again(self, name, said, _, tmp_path):
        config = made(**{name: said})
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        assert resolve({}, tmp_path / "job.yaml", {}) == config


class TestPrecedence:
    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "job.yaml"
        path.write_text("input: file.zarr\noutput: file-out.zarr\ngain: 2\nread-noise: 3\nsigma: 0.04\n")
        return path

    def test_flags_over_environment_over_file_over_defaults(self, file):
        environment = {"BIGDECONV_GAIN": "5", "BIGDECONV_READ_NOISE": "6", "GAIN": "7", "BIGDECONV_UNKNOWN": "8"}
        config = resolve({"gain": "9", "input": "flag.zarr"}, file, environment)
        assert (config.gain, config.read_noise, config.sigma, config.camera_offset) == (9.0, 6.0, 0.04, 0.0)
        assert (config.input, config.output) == ("flag.zarr", "file-out.zarr")

    def test_what_was_not_said_does_not_count(self, file):
        config = resolve({"gain": None, "psf": []}, file, {})
        assert config.gain == 2.0
        assert config.psf == ()

    def test_the_real_environment(self, monkeypatch):
        monkeypatch.setenv("BIGDECONV_BLOCK_SHAPE", "8,16,32")
        assert resolve(PLACES).block_shape == (8, 16, 32)
        assert resolve(PLACES, environment={}).block_shape is None

    def test_a_wrong_value_from_anywhere(self, file):
        with pytest.raises(InvalidInputError, match=r"^gain: got '-5'; "):
            resolve({}, file, {"BIGDECONV_GAIN": "-5"})
        file.write_text("input: a\noutput: b\ngain: -2\n")
        with pytest.raises(InvalidInputError, match=r"^gain: got -2; "):
            resolve({}, file, {})


class TestFiles:
    def read(self, tmp_path, text):
        path = tmp_path / "job.yaml"
        path.write_text(text)
        return resolve(PLACES, path, {})

    def test_every_good_value_may_stand_in_a_file(self, tmp_path):
        for name, said, meant in GOOD:
            if not isinstance(said, Path):
                text = yaml.safe_dump({name: list(said) if isinstance(said, tuple) else said})
                assert getattr(self.read(tmp_path, text), name) == meant

    def test_values_without_quotes_mean_what_they_look_like(self, tmp_path):
        assert self.read(tmp_path, "memory: 8GiB").memory == 8 * 2**30
        assert self.read(tmp_path, "block-shape: 64,64,64").block_shape == (64, 64, 64)
        assert self.read(tmp_path, "tau: 1e-3").tau == 1e-3
        assert self.read(tmp_path, "roi: 1:10,2:20,0:5").roi == ((1, 10), (2, 20), (0, 5))

    def test_a_range_is_no_number_of_base_sixty(self, tmp_path):
        """YAML 1.1 reads 1:5 as 65."""
        assert self.read(tmp_path, "timepoints: 0:3").timepoints == (0, 1, 2)
        assert self.read(tmp_path, "timepoints: 1:5").timepoints == (1, 2, 3, 4)

    def test_a_version_is_no_number(self, tmp_path):
        assert self.read(tmp_path, "ome_version: 0.4").ome_version == "0.4"

    def test_an_empty_file_says_nothing(self, tmp_path):
        assert self.read(tmp_path, "") == make_config(PLACES)
        assert self.read(tmp_path, "# gain: 3\n") == make_config(PLACES)

    def test_a_typing_error(self, tmp_path):
        with pytest.raises(InvalidInputError, match=r"^gian: no such setting; `bigdeconv run --help` lists them\.$"):
            self.read(tmp_path, "gian: 2")

    @pytest.mark.parametrize("text", ["gain: [1, 2", "a: b: c", "\tgain: 2", "gain: !!python/object:os.system 1"])
    def test_unreadable(self, tmp_path, text):
        with pytest.raises(InvalidInputError, match=r"^config: '.*job\.yaml' cannot be read as YAML \("):
            self.read(tmp_path, text)

    def test_not_text(self, tmp_path):
        path = tmp_path / "job.yaml"
        path.write_bytes(b"\xff\xfe\x00gain")
        with pytest.raises(InvalidInputError, match=r"^config: '.*job\.yaml' cannot be read as YAML \("):
            resolve(PLACES, path, {})

    def test_missing(self, tmp_path):
        with pytest.raises(InvalidInputError, match=r"^config: '.*none\.yaml' cannot be read .*No such file"):
            resolve(PLACES, tmp_path / "none.yaml", {})

    @pytest.mark.parametrize(("text", "kind"), [("[1, 2]", "list"), ("gain", "str"), ("3", "int")])
    def test_no_names(self, tmp_path, text, kind):
        with pytest.raises(InvalidInputError, match=rf"^config: '.*' must hold names and values, got {kind}\.$"):
            self.read(tmp_path, text)
