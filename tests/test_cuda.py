"""On a GPU: the same results as on a CPU.  Skipped where there is none; ``python -m tests.benchmarks.gpu`` runs them too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bigdeconv import models, psf
from bigdeconv.deconvolution import make_blur, make_prior, restore
from bigdeconv.memory import Contents, Extents, device_terms
from bigdeconv.physics.convolution import Blur
from bigdeconv.request import _prior_memory
from tests import oracle
from tests.benchmarks import gpu
from tests.benchmarks.memory import GIB

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.mark.parametrize("name", gpu.METHODS)
def test_fifty_iterations_end_where_those_of_a_cpu_end(name):
    with torch.inference_mode():
        assert gpu.apart(name, "cuda", (24, 40, 42)) < gpu.MOST_APART


def test_the_forward_model_is_that_of_the_equations():
    psfs = oracle.random_psf(1, (5, 4, 6), views=2)
    blur = Blur(torch.tensor(psfs, device="cuda"), (12, 13, 15))
    x = np.random.default_rng(1).normal(size=blur.estimate_shape)
    y = np.random.default_rng(2).normal(size=(2, 12, 13, 15))
    assert oracle.relative(blur.forward(torch.tensor(x, device="cuda")).cpu(), oracle.forward(x, psfs)) < 1e-12
    assert oracle.relative(blur.adjoint(torch.tensor(y, device="cuda")).cpu(), oracle.adjoint(y, psfs)) < 1e-12


@pytest.mark.parametrize(
    ("method", "edge", "views", "weighted"),
    [("rl", 96, 1, True), ("rl", 320, 1, False), ("rl", 192, 6, True), ("rltv", 288, 1, False), ("garl", 288, 1, True)],
)
def test_what_a_block_allocates_is_what_was_promised(method, edge, views, weighted):
    model, read = models.resolve("compact"), (edge,) * 3
    settings = gpu.settings(method, model, "cuda", iterations=2)
    photons = np.random.default_rng(0).poisson(20.0, (views, *read)).astype(np.float32)
    weights = np.ones_like(photons) if weighted else None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    blur = make_blur(np.stack([psf.gaussian((2.0,) * 3)] * views), read, settings)
    restore(photons, weights, blur, make_prior(settings, model), settings)
    peak = torch.cuda.max_memory_allocated() - before
    prior = _prior_memory(method, model if method == "garl" else None, cuda=True, threads=1)
    block = Extents(read, blur.fft_shape, read)
    promised = sum(size for _, size in device_terms(Contents(views, prior=prior), block))
    assert peak <= promised
    assert promised < GIB or peak >= 0.7 * promised
