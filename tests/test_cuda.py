"""On a GPU: the same results as on a CPU.  Skipped where there is none; ``python -m tests.benchmarks.gpu`` runs them too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bigdeconv.physics.convolution import Blur
from tests import oracle
from tests.benchmarks import gpu

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
