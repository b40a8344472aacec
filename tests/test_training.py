"""Training of the learned prior: the implicit derivative, the bounds, resuming, exporting, and refusals."""

import inspect
import json
import math

import numpy as np
import pytest
import torch
import typer
from bigdeconv_cli.train import train as train_command
from typer.testing import CliRunner

from bigdeconv import models, training
from bigdeconv.errors import InvalidInputError, OutputExistsError, StoreError
from bigdeconv.models import digest
from bigdeconv.numerics.priors.wcrr import Wcrr, fourier_lambda_max
from bigdeconv.storage import weights as files
from bigdeconv.training import checkpoints
from bigdeconv.training.config import make_config
from bigdeconv.training.data import checked, draw, measured_part, training_volumes
from bigdeconv.training.denoiser import conjugate_gradients, denoise, parameter_surrogate
from bigdeconv.training.loop import learning_rate, loss
from bigdeconv.training.regularizer import Regularizer
from bigdeconv.training.widening import start_from

pytestmark = pytest.mark.slow

TINY = {
    "name": "tiny",
    "channels": [2, 4],
    "crop_zyx": [10, 12, 12],
    "margin": 2,
    "batch": 2,
    "steps": 4,
    "warmup": 0,
    "check_every": 2,
    "checkpoint_seconds": 0,
    "data": {
        "volumes": 3,
        "held_out": 1,
        "zyx_shape": [12, 20, 20],
        "tubes": [2, 4],
        "fluorophores_per_um": [200, 300],
        "blur_um": [0.05, 0.08],
    },
}


def config(**settings):
    return make_config({**TINY, **settings})


