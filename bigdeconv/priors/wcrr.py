"""The learned weakly convex ridge regulariser.

``R(x) = Σ_l α_l⁻² Σ ψ(α_l W_l x)`` with a chain of small convolutions ``W`` (``λ_max(WᵀW) = 1``), one potential ``ψ`` whose
derivative rises with slope μ and falls with slope at most 1, and scalings ``α_l(σ)`` that follow the noise level.

References
----------
Goujon, Neumayer, Unser, "Learning weakly convex regularizers for convergent image-reconstruction algorithms", SIAM J. Imaging
Sci. 17 (2024); Pham, "3D Deconvolution Microscopy with a Learned Regularizer" (2025), eqs. 4 and 5.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import conv3d, conv_transpose3d

from bigdeconv.geometry import Box, triple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from torch import Tensor

    from bigdeconv.priors.weights import WcrrWeights

SIGMA_EPSILON = 1e-5
SLAB_BYTES = 2 * 2**20
"""Bytes that the response of the last layer may take: the positions are visited in slabs that keep to it.

Slabs near the size of a core's cache are also the fastest: ``tests/benchmarks/prior_slabs.py``."""


class Wcrr:
    """The prior for one noise level.

    Parameters
    ----------
    weights
        A trained model.
    sigma
        Noise level at which it acts, as a fraction of the intensity scale.
    mu_max
        Cap on the slope μ of ψ' at 0.  Published weights have μ = 835, nearly a jump, at which an iteration chatters.
    slab_bytes
        Memory for the many-channel response; the result does not depend on it but for rounding.
    """

    def __init__(
        self,
        weights: WcrrWeights,
        *,
        sigma: float,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        mu_max: float = math.inf,
        slab_bytes: int = SLAB_BYTES,
    ) -> None:
        layers = [torch.tensor(layer, dtype=torch.float64) for layer in weights.layers]
        alpha = torch.tensor(scaling(weights, sigma), dtype=torch.float64)[:, None, None, None, None]
        norm = math.sqrt(weights.lambda_max)
        # α is folded into the last layer: W_α = αW on the way in and W/α on the way out save two passes over all channels.
        inward = [*layers[:-1], layers[-1] * alpha / norm]
        outward = [*layers[:-1], layers[-1] / alpha / norm]
        self._inward = [layer.to(device, dtype) for layer in inward]
        self._outward = [layer.to(device, dtype) for layer in outward]
        self._alpha = alpha.flatten()
        self._mu = min(math.exp(weights.log_mu), mu_max)
        self._beta = weights.beta
        self._gamma = min(abs(weights.gamma), 1.0)
        self._slab_bytes = slab_bytes
        self._n_channels = layers[-1].shape[0]
        self._extent = triple(sum(layer.shape[a] - 1 for layer in layers) for a in (2, 3, 4))

    def gradient(self, x: Tensor) -> Tensor:
        """Return ``∇R(x) = Wᵀ(ψ'(αWx)/α)``, ``z y x``."""
        gradient = torch.zeros_like(x)
        for slab in self._slabs(x):
            response = self._respond(x, slab)
            gradient[slab.slices] += self._respond_adjoint(self._potential_derivative_(response))
        return gradient

    def value(self, x: Tensor) -> float:
        """Return ``R(x)``."""
        inverse_square = (self._alpha**-2).to(x)
        total = 0.0
        for slab in self._slabs(x):
            potential = self._potential(self._respond(x, slab)).sum(dim=(1, 2, 3))
            total += float((potential * inverse_square).sum())
        return total

    def curvature(self, x: Tensor) -> float:
        """Return μ: ψ' rises no faster, and ``λ_max(WᵀW) = 1``."""
        del x
        return max(self._mu, self._gamma)

    def _slabs(self, x: Tensor) -> Iterator[Box]:
        """Yield boxes of ``x`` whose valid positions tile all valid positions, each within the memory bound."""
        z, y, x_extent = (n - r for n, r in zip(x.shape, self._extent, strict=True))
        if min(z, y, x_extent) < 1:
            return
        row_bytes = x_extent * self._n_channels * x.element_size()
        rows = max(self._slab_bytes // row_bytes, 1)
        depth = max(min(z, rows // y), 1)
        height = min(y, max(rows // depth, 1))
        rz, ry, rx = self._extent
        for z0, y0 in product(range(0, z, depth), range(0, y, height)):
            yield Box((z0, y0, 0), (min(z0 + depth, z) + rz, min(y0 + height, y) + ry, x_extent + rx))

    def _respond(self, x: Tensor, slab: Box) -> Tensor:
        response = x[slab.slices][None]
        for layer in self._inward:
            response = conv3d(response, layer)
        return response

    def _respond_adjoint(self, response: Tensor) -> Tensor:
        for layer in reversed(self._outward):
            response = conv_transpose3d(response, layer)
        return response[0]

    def _potential_derivative_(self, t: Tensor) -> Tensor:
        """``ψ'(t) = sign(t)·max(0, min(μ|t|, β − γ|t|))``, overwriting ``t``."""
        size = t.abs()
        bound = size.mul(-self._gamma).add_(self._beta)
        rising = size.mul_(self._mu)
        return torch.minimum(rising, bound, out=bound).clamp_(min=0).mul_(t.sign_())

    def _potential(self, t: Tensor) -> Tensor:
        """``ψ(t)``, the integral of ``ψ'`` from 0."""
        mu, beta, gamma = self._mu, self._beta, self._gamma
        knee = beta / (mu + gamma)
        end = beta / gamma if gamma > 0 else math.inf
        size = t.abs().clamp_(max=end)
        falling = mu * knee**2 / 2 + beta * (size - knee) - gamma * (size**2 - knee**2) / 2
        return torch.where(size < knee, mu * size**2 / 2, falling)


def scaling(weights: WcrrWeights, sigma: float) -> np.ndarray:
    """Return ``α_l(σ) = exp(s_l(σ))/(σ + 1e-5)`` for every channel; ``sigma`` is a fraction of the intensity scale."""
    import numpy as np

    sigma_model = sigma / weights.sigma_unit
    knots = np.linspace(0.0, weights.sigma_max, weights.scaling.shape[1])
    spline = np.array([np.interp(sigma_model, knots, row) for row in weights.scaling.astype(np.float64)])
    return np.asarray(np.exp(spline) / (sigma_model + SIGMA_EPSILON))


def potential(weights: WcrrWeights, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``ψ(t)`` and ``ψ'(t)``, the same for every channel and noise level."""
    prior = Wcrr(weights, sigma=weights.sigma_default, dtype=t.dtype)
    return prior._potential(t), prior._potential_derivative_(t.clone())


def fourier_lambda_max(layers: Sequence[np.ndarray], n: int = 64) -> float:
    """Return ``λ_max(WᵀW)`` of a chain of convolutions, from its Fourier response on an ``n³`` grid.

    The response of the whole chain to one voxel is a single filter per output channel; the eigenvalues of ``WᵀW`` on an
    unbounded volume are the sums of their squared spectra over the channels.
    """
    tensors = [torch.as_tensor(layer, dtype=torch.float64) for layer in layers]
    return float(_lambda_max(tensors, n))


def _lambda_max(layers: Sequence[Tensor], n: int) -> Tensor:
    kernel = impulse_response(layers)
    power = sum(torch.fft.rfftn(channel, s=(n, n, n)).abs().square() for channel in kernel)
    assert isinstance(power, torch.Tensor)
    return power.max()


def impulse_response(layers: Sequence[Tensor]) -> Tensor:
    """Return the filters of the whole chain, ``channels z y x``, up to reflection."""
    reach = [sum(layer.shape[a] - 1 for layer in layers) for a in (2, 3, 4)]
    impulse = layers[0].new_zeros(1, *(2 * r + 1 for r in reach))
    impulse[0, reach[0], reach[1], reach[2]] = 1
    for layer in layers:
        impulse = conv3d(impulse, layer)
    return impulse
