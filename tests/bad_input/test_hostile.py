"""Inputs that nobody writes on purpose, or somebody does: one sentence, the right exit code, and neither hours nor gigabytes."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from bigdeconv import models
from bigdeconv.config import resolve
from bigdeconv.errors import InvalidInputError
from bigdeconv.storage.journal import Journal
from tests import make
from tests.make import bigdeconv

pytestmark = pytest.mark.filterwarnings("ignore")
MANY_DIGITS = int("9" * 400)
SENTENCE = 1500
"""Characters that a sentence has at most."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small volume and a PSF."""
    folder = tmp_path_factory.mktemp("hostile")
    make.volume(folder / "in.zarr", make.scene(8, 16, 16), chunk=(8, 16, 16))
    make.psf_tiff(folder / "psf.tif")
    return folder


@pytest.fixture
def image(place, tmp_path):
    """A copy of the volume."""
    return shutil.copytree(place / "in.zarr", tmp_path / "in.zarr")


def planned(place, image, *flags):
    """Return what `plan` says of an image, which is one sentence where it is refused."""
    psf = () if "--psf" in flags else ("--psf", str(place / "psf.tif"))
    return refused("plan", image, *psf, "--method", "rl", *flags)


def refused(*arguments):
    result = bigdeconv(*map(str, arguments))
    said = result.stderr.strip()
    assert result.exit_code in (0, 2, 3, 5), said
    assert "Traceback" not in said
    assert len(said) < SENTENCE
    return said


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def chunks(shape):
    return lambda v: v["chunk_grid"]["configuration"].update(chunk_shape=shape)


