"""Model files: saved models are read back unchanged, and no file that could run code is opened."""

import json
import pickle
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from bigdeconv import models
from bigdeconv.errors import InvalidInputError, StoreError
from bigdeconv.models import import_pyxudeconv, pyxudeconv
from bigdeconv.numerics.priors.wcrr import fourier_lambda_max
from bigdeconv.storage import weights as storage
from bigdeconv.storage.weights import FORMAT, WcrrWeights, load, save
from tests.published import CHANNELS, PUBLISHED, needs_published, write_cropped

NUMBERS = [f.name for f in fields(WcrrWeights) if f.name not in {"layers", "scaling", "card"}]
RNG = np.random.default_rng(0)
MODEL = WcrrWeights(
    layers=(
        RNG.normal(size=(2, 1, 3, 3, 3)).astype(np.float32),
        RNG.normal(size=(5, 2, 1, 3, 3)).astype(np.float32),
    ),
    scaling=RNG.normal(size=(5, 4)).astype(np.float32),
    sigma_max=50.0,
    sigma_unit=1 / 255,
    log_mu=2.3,
    beta=1.1,
    gamma=0.7,
    lambda_max=12.5,
    kappa=0.02,
    sigma_default=2 / 255,
    card={"name": "trial", "metrics": {"psnr": 31.5}, "about": "µ, σ"},
)


