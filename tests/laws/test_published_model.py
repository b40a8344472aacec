"""Imported pyxudeconv models: their gradient is that of the zero-padded layers of the authors."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import conv3d, conv_transpose3d

from bigdeconv.models import import_pyxudeconv
from bigdeconv.numerics.priors.wcrr import Wcrr
from bigdeconv.storage import weights as storage
from tests import oracle
from tests.published import CHANNELS, PUBLISHED, needs_published, write_cropped

LAMBDA_MAX = 8.06e5
"""The authors' Fourier estimate of the published model while training."""


@pytest.fixture(scope="module", params=["cropped", pytest.param("published", marks=needs_published)])
def folder(request, tmp_path_factory):
    """A folder of the published architecture: with few channels and random weights, and the published one itself."""
    if request.param == "published":
        return PUBLISHED
    return write_cropped(tmp_path_factory.mktemp("cropped"))


@pytest.fixture(scope="module")
def raw(folder):
    """The checkpoint's own tensors, float64."""
    state = torch.load(next(folder.glob("checkpoint_*.pth")), map_location="cpu", weights_only=True)["state_dict"]
    return {name: value.detach().double() for name, value in state.items()}


@pytest.fixture(scope="module")
def imported(folder):
    return import_pyxudeconv(folder)


def layers_of(raw):
    first, second, third = (raw[name] for name in raw if "conv_layers" in name)
    return first - first.mean(dim=(1, 2, 3, 4), keepdim=True), second, third


def padded_gradient(folder, raw, x, sigma_255, lambda_max):
    """The authors' formula: ``padding=1`` in each of the three 3x3x3 convolutions and in their transposes."""
    config = json.loads((folder / "config.json").read_text())["spline_scaling"]
    knots = np.linspace(config["x_min"], config["x_max"], config["num_knots"])
    spline = [np.interp(sigma_255, knots, row) for row in raw["spline_scaling.coefficients"].numpy()]
    alpha = torch.tensor(np.exp(spline) / (sigma_255 + 1e-5)).reshape(1, -1, 1, 1, 1)
    norm = lambda_max**0.5
    t = x[None, None]
    for w in layers_of(raw):
        t = conv3d(t, w, padding=1)
    t = alpha * t / norm
    mu, beta, gamma = raw["mu_"].exp(), raw["beta"], raw["gamma"].abs().clamp(max=1.0)
    t = t.sign() * torch.minimum(mu * t.abs(), beta - gamma * t.abs()).clamp(min=0) / alpha
    for w in layers_of(raw)[::-1]:
        t = conv_transpose3d(t, w, padding=1)
    return t[0, 0] / norm


def test_imported_numbers(folder, raw, imported):
    last = 64 if folder == PUBLISHED else CHANNELS[-1]
    assert [layer.shape for layer in imported.layers] == [(4, 1, 3, 3, 3), (8, 4, 3, 3, 3), (last, 8, 3, 3, 3)]
    for ours, theirs in zip(imported.layers, layers_of(raw), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)  # stored as float32
    np.testing.assert_allclose(imported.scaling, raw["spline_scaling.coefficients"].numpy(), rtol=1e-6)
    assert (imported.sigma_max, imported.sigma_unit) == (50, pytest.approx(1 / 255))
    for name, value in (("log_mu", raw["mu_"]), ("beta", raw["beta"]), ("gamma", raw["gamma"])):
        assert getattr(imported, name) == pytest.approx(float(value), rel=1e-6)
    exact = oracle.fourier_norm_squared(imported.layers)
    # The grid of frequencies misses the peak by at most 1 %, see test_fourier_lambda_max_is_the_supremum_over_frequencies.
    assert exact * 0.99 <= imported.lambda_max <= exact * (1 + 1e-6)
    if folder == PUBLISHED:  # whose authors give three digits
        assert imported.lambda_max == pytest.approx(LAMBDA_MAX, rel=2e-3)


@pytest.mark.parametrize("amplitude", [1.0, 0.02])
@pytest.mark.parametrize("sigma_255", [1.2, 5.0, 17.0])
def test_gradient_is_that_of_the_padded_layers_in_the_interior(folder, raw, imported, sigma_255, amplitude):
    rng = np.random.default_rng(1)
    x = np.full((20, 21, 18), 0.1)
    x[6:15, 8:13, 7:11] += 0.7
    x = torch.tensor(amplitude * (x + 0.05 * rng.normal(size=x.shape)))
    prior = Wcrr(imported, sigma=sigma_255 / 255, dtype=torch.float64, device="cpu")
    ours = prior.gradient(x)
    theirs = padded_gradient(folder, raw, x, sigma_255, imported.lambda_max)
    inner = (slice(6, -6),) * 3
    # Layers stored as float32 (6e-8), responses that cancel over 600 taps, and a slope mu = 835 of the potential.
    assert float((ours - theirs)[inner].norm() / theirs[inner].norm()) < 1e-5
    # At the border the two differ by design: for padded layers the outside is dark.
    assert float((ours - theirs).norm() / theirs.norm()) > 1e-2


def test_survives_its_file(imported, tmp_path):
    path = tmp_path / "tubes.safetensors"
    storage.save(path, imported)
    again = storage.load(path)
    x = torch.rand((10, 10, 10), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before, after = (Wcrr(w, sigma=2 / 255, dtype=torch.float64).gradient(x) for w in (imported, again))
    # The file holds float32.
    assert float((before - after).norm() / before.norm()) < 1e-5