class TestNumbers:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (chunks([0, 16, 16]), "chunks of shape"),
            (lambda v: v.update(shape=[10**18] * 3), "expected at most 10000000 on an axis"),
            (lambda v: v.update(shape=[1, 10**9, 24]), "expected at most 10000000 on an axis"),
            (lambda v: (v.update(shape=[10**6] * 3), chunks([10**6] * 3)(v)), "smaller chunks"),
        ],
    )
    def test_of_an_array(self, place, image, change, words):
        edit(image / "0" / "zarr.json", change)
        assert words in planned(place, image)

    @pytest.mark.parametrize("kind", ["scale", "translation"])
    @pytest.mark.parametrize(
        "number", [MANY_DIGITS, float("nan"), float("inf"), 1e300, -1e300, 1e-300, True, "1", None, []]
    )
    def test_of_a_transformation(self, place, image, kind, number):
        def change(values):
            found = values["attributes"]["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
            found[:] = [t for t in found if t["type"] != kind] + [{"type": kind, kind: [number, 0.1, 0.1]}]

        edit(image / "zarr.json", change)
        said = planned(place, image)
        if kind == "translation" and number in (1e300, -1e300, 1e-300):
            assert said == ""
        else:
            assert "has no usable voxel size" in said or "expected a scale or translation of 3 finite numbers" in said

    def test_of_a_display_window(self, place, image):
        window = {"min": MANY_DIGITS, "max": 1, "start": 0, "end": 1}
        edit(image / "zarr.json", lambda v: v["attributes"]["ome"].update(omero={"channels": [{"window": window}]}))
        assert planned(place, image) == ""

    @pytest.mark.parametrize("shape", ["1,1,1e30,10,10", f"1,1,{10**30},10,10", f"1,1,{10**7},{10**7},{10**7}"])
    def test_of_a_shape(self, place, shape):
        assert "expected" in refused("plan", "--shape", shape, "--psf", place / "psf.tif", "--method", "rl")

    @pytest.mark.parametrize("um", ["1000000,1000000,1000000", "1e-9,1e-9,1e-9", "100,100,100"])
    def test_of_the_voxels_of_a_psf(self, place, image, um):
        said = planned(place, image, "--psf-voxel-um", um)
        assert "expected at most 2.7e+08" in said or "each from 1e-06 to 1e+06" in said

    def test_of_a_psf(self, place, image, tmp_path):
        np.save(tmp_path / "bright.npy", np.full((5, 5, 5), 1e308))
        assert "expected at most 1e+30" in planned(place, image, "--psf", str(tmp_path / "bright.npy"))

    def test_of_a_mask(self, place, image, tmp_path):
        for shape in ([10**6] * 3, [16, 32, 10**7]):
            mask = shutil.copytree(image, tmp_path / f"mask{shape[0]}.zarr")
            edit(mask / "0" / "zarr.json", lambda v, shape=shape: (v.update(shape=shape), chunks([8, 16, 16])(v)))
            assert "too much to look through" in planned(place, image, "--mask", str(mask))


class TestNoFiles:
    """A pipe is waited for, and a device read, for ever."""

    @pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json"])
    def test_in_an_image(self, place, image, name):
        (image / name).unlink()
        os.mkfifo(image / name)
        assert "it is a pipe or a device; expected a file" in planned(place, image)

    def test_as_a_chunk(self, place, image, tmp_path):
        (chunk,) = (path for path in (image / "0" / "c").rglob("*") if path.is_file())
        chunk.unlink()
        chunk.symlink_to("/dev/zero")
        job = ("run", image, tmp_path / "out.zarr", "--psf", place / "psf.tif", "--method", "rl", "--workers", "1")
        assert "it is a pipe or a device; expected a file" in refused(*job)
        assert not (tmp_path / "out.zarr").exists()

    @pytest.mark.parametrize("option", ["--psf", "--config", "--mask", "--model"])
    @pytest.mark.parametrize("kind", ["pipe", "device"])
    def test_in_place_of_a_file(self, place, image, tmp_path, option, kind):
        path = tmp_path / "thing"
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
        method = ("--method", "garl") if option == "--model" else ()
        assert str(path) in planned(place, image, option, str(path), *method)


class TestSettings:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a: " + "[" * 900 + "]" * 900, "nested too deeply"),
            ("{a: " * 900 + "1" + "}" * 900, "nested too deeply"),
            ("iterations: " + "9" * 5000, "limit"),
            ("a: &a [x, x]\nb: &b [*a, *a]\ntau: *b\n", "aliases are not read"),
            ("# " + "x" * 2**21, "longer than 1048576 characters"),
            ('channels: "0:10000000000"', "at most 1000000 indices"),
            ('timepoints: "0:1000000000"', "at most 1000000 indices"),
            ("tau: !!python/object/apply:os.system [id]", "could not determine a constructor"),
            (f"iterations: {10**21}", "expected 100000 or less"),
            (f"levels: {10**11}", "expected 32 or less"),
            ("tau: [" + "1, " * 5000 + "1]", "…"),
        ],
    )
    def test_of_a_file(self, place, image, tmp_path, text, words):
        (tmp_path / "job.yaml").write_text(text)
        assert words in planned(place, image, "--config", str(tmp_path / "job.yaml"))

    def test_a_name_that_is_nearly_one_of_the_environment(self):
        job = {"input": "in.zarr", "output": "out.zarr"}
        with pytest.raises(
            InvalidInputError, match="BIGDECONV_ITERATION is no setting; did you mean BIGDECONV_ITERATIONS"
        ):
            resolve(job, environment={"BIGDECONV_ITERATION": "3"})
        assert resolve(job, environment={"BIGDECONV_TEST_LANE": "full", "ITERATION": "3"}).iterations is None


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Write a model file with other metadata, and return its path."""
    source = next(iter(models.__path__)) + "/compact.safetensors"
    with safe_open(source, "numpy") as file:
        metadata = file.metadata()
    folder = tmp_path_factory.mktemp("models")

    def write(name, value):
        path = folder / "model.safetensors"
        save_file(load_file(source), str(path), metadata | {name: value(metadata[name])})
        return path

    return write


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("card", lambda _: "[1, 2]"),
        ("card", lambda _: "null"),
        ("config", lambda _: "[" * 50_000 + "]" * 50_000),
        ("config", lambda _: "null"),
        ("config", lambda text: json.dumps(json.loads(text) | {"log_mu": 1e308})),
        ("config", lambda text: json.dumps(json.loads(text) | {"log_mu": MANY_DIGITS})),
        ("config", lambda text: json.dumps(json.loads(text) | {"kappa": None})),
    ],
)
def test_metadata_of_a_model(model, name, value):
    assert "is incomplete or damaged" in refused("model", "show", model(name, value))


HOSTILE = [
    MANY_DIGITS,
    -1,
    0,
    10**18,
    1e308,
    float("nan"),
    None,
    True,
    "",
    "x" * 5000,
    "../..",
    [],
    {},
    [[]],
    [None] * 50,
    {"a": 1},
]


def mutated(values, rng):
    """Replace, remove or double one value somewhere in a JSON document."""
    place = values
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = keys[rng.integers(len(keys))]
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.85:
            place = place[key]
            continue
        kind = rng.integers(4)
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, list):
            place.append(place[key])
        else:
            place[key] = HOSTILE[rng.integers(len(HOSTILE))]
        return


N_MUTATIONS = 30
SEEDS = [*range(3), *(pytest.param(seed, marks=pytest.mark.full) for seed in range(3, 20))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("what", ["zarr.json", "0/zarr.json", "config", "psf", "model"])
def test_any_change_of_a_document_is_understood_or_refused(place, image, model, tmp_path, what, seed):
    rng = np.random.default_rng([seed, len(what)])
    settings = {
        "method": "rl",
        "iterations": 3,
        "block_shape": [8, 16, 16],
        "channels": [0],
        "roi": "0:8,0:16,0:16",
        "tau": 0.1,
    }
    for _ in range(N_MUTATIONS):
        if what == "config":
            values = dict(settings)
            mutated(values, rng)
            (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
            planned(place, image, "--config", str(tmp_path / "job.yaml"))
        elif what == "psf":
            content = bytearray((place / "psf.tif").read_bytes())
            content[rng.integers(min(len(content), 400))] = rng.integers(256)
            (tmp_path / "psf.tif").write_bytes(content)
            planned(place, image, "--psf", str(tmp_path / "psf.tif"))
        elif what == "model":

            def change(text):
                values = json.loads(text)
                mutated(values, rng)
                return json.dumps(values)

            refused("model", "show", model("config", change))
        else:
            before = (image / what).read_text()
            edit(image / what, lambda values: mutated(values, rng))
            planned(place, image)
            refused("validate", image)
            (image / what).write_text(before)


@pytest.mark.parametrize("seed", range(3))
def test_any_change_of_a_journal_is_understood_or_refused(tmp_path, seed):
    """Its lines carry checksums: none that has changed is taken for a record."""
    from bigdeconv.errors import StoreError

    rng = np.random.default_rng(seed)
    journal = Journal(tmp_path / "journal")
    journal.create()
    with journal.appending():
        for index in range(5):
            journal.append({"block": index})
    path = journal.folder / "000000.jsonl"
    whole = path.read_bytes()
    for _ in range(200):
        content = bytearray(whole)
        content[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(content)
        try:
            found = [record["block"] for record, _ in journal.records()]
        except StoreError:
            continue
        assert found in ([0, 1, 2, 3, 4], [0, 1, 2, 3])
        assert bytes(content) == whole or found == [0, 1, 2, 3]