def scrambled(regularizer, seed=3, size=0.5):
    """Move all parameters away from their first values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in regularizer.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return regularizer


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Let torch use one thread: more of them only wait for each other on problems as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished training."""
    folder = tmp_path_factory.mktemp("trained")
    lines = []
    training.train(config(), folder, threads=1, report=lines.append)
    return folder, lines


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The model file of that training and the returned model; its card takes 500 steps at three noise levels."""
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    return path, training.export(trained[0], path)


# --- the derivative -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    """A batch of two noise levels in float64 and a way to its fixed point and the loss there."""
    settings = config()
    rng = np.random.default_rng(1)
    regularizer = scrambled(Regularizer(settings)).double()
    batch = draw(settings, [rng.random((12, 14, 14)).astype(np.float32) for _ in range(2)], 0)
    clean, noisy = batch.clean.double(), batch.noisy.double()
    sigma = torch.tensor([7.0, 31.0], dtype=torch.float64)
    batch = type(batch)(clean, noisy, sigma)

    def solve():
        operator = regularizer.at(sigma)
        frozen = operator.detach()
        return operator, denoise(noisy, frozen.gradient, float(frozen.mu), iterations=300, tolerance=1e-15)

    return settings, regularizer, batch, solve


def test_fixed_point_is_stationary(problem):
    _, _, batch, solve = problem
    operator, x = solve()
    residual = x - batch.noisy + operator.detach().gradient(x)
    # Steps of 1/(1 + mu) below 1e-14 of the norm leave a gradient of (1 + mu) times that.
    assert float(residual.norm()) <= 1e-12 * float(x.norm())


def test_hessian_is_the_slope_of_the_gradient_and_symmetric(problem):
    _, _, _, solve = problem
    operator, x = solve()
    operator = operator.detach()
    generator = torch.Generator().manual_seed(5)
    u, v = (torch.randn(x.shape, dtype=x.dtype, generator=generator) for _ in range(2))
    hessian = operator.hessian(x)
    assert float((u * hessian(v)).sum()) == pytest.approx(float((hessian(u) * v).sum()), rel=1e-12)
    step = 1e-7
    slope = (operator.gradient(x + step * u) - operator.gradient(x - step * u)) / (2 * step)
    # Few of the 10^4 responses are within 1e-7 of a corner of psi'.
    assert float((slope - hessian(u)).norm()) <= 1e-2 * float(slope.norm())


@pytest.mark.parametrize("name", ["filters.0", "filters.1", "scaling", "raw_mu", "raw_beta", "raw_gamma"])
def test_implicit_derivative_is_that_of_the_fixed_point(problem, name):
    settings, regularizer, batch, solve = problem
    operator, x = solve()
    regularizer.zero_grad()
    surrogate, _ = parameter_surrogate(operator, x, loss(settings, x, batch)[1], iterations=500, tolerance=1e-13)
    surrogate.backward()
    parameter = regularizer.get_parameter(name)
    direction = torch.randn(parameter.shape, dtype=parameter.dtype, generator=torch.Generator().manual_seed(6))
    expected = float((parameter.grad * direction).sum())
    step, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            parameter += sign * step * direction
        values.append(loss(settings, solve()[1], batch)[0])
        with torch.no_grad():
            parameter -= sign * step * direction
    # Central differences of a loss near 1 that is known to 1e-12: 1e-6; psi' has corners, which the fixed point may cross.
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_loss_slope_is_its_derivative():
    settings = config()
    batch = draw(settings, [np.random.default_rng(2).random((10, 12, 12)).astype(np.float32)], 1)
    x = batch.noisy.double().requires_grad_()
    value, slope = loss(settings, x.detach(), batch)
    inner = (slice(None), slice(2, -2), slice(2, -2), slice(2, -2))
    squares = (255 * (x[inner] - batch.clean[inner])).square().mean(dim=(1, 2, 3))
    expected = (squares * (batch.sigma + 1) ** -settings.loss_power).mean()
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-6)
    torch.testing.assert_close(slope, x.grad, rtol=1e-5, atol=1e-9)


def test_conjugate_gradients_solve_each_item_and_leave_one_without_slope_alone():
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(24, 24, dtype=torch.float64, generator=generator)
    matrix = root @ root.T + torch.eye(24)
    right = torch.randn(3, 2, 3, 4, dtype=torch.float64, generator=generator)
    right[1] = 0
    found, taken = conjugate_gradients(
        lambda u: (u.flatten(1) @ matrix).view_as(u), right, iterations=100, tolerance=1e-10
    )
    assert taken < 60
    expected = torch.linalg.solve(matrix, right.flatten(1).T).T.view_as(right)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    assert not found[1].any()


# --- the bounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_for_any_parameters(seed):
    settings = config(mu_max=10, gamma_max=0.95)
    regularizer = scrambled(Regularizer(settings), seed, size=4.0)
    model = regularizer.weights(settings, {})
    assert math.exp(model.log_mu) <= 10 * (1 + 1e-6)
    assert 0 <= model.gamma <= 0.95 * (1 + 1e-6)
    assert model.beta > 0
    np.testing.assert_allclose(model.layers[0].sum(axis=(1, 2, 3, 4)), 0, atol=1e-5)
    normed = [*model.layers[:-1], model.layers[-1] / math.sqrt(model.lambda_max)]
    assert fourier_lambda_max(normed) == pytest.approx(1, rel=1e-5)


def test_curvature_lies_between_the_bounds(problem):
    _, _, _, solve = problem
    operator, x = solve()
    hessian, operator = operator.detach().hessian(x), operator.detach()
    generator = torch.Generator().manual_seed(7)
    for _ in range(20):
        u = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        for _ in range(3):  # towards the largest curvature
            u = hessian(u)
            curvature = (u * hessian(u)).sum() / (u * u).sum()
            assert -float(operator.gamma) <= float(curvature) <= float(operator.mu) * (1 + 1e-2)


def test_norm_of_the_coarse_grid_is_that_of_the_fine_one():
    settings = config()
    regularizer = scrambled(Regularizer(settings))
    coarse = training.regularizer.lambda_max(regularizer.layers())
    fine = regularizer.weights(settings, {}).lambda_max
    # The power is a trigonometric polynomial of degree 4 per axis; between points pi/16 apart it exceeds them by at most
    # 1/cos(4 pi/32) per axis.
    assert math.cos(math.pi / 8) ** 3 * fine <= float(coarse.detach()) <= fine * (1 + 1e-5)


# --- the model that comes out ---------------------------------------------------------------------------------------


def test_exported_model_denoises_as_in_training(trained, exported):
    folder, _ = trained
    path, returned = exported
    model = files.load(path)
    assert digest(model) == digest(returned) == model.card["digest"]

    regularizer = Regularizer(config())
    regularizer.load_state_dict(checkpoints.load(folder)[1]["regularizer"])
    batch = draw(config(), training_volumes(config(), folder)[0], 0)
    operator = regularizer.at(batch.sigma).detach()
    mu = math.exp(model.log_mu)
    in_training = denoise(batch.noisy, operator.gradient, mu, iterations=100, tolerance=1e-5)
    for i, sigma in enumerate(batch.sigma.tolist()):
        prior = Wcrr(model, sigma=sigma / 255)
        alone = denoise(
            batch.noisy[i : i + 1], lambda x, p=prior: p.gradient(x[0])[None], mu, iterations=100, tolerance=1e-5
        )
        # The norms of the coarse and the fine grid differ by some 1e-3; the solutions by less.
        assert float((alone - in_training[i : i + 1]).norm()) <= 2e-3 * float(alone.norm())


def test_card_contains_data_settings_and_measurements(exported):
    card = exported[1].card
    assert card["steps_trained"] == 4
    assert card["seed"] == 1
    assert card["data"]["axial_to_lateral"] == "1.5 to 4"
    assert set(card["psnr_db"]) == {"σ 5/255", "σ 15/255", "σ 25/255"}
    assert set(card["psnr_db"]["σ 5/255"]) == {"noisy", "15 steps", "100 steps", "500 steps"}
    assert make_config(card["settings"]) == config()


def test_card_sets_another_model_beside_its_own(trained, tmp_path):
    """The model compared with itself has the same PSNR on the same volumes."""
    folder, _ = trained
    model = training.export(folder, tmp_path / "model.safetensors")
    card = training.export(folder, tmp_path / "again.safetensors", compared_with=model).card
    assert card["compared_with"] == {"name": "tiny", "psnr_db": model.card["psnr_db"]}
    other = training.export(
        folder, tmp_path / "other.safetensors", compared_with=models.resolve("finite-differences")
    ).card
    assert other["compared_with"]["name"] == "finite-differences"
    assert other["compared_with"]["psnr_db"] != other["psnr_db"] == card["psnr_db"]


def test_export_leaves_an_existing_file_alone(trained, tmp_path):
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(OutputExistsError, match="exists; give another path"):
        training.export(trained[0], tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_text() == "mine"


def test_export_takes_settings_that_do_not_decide_the_training_from_the_configuration(trained, tmp_path):
    folder, _ = trained
    model = training.export(folder, tmp_path / "model.safetensors", config=config(kappa=0.7, sigma_default=9))
    assert (model.kappa, model.sigma_default) == (0.7, pytest.approx(9 / 255))
    with pytest.raises(InvalidInputError, match="batch was 2, is 3"):
        training.export(folder, tmp_path / "other.safetensors", config=config(batch=3))
    assert not (tmp_path / "other.safetensors").exists()


def test_evaluation_of_no_steps_is_the_noise(trained):
    folder, _ = trained
    model = Regularizer(config()).weights(config(), {})
    volumes = training_volumes(config(), folder)[1]
    table = training.evaluate(model, [5.0], volumes, steps=(0, 3))
    # Noise of 5/255 over some 2000 voxels: its mean square is known to 3 %, 0.14 dB.
    assert table[5.0][0] == pytest.approx(20 * math.log10(255 / 5), abs=0.4)
    assert table[5.0][3] != table[5.0][0]


# --- the course of a training ---------------------------------------------------------------------------------------


def test_training_learns(tmp_path):
    settings = config(steps=40, learning_rate=2e-2, check_every=1000, checkpoint_seconds=1e6)
    training.train(settings, tmp_path, threads=1)
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [40]
    start = Regularizer(settings).weights(settings, {})
    before = training.evaluate(start, [25.0], training_volumes(settings, tmp_path)[1], steps=(100,))[25.0][100]
    assert lines[0]["psnr_db"]["25.0"] > before + 0.5


def test_progress_is_reported_and_written(trained):
    folder, lines = trained
    assert [line.step for line in lines] == [2, 4]
    assert set(lines[0].psnr_db) == {5.0, 15.0, 25.0}
    assert lines[-1].seconds_left == 0
    assert str(lines[0]).startswith("step 2/4  loss ")
    written = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in written] == [line.loss for line in lines]


def test_resumed_training_gives_the_bytes_of_an_uninterrupted_one(trained, tmp_path):
    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(config(), tmp_path, threads=1, report=stop)
    assert checkpoints.load(tmp_path)[1]["step"] == 1
    training.train(config(), tmp_path, threads=1, resume=True)
    resumed, uninterrupted = (checkpoints.load(folder)[1] for folder in (tmp_path, trained[0]))
    for name, tensor in uninterrupted["regularizer"].items():
        assert tensor.numpy().tobytes() == resumed["regularizer"][name].numpy().tobytes(), name
    for key, moments in uninterrupted["optimizer"]["state"].items():
        for name, tensor in moments.items():
            assert tensor.numpy().tobytes() == resumed["optimizer"]["state"][key][name].numpy().tobytes(), name


def test_ended_training_goes_on_with_more_steps(trained, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes((trained[0] / "checkpoint.pt").read_bytes())
    training.train(config(steps=5, kappa=0.5), tmp_path, resume=True)
    assert checkpoints.load(tmp_path)[1]["step"] == 5


@pytest.mark.parametrize("channels", [[2, 4], [2, 12]])
def test_warm_start_is_the_model_that_it_starts_from(tmp_path, channels, monkeypatch):
    monkeypatch.setattr("bigdeconv.training.widening._UNLIKE", 0.0)
    first = config(channels=[2, 4])
    model = scrambled(Regularizer(first), size=0.2).weights(first, {})
    files.save(tmp_path / "model.safetensors", model)
    wide = config(channels=channels, warm_start=str(tmp_path / "model.safetensors"))
    regularizer = Regularizer(wide)
    start_from(regularizer, files.load(tmp_path / "model.safetensors"), wide)
    x = torch.rand((12, 13, 14), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before, after = (
        Wcrr(weights, sigma=7 / 255, dtype=torch.float64).gradient(x)
        for weights in (model, regularizer.weights(wide, {}))
    )
    # float32 parameters.
    assert float((before - after).norm() / before.norm()) < 1e-5


def test_warm_started_training_begins_where_the_model_is_good(exported, tmp_path):
    wide = config(channels=[2, 8], warm_start=str(exported[0]), steps=2)
    training.train(wide, tmp_path / "wide", threads=1)
    copies = checkpoints.load(tmp_path / "wide")[1]["regularizer"]["filters.1"]
    assert float((copies[:4] - copies[4:]).abs().min()) > 0  # the copies are not the same any more


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": [2, 6]}, "only the last channel number may be a multiple"),
        ({"channels": [3, 8]}, "only the last channel number may be a multiple"),
        ({"knots": 5}, "and 5, of which only the last"),
        ({"mu_max": 1.0}, "Raise these or use another model"),
        ({"warm_start": "nowhere.safetensors"}, "neither a file nor a shipped model"),
    ],
)
def test_warm_start_from_another_architecture_is_refused(exported, tmp_path, settings, message):
    with pytest.raises(InvalidInputError, match=message):
        training.train(config(**{"warm_start": str(exported[0]), **settings}), tmp_path / "wide")
    assert not (tmp_path / "wide" / checkpoints.NAME).exists()


def test_learning_rate_rises_and_falls_to_a_hundredth():
    settings = config(steps=100, warmup=10)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert max(rates) <= settings.learning_rate
    assert np.argmax(rates) == 10
    assert rates[-1] == pytest.approx(settings.learning_rate / 100)
    assert rates[0] < rates[5] < rates[10] > rates[50] > rates[99]


# --- the volumes ----------------------------------------------------------------------------------------------------


def test_volumes_are_kept_and_held_out_ones_do_not_depend_on_the_others(tmp_path):
    first = training_volumes(config(), tmp_path)
    (kept,) = tmp_path.glob("volumes-*.npz")
    written = kept.stat().st_mtime_ns
    again = training_volumes(config(), tmp_path)
    assert kept.stat().st_mtime_ns == written
    np.testing.assert_array_equal(first[1][0], again[1][0])
    fewer = training_volumes(config(data={**TINY["data"], "volumes": 1}), tmp_path)
    np.testing.assert_array_equal(first[1][0], fewer[1][0])
    assert len(first[0]) == 3
    assert all(volume.max() == 1 for volume in first[0])


def test_own_volumes_are_scaled_and_the_last_are_held_out(tmp_path):
    rng = np.random.default_rng(1)
    own = [rng.random((12, 14, 16)) * 50 for _ in range(3)]
    np.savez(tmp_path / "own.npz", *own)
    first, held_out = training_volumes(config(volumes=str(tmp_path / "own.npz")), tmp_path)
    assert (len(first), len(held_out)) == (2, 1)
    np.testing.assert_allclose(held_out[0], own[2] / own[2].max(), rtol=1e-6)


def test_crops_keep_the_axis_z_and_noise_has_its_level(tmp_path):
    planes = np.zeros((12, 30, 14), np.float32)
    planes += np.arange(1, 13, dtype=np.float32)[:, None, None]
    settings = config(sigma_max=20, batch=4)
    batch = draw(settings, [planes / 12], 3)
    assert not batch.clean.diff(dim=2).any()
    assert batch.clean.diff(dim=1).abs().min() > 0
    noise = (batch.noisy - batch.clean).flatten(1).std(dim=1) * 255
    # 1440 voxels: 1.9 % standard deviation, five of them.
    torch.testing.assert_close(noise, batch.sigma, rtol=0.1, atol=0.0)


def test_measured_part_is_the_brightest_one():
    volume = np.random.default_rng(4).random((5, 6, 7)).astype(np.float32) ** 4
    part = measured_part(volume, (3, 9, 4))
    assert part.shape == (3, 6, 4)
    sums = [volume[z : z + 3, :, x : x + 4].sum() for z in range(3) for x in range(4)]
    assert part.sum() == pytest.approx(max(sums), rel=1e-5)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.zeros((12, 20, 20)), "got volume 1, which is constant"),
        (np.full((12, 20, 20), 3.0), "got volume 1, which is constant"),
        (np.where(np.arange(20) == 3, np.nan, np.ones((12, 20, 1))), "got volume 1 with NaN or infinity"),
        (np.where(np.arange(20) == 3, np.inf, np.ones((12, 20, 1))), "got volume 1 with NaN or infinity"),
        (np.ones((12, 20, 11)), r"got volume 1 of shape \(12, 20, 11\); expected z y x of at least \(10, 12, 12\)"),
        (np.ones((20, 20)), r"got volume 1 of shape \(20, 20\)"),
        (-np.random.default_rng(1).random((12, 20, 20)), "no positive value"),
    ],
)
def test_unusable_volumes_are_refused(volume, message):
    with pytest.raises(InvalidInputError, match=message):
        checked(volume, (10, 12, 12), "volume 1")


def test_file_without_volumes_is_refused(tmp_path):
    path = tmp_path / "own.npz"
    with pytest.raises(InvalidInputError, match="not a readable npz file"):
        training_volumes(config(volumes=str(path)), tmp_path)
    path.write_bytes(b"nothing")
    with pytest.raises(InvalidInputError, match="not a readable npz file"):
        training_volumes(config(volumes=str(path)), tmp_path)
    np.savez(path, np.ones((12, 20, 20)))
    with pytest.raises(InvalidInputError, match=r"got 1 volumes in .*; expected more than the 1"):
        training_volumes(config(volumes=str(path)), tmp_path)


def test_checkpoint_of_another_configuration_is_refused_and_kept(trained):
    folder, _ = trained
    before = (folder / "checkpoint.pt").read_bytes()
    with pytest.raises(InvalidInputError, match=r"another configuration \(batch was 2, is 3\)"):
        training.train(config(batch=3), folder, resume=True)
    with pytest.raises(OutputExistsError, match="continue it with --resume"):
        training.train(config(), folder)
    assert (folder / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04 torn"])
def test_damaged_checkpoint_is_refused_and_kept(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InvalidInputError, match="is damaged or not the checkpoint"):
        training.train(config(), tmp_path, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == content


def test_checkpoint_that_would_run_code_is_refused(tmp_path):
    torch.save({"step": print}, tmp_path / "checkpoint.pt")
    with pytest.raises(InvalidInputError, match="is damaged or not the checkpoint"):
        training.train(config(), tmp_path, resume=True)


def test_export_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="which contains none"):
        training.export(tmp_path, tmp_path / "model.safetensors")


def test_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="cannot be made"):
        training.train(config(), tmp_path / "file")


def test_device_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidInputError, match="device: got 'cuda'; expected auto, cpu on this machine"):
        training.train(config(), tmp_path, device="cuda")


def test_loss_that_is_not_finite_is_reported_and_nothing_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(training.loop, "loss", lambda *_: (math.nan, None))
    with pytest.raises(InvalidInputError, match=r"learning_rate: got 0\.005, with which the loss is nan"):
        training.train(config(), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_zyx": [4, 12, 12]}, "expected at least 5 voxels"),
        ({"gamma_max": 1.0}, "gamma_max: got 1.0"),
        ({"stepz": 3}, "stepz: got 3"),
        ({"data": {"lateral_um": [0.2, 0.1]}}, "expected the smaller number first"),
        ({"learning_rate": math.inf}, "learning_rate: got inf"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [("- 1", "does not contain settings by name"), ("a: [", "is not YAML"), ("name: x", "steps: got")],
)
def test_wrong_files_of_settings_are_named(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        training.load_config(path)


def test_shipped_configurations_can_be_read():
    assert {"start", "compact", "large"} <= set(training.config_names())
    assert training.load_config("compact", steps=7).steps == 7
    with pytest.raises(
        InvalidInputError, match="neither a readable file nor a shipped name; expected a YAML file or one of compact"
    ):
        training.load_config("unknown")


# --- the command line -----------------------------------------------------------------------------------------------


def test_command_trains_and_exports(tmp_path):
    app = typer.Typer()
    app.command()(train_command)
    (tmp_path / "own.yaml").write_text(json.dumps(TINY))
    arguments = ["--config", str(tmp_path / "own.yaml"), "--output", str(tmp_path / "out"), "--steps", "2"]
    arguments += ["--threads", "1", "--device", "cpu"]
    exporting = [*arguments, "--export", str(tmp_path / "model.safetensors")]
    run = CliRunner().invoke(app, exporting)
    assert run.exit_code == 0, run.output
    assert "step 2/2" in run.output
    assert "Wrote" in run.output
    assert files.load(tmp_path / "model.safetensors").card["name"] == "tiny"

    refused = CliRunner().invoke(app, exporting)
    assert refused.exit_code == 3
    assert "exists; give another path" in refused.output
    assert CliRunner().invoke(app, arguments).exit_code == 3
    assert CliRunner().invoke(app, [*arguments, "--resume"]).exit_code == 0
    compared = [
        *arguments,
        "--resume",
        "--export",
        str(tmp_path / "beside.safetensors"),
        "--compare",
        "finite-differences",
    ]
    assert CliRunner().invoke(app, compared).exit_code == 0
    assert files.load(tmp_path / "beside.safetensors").card["compared_with"]["name"] == "finite-differences"
    nowhere = CliRunner().invoke(app, [*arguments, "--resume", "--compare", "finite-differences"])
    assert nowhere.exit_code == 3
    assert "goes into the exported card" in nowhere.output


def test_every_other_crop_has_correlated_noise_of_the_same_strength(tmp_path):
    """White noise has nothing in common with its neighbours; the other kind has, along every axis."""
    settings = config(noise_blur=2.0, crop_zyx=[12, 20, 20])
    volumes, _ = training_volumes(settings, tmp_path)
    white, correlated = [], []
    for step in range(40):
        batch = draw(settings, volumes, step)
        for crop, sigma in zip(batch.noisy - batch.clean, batch.sigma, strict=True):
            (correlated if len(correlated) < len(white) else white).append((crop / sigma * 255).numpy())
    for noise, likeness in ((np.stack(white), 0.0), (np.stack(correlated), 0.5)):
        assert noise.std() == pytest.approx(1, abs=0.05)
        for axis in (1, 2, 3):
            neighbours = np.take(noise, range(1, noise.shape[axis]), axis) * np.delete(noise, -1, axis)
            assert neighbours.mean() == pytest.approx(likeness, abs=0.2)


def test_the_command_begins_with_nothing_but_the_package():
    default = inspect.signature(train_command).parameters["config"].default
    assert training.load_config(default).warm_start is None