class Trap:
    """A pickle that would write a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "opened")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


def written(file, *, metadata=None, drop=(), **changes):
    """A model file with parts of it changed or left out."""
    tensors = {"layer0": MODEL.layers[0], "layer1": MODEL.layers[1], "scaling": MODEL.scaling} | changes
    config = {name: getattr(MODEL, name) for name in NUMBERS}
    everything = {"format": FORMAT, "config": json.dumps(config), "card": "{}"} | (metadata or {})
    save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items() if k not in drop},
        file,
        {k: v for k, v in everything.items() if k not in drop},
    )
    return file


class TestFile:
    def test_round_trip(self, file):
        save(file, MODEL)
        found = load(str(file))
        for ours, theirs in zip((*found.layers, found.scaling), (*MODEL.layers, MODEL.scaling), strict=True):
            assert ours.dtype == np.float32
            np.testing.assert_array_equal(ours, theirs)
        assert {n: getattr(found, n) for n in NUMBERS} == {n: getattr(MODEL, n) for n in NUMBERS}
        assert found.card == MODEL.card
        assert models.digest(found) == models.digest(MODEL)

    def test_arrays_of_any_layout(self, file):
        turned = MODEL.scaling.T.copy().T
        assert not turned.flags.c_contiguous
        save(file, replace(MODEL, scaling=turned))
        np.testing.assert_array_equal(load(file).scaling, MODEL.scaling)

    def test_more_than_ten_layers_stay_in_order(self, file):
        layers = tuple(np.full((1, 1, 1, 1, 1), n, np.float32) for n in range(12))
        save(file, replace(MODEL, layers=layers, scaling=np.zeros((1, 2), np.float32)))
        assert [layer.item() for layer in load(file).layers] == list(range(12))

    def test_a_file_that_cannot_be_written(self, tmp_path):
        with pytest.raises(StoreError, match=r"model.*missing.*model\.safetensors"):
            save(tmp_path / "missing" / "model.safetensors", MODEL)


class TestRefusals:
    def test_missing(self, file):
        with pytest.raises(InvalidInputError, match=r"^model: there is no file '.*model\.safetensors'; give the path"):
            load(file)
        with pytest.raises(InvalidInputError, match=r"^model: there is no file"):
            load(file.parent)

    def test_a_pickle_is_not_opened(self, file, tmp_path):
        mark = tmp_path / "opened"
        for write in (lambda: file.write_bytes(pickle.dumps(Trap(mark))), lambda: torch.save(Trap(mark), file)):
            write()
            for read in (load, models.resolve):
                with pytest.raises(
                    InvalidInputError, match=r"^model: .* is not a safetensors file .*pickles.*bigdeconv model import"
                ):
                    read(file)
        assert not mark.exists()
        pickle.loads(pickle.dumps(Trap(mark)))
        assert mark.exists()  # the trap works

    @pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64], ids=["empty", "short", "noise"])
    def test_other_files(self, file, content):
        file.write_bytes(content)
        with pytest.raises(InvalidInputError, match=r"^model: .* is not a safetensors file"):
            load(file)

    def test_cut_anywhere(self, file):
        save(file, MODEL)
        whole = file.read_bytes()
        for length in [*range(0, len(whole), 97), len(whole) - 1]:
            file.write_bytes(whole[:length])
            with pytest.raises(InvalidInputError, match=r"^model: .* is not a safetensors file"):
                load(file)

    def test_another_format(self, file):
        for metadata, got in (({"format": "bigdeconv-wcrr-9"}, "'bigdeconv-wcrr-9'"), ({}, "None")):
            written(file, metadata=metadata, drop=() if metadata else ("format",))
            with pytest.raises(InvalidInputError, match=f"^model: .* has the format {got}, expected '{FORMAT}'"):
                load(file)

    DAMAGE = {  # noqa: RUF012
        "no config": {"drop": ("config",)},
        "no card": {"drop": ("card",)},
        "no scaling": {"drop": ("scaling",)},
        "no first layer": {"drop": ("layer0",)},
        "no last layer": {"drop": ("layer1",)},
        "config is no json": {"metadata": {"config": "{"}},
        "config is a list": {"metadata": {"config": "[]"}},
        "config lacks numbers": {"metadata": {"config": '{"beta": 1}'}},
        "a layer that does not follow": {"layer1": np.ones((5, 3, 1, 1, 1), np.float32)},
        "a flat layer": {"layer1": np.ones((5, 2, 3, 3), np.float32)},
        "scaling of other channels": {"scaling": np.ones((4, 4), np.float32)},
        "scaling without channels": {"scaling": np.ones(5, np.float32)},
        "scaling of nothing": {"scaling": np.array(1.0, np.float32)},
        "scaling without knots": {"scaling": np.ones((5, 0), np.float32)},
        "nan in a layer": {"layer0": np.full((2, 1, 3, 3, 3), np.nan, np.float32)},
        "inf in the scaling": {"scaling": np.full((5, 4), np.inf, np.float32)},
    }

    @pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
    def test_damaged(self, file, damage):
        written(file, **damage)
        with pytest.raises(InvalidInputError, match=r"^model: .* is incomplete or damaged \(.+\); import it again"):
            load(file)

    @pytest.mark.parametrize("name", NUMBERS)
    def test_numbers_that_are_none(self, file, name):
        for value in (float("nan"), float("inf"), "x", None):
            config = {n: getattr(MODEL, n) for n in NUMBERS} | {name: value}
            written(file, metadata={"config": json.dumps(config)})
            with pytest.raises(InvalidInputError, match=r"^model: .* is incomplete or damaged"):
                load(file)

    @pytest.mark.parametrize("name", ["lambda_max", "sigma_unit", "sigma_max"])
    def test_numbers_that_must_be_positive(self, file, name):
        for value in (0.0, -1.0):
            save(file, replace(MODEL, **{name: value}))
            with pytest.raises(InvalidInputError, match=r"^model: .* is incomplete or damaged"):
                load(file)


class TestResolve:
    def test_shipped_names(self, file):
        assert len(set(models.names())) == len(models.names())
        for name in models.names():
            model = models.resolve(name)
            assert model.card["name"] == name
            assert model.lambda_max == pytest.approx(fourier_lambda_max(model.layers, 96), rel=2e-3)
            np.testing.assert_allclose(model.layers[0].sum(axis=(1, 2, 3, 4)), 0, atol=1e-5)
            save(file, model)
            assert models.digest(load(file)) == models.digest(model)

    def test_the_default_is_one_of_them(self):
        assert models.resolve(models.DEFAULT).card["name"] in models.names()

    def test_a_file_and_a_model(self, file):
        save(file, MODEL)
        for path in (file, str(file)):
            assert models.resolve(path).card == MODEL.card
        assert models.resolve(MODEL) is MODEL

    def test_neither(self, tmp_path):
        with pytest.raises(
            InvalidInputError,
            match=r"^model: got 'tubes', which is neither a file nor a shipped model; expected .* compact, large, finite-diff",
        ):
            models.resolve("tubes")
        with pytest.raises(InvalidInputError, match=r"^model: there is no file"):
            models.resolve(tmp_path)

    def test_the_digest_is_of_the_numbers_that_decide_a_restoration(self):
        changed = [
            replace(MODEL, layers=(MODEL.layers[0] + 1, MODEL.layers[1])),
            replace(MODEL, scaling=MODEL.scaling + 1),
            *(
                replace(MODEL, **{n: getattr(MODEL, n) * 1.5})
                for n in NUMBERS
                if n not in {"kappa", "sigma_default"}  # these are resolved into the settings
            ),
        ]
        digests = {models.digest(m) for m in changed}
        assert len(digests) == len(changed)
        assert models.digest(MODEL) not in digests
        assert models.digest(replace(MODEL, card={})) == models.digest(MODEL)


CONFIG = {"multi_convolution": {"size_kernels": [3, 3]}, "spline_scaling": {"x_max": 50}, "exp_name": "trial"}


def state(n_dims=3, seed=0):
    """Content of a checkpoint with two layers."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv_layer.conv_layers.0.parametrizations.weight.original": torch.randn(
            2, 1, *[3] * n_dims, generator=generator
        ),
        "conv_layer.conv_layers.1.weight": torch.randn(4, 2, *[3] * n_dims, generator=generator),
        "spline_scaling.coefficients": torch.randn(4, 5, generator=generator),
        "mu_": torch.tensor(2.0),
        "beta": torch.tensor(1.0),
        "gamma": torch.tensor(0.5),
    }


def folder_of(path, config=CONFIG, **checkpoints):
    (path / "checkpoints").mkdir()
    (path / "config.json").write_text(json.dumps(config))
    for name, content in checkpoints.items():
        torch.save(content, path / "checkpoints" / f"{name}.pth")
    return path


