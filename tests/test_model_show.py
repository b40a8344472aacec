"""``bigdeconv model show --output``: the figures show the model, and one sentence says why they cannot be drawn."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from bigdeconv import models
from bigdeconv.errors import InvalidInputError, OutputExistsError, StoreError
from bigdeconv.models import figures
from bigdeconv.numerics.priors.wcrr import Wcrr, impulse_response, potential, scaling
from bigdeconv.storage import weights as storage
from tests import make
from tests.make import bigdeconv

pytestmark = pytest.mark.slow

pytest.importorskip("matplotlib")

RNG = np.random.default_rng(5)
SMALL = replace(
    models.resolve("finite-differences"),
    layers=(
        RNG.normal(size=(2, 1, 3, 3, 3)).astype(np.float32),
        RNG.normal(size=(7, 2, 3, 3, 3)).astype(np.float32),
    ),
    scaling=RNG.normal(size=(7, 5)).astype(np.float32),
    gamma=0.8,
    lambda_max=30.0,
    card={"name": "seven", "about": "random"},
)
MANY = replace(
    SMALL,
    layers=(RNG.normal(size=(33, 1, 1, 5, 5)).astype(np.float32),),
    scaling=RNG.normal(size=(33, 5)).astype(np.float32),
)
MODELS = {"finite-differences": models.resolve("finite-differences"), "seven": SMALL, "many, flat": MANY}


def panels(figure):
    """The axes of the filters, in the order that they are shown in."""
    return [axes for axes in figure.axes if str(axes.get_label()).startswith("channel ")]


@pytest.mark.parametrize("name", MODELS)
def test_figures_are_not_blank(name, tmp_path):
    files = models.draw(MODELS[name], tmp_path / "out", {"name": name, "μ": "10"})
    assert {f.name for f in files} == {"filters.png", "potential.png", "scalings.png", "card.txt", "card.json"}
    assert {f.name for f in (tmp_path / "out").iterdir()} == {f.name for f in files}
    for file in files[:3]:
        rgb = np.asarray(Image.open(file).convert("RGB")).astype(int)
        assert min(rgb.shape[:2]) > 300
        # Neither empty nor black, with something in colour, and nothing that runs over the border.
        assert 0.5 < (rgb > 200).all(axis=2).mean() < 0.999
        assert (np.ptp(rgb, axis=2) > 60).mean() > 0.001
        for border in (rgb[:2], rgb[-2:], rgb[:, :2], rgb[:, -2:]):
            assert (border > 240).all()


@pytest.mark.parametrize("name", MODELS)
def test_the_montage_has_one_panel_per_channel_the_largest_first(name):
    model = MODELS[name]
    shown = panels(figures.filters_figure(model, name))
    order = [int(axes.get_label().removeprefix("channel ")) for axes in shown]
    filters = impulse_response([torch.as_tensor(layer) for layer in model.layers]).numpy()
    assert sorted(order) == list(range(len(filters)))
    norms = np.linalg.norm(filters.reshape(len(filters), -1), axis=1)[order]
    assert (np.diff(norms) <= 1e-6 * norms[0]).all()
    rows = [axes.get_subplotspec().num1 for axes in shown]
    assert rows == sorted(rows)
    for axes in shown:
        image = axes.get_images()[0]
        assert image.get_clim() == (-1, 1)  # zero in the middle
        assert np.nanmax(np.abs(image.get_array())) == pytest.approx(1)


def test_a_panel_shows_the_planes_of_its_filter():
    filters = impulse_response([torch.as_tensor(layer) for layer in SMALL.layers]).numpy()
    axes = panels(figures.filters_figure(SMALL))[0]
    channel = filters[int(axes.get_label().removeprefix("channel "))]
    drawn = np.ma.filled(axes.get_images()[0].get_array().astype(float), np.nan)
    planes = np.split(drawn, np.flatnonzero(np.isnan(drawn[0])), axis=1)
    planes = [p[::4, ~np.isnan(p[0])][:, ::4] for p in planes]
    planes = [p for p in planes if p.size]
    assert len(planes) == 5
    np.testing.assert_allclose(planes, channel / np.abs(channel).max(), atol=1e-6)


def test_the_potential_is_the_one_that_the_prior_has():
    t = torch.linspace(-3, 3, 601, dtype=torch.float64)
    value, slope = potential(SMALL, t)
    assert value[300] == pytest.approx(0, abs=1e-12)
    # ψ' is the slope of ψ: central differences are exact on parabolas, and off by half a step's rise over a kink.
    rise = (value[2:] - value[:-2]) / (t[2:] - t[:-2])
    np.testing.assert_allclose(rise, slope[1:-1], atol=0.5 * 10 * 0.01)
    np.testing.assert_array_equal(t, torch.linspace(-3, 3, 601, dtype=torch.float64))
    # A filter that passes voxels through unchanged makes R the sum of potentials.
    one = replace(SMALL, layers=(np.ones((1, 1, 1, 1, 1), np.float32),), scaling=np.zeros((1, 2)), lambda_max=1.0)
    alpha = float(scaling(one, 0.02)[0])
    x = torch.rand(3, 4, 5, dtype=torch.float64)
    prior = Wcrr(one, sigma=0.02, dtype=torch.float64)
    assert prior.value(x) == pytest.approx(float(potential(one, alpha * x)[0].sum()) / alpha**2)
    left, right = figures.potential_figure(SMALL).axes
    for axes, part in ((left, 0), (right, 1)):
        where, drawn = axes.lines[0].get_data()
        np.testing.assert_array_equal(drawn, potential(SMALL, torch.from_numpy(where))[part])


@pytest.mark.parametrize("name", MODELS)
def test_the_scalings_are_drawn_for_every_channel(name):
    model = MODELS[name]
    axes = figures.scalings_figure(model).axes[0]
    lines = {int(line.get_label()): line for line in axes.lines if not line.get_label().startswith("_")}
    assert sorted(lines) == list(range(len(model.scaling)))
    sigma = lines[0].get_xdata()
    assert sigma[-1] == pytest.approx(model.sigma_max * model.sigma_unit)
    assert sigma[0] < model.sigma_default < sigma[-1]
    for at in (0, len(sigma) // 2, -1):
        np.testing.assert_array_equal([lines[c].get_ydata()[at] for c in sorted(lines)], scaling(model, sigma[at]))


def test_the_command_prints_the_card_and_draws(tmp_path):
    file, folder = tmp_path / "seven.safetensors", tmp_path / "deep" / "pictures"
    storage.save(file, SMALL)
    plain = bigdeconv("model", "show", file)
    result = bigdeconv("model", "show", file, "--output", folder)
    assert result.exit_code == 0, result.stderr
    card, closing = result.stdout.rstrip("\n").rsplit("\n", 1)
    assert card + "\n" == plain.stdout
    assert closing == f"Wrote {folder}: filters.png, potential.png, scalings.png, card.txt, card.json"
    assert (folder / "card.txt").read_text(encoding="utf-8") == plain.stdout
    values = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert (values["name"], values["channels"], values["parameters"]) == ("seven", "1 → 2 → 7", 54 + 378 + 35 + 3)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for name in "ab":
        models.draw(SMALL, tmp_path / name, {"name": "seven"})
    assert make.snapshot(tmp_path / "a") == make.snapshot(tmp_path / "b")


def test_an_existing_folder_is_left_alone(tmp_path):
    result = bigdeconv("model", "show", "--output", tmp_path)
    assert result.exit_code == 3
    assert result.stderr == f"bigdeconv: output: {str(tmp_path)!r} exists; give another folder, or remove it.\n"
    with pytest.raises(OutputExistsError, match="exists"):
        models.draw(SMALL, tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_the_card_of_the_model_is_the_default(tmp_path):
    models.draw(SMALL, tmp_path / "out")
    assert (tmp_path / "out" / "card.txt").read_text(encoding="utf-8") == models.card_text(models.card(SMALL)) + "\n"


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(StoreError, match="cannot be written"):
        models.draw(SMALL, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        models.draw(SMALL, tmp_path / "file" / "folder", {})


def test_a_model_that_is_none_is_one_sentence(tmp_path):
    result = bigdeconv("model", "show", "nothing", "--output", tmp_path / "out")
    assert result.exit_code == 3
    assert "neither a file nor a shipped model" in result.stderr
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = bigdeconv("model", "show", "--output", tmp_path / "out")
    assert result.exit_code == 3
    assert result.stderr == "bigdeconv: output: drawing needs matplotlib: pip install 'bigdeconv[plot]'.\n"
    assert not (tmp_path / "out").exists()
    assert bigdeconv("model", "show").exit_code == 0
    with pytest.raises(InvalidInputError, match="pip install"):
        figures.potential_figure(SMALL)
