"""Laws of the forward model H: the stated convolution, its adjoint, nothing circular."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigdeconv.numerics.convolution import Blur
from tests import oracle

EPS = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Relative; some 30 roundings (log2 of the FFT's size, products) of 1e-16 and 6e-8, with a margin of 10 and more."""

SHAPES = [
    ((12, 13, 14), (5, 5, 5)),
    ((13, 12, 15), (4, 6, 5)),
    ((1, 16, 17), (1, 7, 4)),
    ((1, 9, 8), (3, 5, 5)),
    ((3, 4, 20), (7, 9, 2)),
]


def dtypes():
    return pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def blur(psfs, data_shape, dtype):
    return Blur(torch.tensor(psfs, dtype=dtype), data_shape)


def adjoint_gap(psfs, data_shape, dtype, seed):
    """``|<H x, y> - <x, H^T y>| / (|H x| |y|)``, summed in float64."""
    operator = blur(psfs, data_shape, dtype)
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(size=operator.estimate_shape), dtype=dtype)
    y = torch.tensor(rng.normal(size=(len(psfs), *data_shape)), dtype=dtype)
    hx, hty = operator.forward(x).double(), operator.adjoint(y).double()
    x, y = x.double(), y.double()
    return float(abs((hx * y).sum() - (x * hty).sum()) / (hx.norm() * y.norm()))


@dtypes()
@pytest.mark.parametrize(("data_shape", "psf_shape"), SHAPES)
def test_windows_forward_and_adjoint_are_those_of_the_equations(data_shape, psf_shape, dtype):
    rng = np.random.default_rng(1)
    psfs = oracle.random_psf(1, psf_shape, views=2)
    operator = blur(psfs, data_shape, dtype)
    assert tuple(operator.estimate_shape) == tuple(n + p - 1 for n, p in zip(data_shape, psf_shape, strict=True))
    assert tuple(operator.data_slices) == oracle.data_slices(data_shape, psf_shape)
    x, y = rng.normal(size=operator.estimate_shape), rng.normal(size=(2, *data_shape))
    forward = operator.forward(torch.tensor(x, dtype=dtype))
    adjoint = operator.adjoint(torch.tensor(y, dtype=dtype))
    assert forward.dtype == adjoint.dtype == dtype
    assert oracle.relative(forward, oracle.forward(x, psfs)) < EPS[dtype]
    assert oracle.relative(adjoint, oracle.adjoint(y, psfs)) < EPS[dtype]


@dtypes()
@pytest.mark.parametrize(("data_shape", "psf_shape"), SHAPES)
def test_adjoint(data_shape, psf_shape, dtype):
    assert adjoint_gap(oracle.random_psf(2, psf_shape, views=3), data_shape, dtype, 2) < EPS[dtype]


axis = st.tuples(st.integers(1, 14), st.integers(1, 9))


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(axes=st.tuples(axis, axis, axis), views=st.integers(1, 3), seed=st.integers(0, 1000))
def test_adjoint_of_any_shape(axes, views, seed):
    data_shape, psf_shape = (tuple(a[i] for a in axes) for i in range(2))
    psfs = np.random.default_rng(seed).uniform(size=(views, *psf_shape))
    assert adjoint_gap(psfs, data_shape, torch.float64, seed) < EPS[torch.float64]
    assert adjoint_gap(psfs, data_shape, torch.float32, seed) < EPS[torch.float32]


@pytest.mark.parametrize("slab_bytes", [1, 3000, 10_000])
@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize(("data_shape", "psf_shape"), SHAPES)
def test_slabs_change_nothing(data_shape, psf_shape, views, slab_bytes):
    """Forward and adjoint with a function of the plane and the view in between are the same in slabs and at once."""
    psfs = torch.tensor(oracle.random_psf(5, psf_shape, views=views))
    operator, whole = Blur(psfs, data_shape, slab_bytes=slab_bytes), Blur(psfs, data_shape, slab_bytes=2**40)
    x = torch.tensor(np.random.default_rng(5).uniform(size=operator.estimate_shape))
    factors = torch.tensor(np.random.default_rng(6).uniform(size=(views, *data_shape)))
    expected = whole.adjoint(factors * whole.forward(x).square()).numpy()
    for blur in (operator, whole):
        result = blur.forward_then_adjoint(x, lambda v, z, planes: planes.square_().mul_(factors[v, z]))
        assert oracle.relative(result, expected) < EPS[torch.float64]
        assert oracle.relative(blur.forward(x), whole.forward(x).numpy()) < EPS[torch.float64]


@pytest.mark.parametrize("psf_shape", [(5, 7, 3), (4, 6, 2)])
@pytest.mark.parametrize("data_shape", [(12, 15, 14), (13, 14, 11)])
def test_a_point_becomes_the_psf_around_it(data_shape, psf_shape):
    psfs = oracle.random_psf(3, psf_shape, views=2)
    operator = blur(psfs, data_shape, torch.float64)
    point = (6, 7, 5)
    x = torch.zeros(operator.estimate_shape, dtype=torch.float64)
    x[operator.data_slices][point] = 1.0
    expected = np.zeros((2, *data_shape))
    around = tuple(slice(m - p // 2, m - p // 2 + p) for m, p in zip(point, psf_shape, strict=True))
    expected[(slice(None), *around)] = psfs
    # 1e-14: rounding of an FFT of values below 1.
    np.testing.assert_allclose(operator.forward(x).numpy(), expected, atol=1e-14)


def test_a_point_in_the_margin_is_seen_at_its_own_side_only():
    data_shape, psf_shape = (10, 12, 11), (5, 4, 3)
    psfs = oracle.random_psf(4, psf_shape)
    operator = blur(psfs, data_shape, torch.float64)
    x = torch.zeros(operator.estimate_shape, dtype=torch.float64)
    x[0, 0, 0] = 1.0  # position -(P-1-c) on each axis: only the PSF's last voxel reaches the data window
    y = operator.forward(x).numpy()[0]
    assert y[0, 0, 0] == pytest.approx(psfs[0, -1, -1, -1], rel=1e-12)
    y[0, 0, 0] = 0.0
    assert np.abs(y).max() < 1e-14  # rounding alone