class TestImport:
    NOT_ONE = r"^model: '.*checkpoint_1\.pth' is not a checkpoint of a 3-D pyxudeconv regulariser \("

    def test_converted(self, tmp_path, file):
        found = import_pyxudeconv(folder_of(tmp_path, checkpoint_1={"state_dict": state()}))
        raw = state()["conv_layer.conv_layers.0.parametrizations.weight.original"].numpy()
        np.testing.assert_allclose(found.layers[0], raw - raw.mean(axis=(1, 2, 3, 4), keepdims=True), atol=1e-6)
        np.testing.assert_array_equal(found.layers[1], state()["conv_layer.conv_layers.1.weight"])
        assert (found.log_mu, found.beta, found.gamma, found.sigma_max) == (2.0, 1.0, 0.5, 50.0)
        assert found.lambda_max == pytest.approx(fourier_lambda_max(found.layers))
        assert found.card["imported_from"] == "pyxudeconv checkpoint_1.pth"
        save(file, found)
        assert models.digest(load(file)) == models.digest(found)

    def test_the_newest_checkpoint_counts(self, tmp_path):
        """By its number: 10000 comes after 9000."""
        checkpoints = {f"checkpoint_{n}": {"state_dict": state(seed=n)} for n in (9000, 10000, 200)}
        found = import_pyxudeconv(folder_of(tmp_path, **checkpoints))
        np.testing.assert_array_equal(found.layers[1], state(seed=10000)["conv_layer.conv_layers.1.weight"])

    def test_missing_files(self, tmp_path):
        refused = r"^model: got '.*', which does not contain config\.json and checkpoint_\*\.pth; expected the folder"
        with pytest.raises(InvalidInputError, match=refused):
            import_pyxudeconv(tmp_path / "none")
        with pytest.raises(InvalidInputError, match=refused):
            import_pyxudeconv(folder_of(tmp_path))

    def test_a_checkpoint_runs_no_code(self, tmp_path):
        mark = tmp_path / "opened"
        folder = folder_of(tmp_path, checkpoint_1={"state_dict": Trap(mark)})
        with pytest.raises(InvalidInputError, match=self.NOT_ONE):
            import_pyxudeconv(folder)
        assert not mark.exists()

    @pytest.mark.parametrize(
        "checkpoint",
        [
            {"weights": 1},
            {"state_dict": {}},
            {"state_dict": {k: v for k, v in state().items() if k != "mu_"}},
            {"state_dict": state(n_dims=2)},
            {"state_dict": state() | {"conv_layer.conv_layers.1.weight": torch.ones(4, 3, 3, 3, 3)}},
            {"state_dict": [1, 2]},
            [1, 2],
        ],
        ids=["other keys", "empty", "no mu", "2-D", "layers that do not follow", "no names", "a list"],
    )
    def test_other_checkpoints(self, tmp_path, checkpoint):
        with pytest.raises(InvalidInputError, match=self.NOT_ONE):
            import_pyxudeconv(folder_of(tmp_path, checkpoint_1=checkpoint))

    @pytest.mark.parametrize("content", [b"", b"noise" * 100], ids=["empty", "noise"])
    def test_damaged_checkpoints(self, tmp_path, content):
        folder = folder_of(tmp_path)
        (folder / "checkpoints" / "checkpoint_1.pth").write_bytes(content)
        with pytest.raises(InvalidInputError, match=self.NOT_ONE):
            import_pyxudeconv(folder)

    @pytest.mark.parametrize("config", [{}, [], CONFIG | {"spline_scaling": {}}], ids=["empty", "list", "no spline"])
    def test_other_configs(self, tmp_path, config):
        with pytest.raises(InvalidInputError, match=self.NOT_ONE):
            import_pyxudeconv(folder_of(tmp_path, config, checkpoint_1={"state_dict": state()}))

    def test_the_architecture_of_the_published_model(self, tmp_path, file):
        """A checkpoint with the keys, shapes and extra entries of the published one, in a cropped size."""
        found = import_pyxudeconv(write_cropped(tmp_path / "cropped"))
        assert [layer.shape for layer in found.layers] == [(out, into, 3, 3, 3) for into, out in pairwise(CHANNELS)]
        assert found.lambda_max == pytest.approx(fourier_lambda_max(found.layers))
        assert found.card["imported_from"] == "pyxudeconv checkpoint_40180.pth"
        models.save(file, found)
        assert models.digest(models.resolve(file)) == models.digest(found)

    @needs_published
    def test_the_published_model(self, file, monkeypatch):
        monkeypatch.setattr(pyxudeconv, "fourier_lambda_max", lambda layers: 8.06e5)  # it takes seconds
        found = import_pyxudeconv(PUBLISHED)
        storage._check(found)
        np.testing.assert_allclose(found.layers[0].sum(axis=(1, 2, 3, 4)), 0, atol=1e-6)
        save(file, found)
        assert models.digest(models.resolve(file)) == models.digest(found)
