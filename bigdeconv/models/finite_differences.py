"""A model with filters set by hand, for comparison with trained ones."""

from __future__ import annotations

import math
from itertools import product

import numpy as np

from bigdeconv.numerics.priors.wcrr import fourier_lambda_max
from bigdeconv.numerics.priors.weights import WcrrWeights


def finite_differences() -> WcrrWeights:
    """Return a model of finite differences in the 13 directions of the 26-neighbourhood.

    It assumes no particular structure, and acts like an isotropic total variation with a rounded, slightly concave potential.

    Returns
    -------
    WcrrWeights

    Examples
    --------
    >>> finite_differences().layers[0].shape
    (13, 1, 3, 3, 3)
    """
    layer = _directional_differences()
    return WcrrWeights(
        layers=(layer,),
        scaling=np.full((len(layer), 2), math.log(2 * 255), np.float32),
        sigma_max=50.0,
        sigma_unit=1 / 255,
        log_mu=math.log(10.0),
        beta=1.0,
        gamma=0.1,
        lambda_max=fourier_lambda_max([layer]),
        kappa=0.004,
        sigma_default=10 / 255,
        card={"name": "finite-differences", "about": "hand-set directional differences, not trained"},
    )


def _directional_differences() -> np.ndarray:
    """Return kernels ``direction 1 z y x``: neighbour minus centre, divided by their distance in voxels."""
    directions = [d for d in product((-1, 0, 1), repeat=3) if d > (0, 0, 0)]
    kernels = np.zeros((len(directions), 1, 3, 3, 3), np.float32)
    for kernel, (dz, dy, dx) in zip(kernels, directions, strict=True):
        distance = math.sqrt(dz * dz + dy * dy + dx * dx)
        kernel[0, 1 + dz, 1 + dy, 1 + dx] = 1 / distance
        kernel[0, 1, 1, 1] = -1 / distance
    return kernels
