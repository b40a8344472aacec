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
from typing import TYPE_CHECKING

import torch

from bigdeconv.priors.filters import Chain, Filters, Potential, impulse_response
from bigdeconv.priors.slabs import slabs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from torch import Tensor

    from bigdeconv.priors.weights import WcrrWeights

SIGMA_EPSILON = 1e-5


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
    filters
        How the filters are computed: `Segments` on a CPU, `Chain` elsewhere; the result is the same but for rounding.
    """

    steps = 1
    """Least steps in it per step on the data: each costs more than that does on a single view."""

    def __init__(
        self,
        weights: WcrrWeights,
        *,
        sigma: float,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        mu_max: float = math.inf,
        filters: Callable[..., Filters] | None = None,
    ) -> None:
        *inner, last = (torch.tensor(layer, dtype=torch.float64) for layer in weights.layers)
        self._alpha = torch.tensor(scaling(weights, sigma), dtype=torch.float64)
        self._layers = [*inner, last / math.sqrt(weights.lambda_max)]
        make = filters or _filters_for(torch.device(device))
        self._filters = make(self._layers, self._alpha, dtype=dtype, device=device)
        self._potential = _capped_potential(weights, mu_max)

    def gradient(self, x: Tensor) -> Tensor:
        """Return ``∇R(x) = Wᵀ(ψ'(αWx)/α)``, ``z y x``."""
        return self._filters.apply(x, self._potential)

    def value(self, x: Tensor) -> float:
        """Return ``R(x)``."""
        inverse_square = (self._alpha**-2).to(x.device)
        total = 0.0
        for response in Chain(self._layers, self._alpha, dtype=x.dtype, device=x.device).responses(x):
            by_channel = self._potential.value(response).flatten(1).sum(1, dtype=torch.float64)
            total += float((by_channel * inverse_square).sum())
        return total

    def parabolas(self, x: Tensor) -> Iterator[tuple[slice, Tensor, float]]:
        """Yield planes, ``∇R(x)`` there, and as curvature μ: ψ' rises no faster, and ``λ_max(WᵀW) = 1``."""
        gradient = self.gradient(x)
        for planes in slabs(x):
            yield planes, gradient[planes], max(self._potential.mu, self._potential.gamma)


def _capped_potential(weights: WcrrWeights, mu_max: float) -> Potential:
    return Potential(min(math.exp(weights.log_mu), mu_max), weights.beta, min(abs(weights.gamma), 1.0))


def _filters_for(device: torch.device) -> Callable[..., Filters]:
    if device.type != "cpu":
        return Chain
    # It comes with Numba, whose memory a worker without this prior is not promised.
    from bigdeconv.priors.segments import Segments

    return Segments


def scaling(weights: WcrrWeights, sigma: float) -> np.ndarray:
    """Return ``α_l(σ) = exp(s_l(σ))/(σ + 1e-5)`` for every channel; ``sigma`` is a fraction of the intensity scale."""
    import numpy as np

    sigma_model = sigma / weights.sigma_unit
    knots = np.linspace(0.0, weights.sigma_max, weights.scaling.shape[1])
    spline = np.array([np.interp(sigma_model, knots, row) for row in weights.scaling.astype(np.float64)])
    return np.asarray(np.exp(spline) / (sigma_model + SIGMA_EPSILON))


def potential(weights: WcrrWeights, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``ψ(t)`` and ``ψ'(t)``, the same for every channel and noise level."""
    found = _capped_potential(weights, math.inf)
    return found.value(t), found.derivative_(t.clone())


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
