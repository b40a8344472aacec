"""The learned weakly convex ridge regulariser.

``R(x) = Σ_l α_l⁻² Σ ψ(α_l W_l x)`` with small convolutions ``W`` in sequence (``λ_max(WᵀW) = 1``), one potential ``ψ`` whose
derivative rises with slope μ and falls with slope at most 1, and scalings ``α_l(σ)`` that depend on the noise level.

References
----------
Goujon, Neumayer, Unser, "Learning weakly convex regularizers for convergent image-reconstruction algorithms", SIAM J. Imaging
Sci. 17 (2024); Pham, "3D Deconvolution Microscopy with a Learned Regularizer" (2025), eqs. 4 and 5.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch

from bigdeconv.numerics.priors.filters import Filters, Potential, SequentialConvolutions, impulse_response, is_fusible
from bigdeconv.numerics.slabs import slabs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from bigdeconv.numerics.priors.weights import WcrrWeights

SIGMA_EPSILON = 1e-5
"""Keeps ``α(σ)`` finite at σ = 0."""


class Wcrr:
    """The prior for one noise level.

    Parameters
    ----------
    model : WcrrWeights
        A trained model.
    sigma : float
        Noise level, as a fraction of the intensity scale.
    dtype, device : torch.dtype, torch.device or str
        Number type and place of the computation.
    mu_max : float
        Cap on the slope μ of ψ' at 0.  The published model has μ = 835, nearly a jump, at which the iteration oscillates.
    filters : callable, optional
        Implementation of the filters; by default `OverlapSaveFilters` on a CPU with Numba, `FusedConvolutions` on a GPU with
        Triton, and `SequentialConvolutions` elsewhere.  They agree up to rounding.
    """

    min_inner_iterations = 1
    """One iteration in the prior costs more than an iteration on a single view."""
    max_momentum = 0.95
    """Reached after 58 iterations; without a bound the objective may rise a little after some 200."""

    def __init__(
        self,
        model: WcrrWeights,
        *,
        sigma: float,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        mu_max: float = math.inf,
        filters: Callable[..., Filters] | None = None,
    ) -> None:
        *inner, last = (torch.tensor(layer, dtype=torch.float64) for layer in model.layers)
        self._alpha = torch.tensor(scaling(model, sigma), dtype=torch.float64)
        self._layers = [*inner, last / math.sqrt(model.lambda_max)]
        make = filters or _filters_for(torch.device(device), dtype, model)
        self._filters = make(self._layers, self._alpha, dtype=dtype, device=device)
        self._potential = _capped_potential(model, mu_max)

    def gradient(self, x: Tensor) -> Tensor:
        """Return ``∇R(x) = Wᵀ(ψ'(αWx)/α)``, ``z y x``."""
        return self._filters.apply(x, self._potential)

    def value(self, x: Tensor) -> float:
        """Return ``R(x)`` of a volume ``z y x``."""
        inverse_square = (self._alpha**-2).to(x.device)
        total = 0.0
        for response in SequentialConvolutions(self._layers, self._alpha, dtype=x.dtype, device=x.device).responses(x):
            by_channel = self._potential.value(response).flatten(1).sum(1, dtype=torch.float64)
            total += float((by_channel * inverse_square).sum())
        return total

    def quadratic_majorisers(self, x: Tensor) -> Iterator[tuple[slice, Tensor, float]]:
        """Yield planes, ``∇R(x)`` in them and the curvature μ: ψ' rises no faster, and ``λ_max(WᵀW) = 1``."""
        gradient = self.gradient(x)
        for planes in slabs(x):
            yield planes, gradient[planes], max(self._potential.mu, self._potential.gamma)


def _capped_potential(model: WcrrWeights, mu_max: float) -> Potential:
    return Potential(min(math.exp(model.log_mu), mu_max), model.beta, min(abs(model.gamma), 1.0))


def compiled_filters_available() -> bool:
    """Tell whether Numba, which compiles `OverlapSaveFilters`, is installed."""
    return find_spec("numba") is not None and find_spec("llvmlite") is not None


def fused_filters_available(model: WcrrWeights) -> bool:
    """Tell whether `FusedConvolutions` works for a model on the GPU of this process, which is tried once."""
    fusible = is_fusible([layer.shape for layer in model.layers])
    return fusible and torch.cuda.is_available() and fused_filters_problem() is None


def fused_filters_problem() -> str | None:
    """Return why `FusedConvolutions` cannot be used on the GPU of this process; None where they can."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    from bigdeconv.numerics.priors.fused_convolutions import problem_here

    return problem_here()


def _filters_for(device: torch.device, dtype: torch.dtype, model: WcrrWeights) -> Callable[..., Filters]:
    if device.type == "cuda" and dtype == torch.float32 and fused_filters_available(model):
        # Imported here because it loads Triton.
        from bigdeconv.numerics.priors.fused_convolutions import FusedConvolutions

        return FusedConvolutions
    if device.type != "cpu" or not compiled_filters_available():
        return SequentialConvolutions
    # Imported here because it loads Numba, whose memory is planned only for workers that use this prior.
    from bigdeconv.numerics.priors.overlap_save import OverlapSaveFilters

    return OverlapSaveFilters


def scaling(model: WcrrWeights, sigma: float) -> np.ndarray:
    """Return the scalings ``α_l(σ) = exp(s_l(σ))/(σ + 1e-5)``.

    Parameters
    ----------
    model : WcrrWeights
    sigma : float
        Noise level, as a fraction of the intensity scale.

    Returns
    -------
    ndarray, ``channel``

    Examples
    --------
    >>> from bigdeconv.models import resolve
    >>> scaling(resolve("finite-differences"), 10 / 255)[:3].round(2)
    array([51., 51., 51.])
    """
    sigma_model = sigma / model.sigma_unit
    knots = np.linspace(0.0, model.sigma_max, model.scaling.shape[1])
    spline = np.array([np.interp(sigma_model, knots, row) for row in model.scaling.astype(np.float64)])
    return np.asarray(np.exp(spline) / (sigma_model + SIGMA_EPSILON))


def potential(model: WcrrWeights, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``ψ(t)`` and ``ψ'(t)``, the same for every channel and noise level.

    Parameters
    ----------
    model : WcrrWeights
    t : Tensor
        Scaled responses, of any shape.
    """
    found = _capped_potential(model, math.inf)
    return found.value(t), found.derivative_(t.clone())


def fourier_lambda_max(layers: Sequence[np.ndarray], n: int = 64) -> float:
    """Return ``λ_max(WᵀW)`` of convolutions in sequence, from their Fourier response.

    The response of all layers to one voxel is a single filter per output channel; the eigenvalues of ``WᵀW`` on an unbounded
    volume are the sums of the squared spectra of these filters over the channels.

    Parameters
    ----------
    layers : sequence of ndarray, ``out in z y x``
        Kernels of the convolutions.
    n : int
        Frequencies per axis.

    Examples
    --------
    A difference of neighbours doubles the amplitude of the highest frequency:

    >>> fourier_lambda_max([np.array([-1.0, 1.0]).reshape(1, 1, 1, 1, 2)])
    4.0
    """
    tensors = [torch.as_tensor(layer, dtype=torch.float64) for layer in layers]
    return float(_lambda_max(tensors, n))


def _lambda_max(layers: Sequence[Tensor], n: int) -> Tensor:
    kernel = impulse_response(layers)
    power = sum(torch.fft.rfftn(channel, s=(n, n, n)).abs().square() for channel in kernel)
    assert isinstance(power, torch.Tensor)
    return power.max()
