"""On a GPU: the same results as on a CPU.  Skipped where there is none; ``python -m tests.benchmarks.gpu`` runs them too.

The modules imported here need neither zarr nor Dask, so that a machine with torch alone can run them.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bigdeconv import models, psf
from bigdeconv.geometry import Box
from bigdeconv.numerics.convolution import Blur
from bigdeconv.numerics.restoration import make_prior, restore
from bigdeconv.planning.memory import Contents, Extents, device_terms
from bigdeconv.psf import PSF
from tests import oracle
from tests.benchmarks import gpu

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.mark.parametrize("name", gpu.METHODS)
def test_fifty_iterations_end_where_those_of_a_cpu_end(name):
    with torch.inference_mode():
        assert gpu.difference(name, "cuda", (24, 40, 42)) < gpu.MAX_DIFFERENCE


@pytest.mark.parametrize("name", [name for name, (method, _) in gpu.METHODS.items() if method == "garl"])
def test_the_gradient_of_the_prior_is_as_exact_as_float32(name):
    """Products of 10 bits, of half precision or TF32, show here before they show in an estimate."""
    assert gpu.gradient(name, "cuda", (12, 14, 18))["error"] < gpu.MAX_GRADIENT_ERROR


def test_the_forward_model_is_that_of_the_equations():
    psfs = oracle.random_psf(1, (5, 4, 6), views=2)
    blur = Blur(torch.tensor(psfs, device="cuda"), (12, 13, 15))
    x = np.random.default_rng(1).normal(size=blur.estimate_shape)
    y = np.random.default_rng(2).normal(size=(2, 12, 13, 15))
    assert oracle.relative(blur.forward(torch.tensor(x, device="cuda")).cpu(), oracle.forward(x, psfs)) < 1e-12
    assert oracle.relative(blur.adjoint(torch.tensor(y, device="cuda")).cpu(), oracle.adjoint(y, psfs)) < 1e-12


@pytest.mark.parametrize(
    ("method", "edge", "views", "weighted", "min_share"),
    [
        # Small transforms may need no work space, which the plan counts.
        ("rl", 96, 1, True, 0.5),
        ("rl", 320, 1, False, 0.7),
        ("rl", 192, 6, True, 0.7),
        ("rltv", 288, 1, False, 0.7),
        ("garl", 288, 1, True, 0.7),
    ],
)
def test_a_block_allocates_the_planned_memory(method, edge, views, weighted, min_share):
    pytest.importorskip("zarr", reason="the planner's requests come with the readers of volumes")
    from bigdeconv.jobs.plan_request import prior_memory

    model, read = models.resolve("compact"), (edge,) * 3
    settings = gpu.settings(method, model, "cuda", iterations=2)
    photons = np.random.default_rng(0).poisson(20.0, (views, *read)).astype(np.float32)
    weights = np.ones_like(photons) if weighted else None
    prepared = PSF(np.stack([psf.gaussian((2.0,) * 3)] * views), gpu.VOXEL_ZYX_UM)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    operator = prepared.operator(Box.of_shape(read), settings)
    restore(photons, weights, operator, make_prior(settings, model), settings)
    peak = torch.cuda.max_memory_allocated() - before
    prior = prior_memory(settings, model if method == "garl" else None, threads=1)
    block = Extents(read, operator.fft_shape, read)
    planned = sum(size for _, size in device_terms(Contents(views, prior=prior), block))
    assert min_share * planned <= peak <= planned
