"""The trainable regulariser: unbounded parameters of an R that satisfies its bounds by construction.

The bounds are those of Goujon, Neumayer, Unser, "Learning weakly convex regularizers for convergent image-reconstruction
algorithms", SIAM J. Imaging Sci. 17 (2024): filters without response to a constant, ``λ_max(WᵀW) = 1``, weak convexity below 1.
In addition the slope μ is bounded, so that few steps suffice to reach the fixed point of the denoiser, in training and later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import conv3d, softplus

from bigdeconv.numerics.priors.filters import impulse_response
from bigdeconv.numerics.priors.wcrr import SIGMA_EPSILON, fourier_lambda_max
from bigdeconv.numerics.priors.weights import WcrrWeights

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from bigdeconv.training.config import TrainingConfig

SIGMA_UNIT = 1 / 255
"""Unit of the noise levels of a training, as a fraction of the maximum."""
_GRID = 32
"""Frequencies per axis at which the norm of the filters is computed in training; an exported model uses 64."""
_FIRST_SCALING = 5.0
"""Initial value of the scaling splines."""
_CHANNELS_LAST = torch.channels_last_3d
"""On a CPU convolutions with few channels are up to twice as fast with the channels last."""


class Regularizer(nn.Module):
    """The parameters θ.

    Parameters
    ----------
    config : TrainingConfig
        Channels, knots, bounds and the seed of the initial filters.
    """

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(config.seed)
        sizes = zip(config.channels, (1, *config.channels), strict=False)
        self.filters = nn.ParameterList(
            nn.Parameter(torch.randn(out, into, 3, 3, 3, generator=generator) / math.sqrt(27 * into))
            for out, into in sizes
        )
        self.scaling = nn.Parameter(torch.full((config.channels[-1], config.knots), _FIRST_SCALING))
        self.raw_mu = nn.Parameter(torch.tensor(2.0))
        self.raw_beta = nn.Parameter(torch.tensor(math.log(math.e - 1)))  # softplus gives 1
        self.raw_gamma = nn.Parameter(torch.tensor(0.0))
        self._bounds = config.mu_max, config.gamma_max
        self._sigma_max = config.sigma_max

    def potential(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``μ`` in (0, mu_max), ``β`` above 0 and ``γ`` in (0, gamma_max)."""
        mu_max, gamma_max = self._bounds
        return mu_max * self.raw_mu.sigmoid(), softplus(self.raw_beta), gamma_max * self.raw_gamma.sigmoid()

    def layers(self) -> list[Tensor]:
        """Return the kernels ``out in z y x`` of the convolutions in sequence, the first zero-mean, not divided by the norm."""
        first, *later = self.filters
        return [first - first.mean(dim=(1, 2, 3, 4), keepdim=True), *later]

    def alpha(self, sigma: Tensor) -> Tensor:
        """Return ``α_l(σ) = exp(s_l(σ))/(σ + ε)``, ``b channel``, for noise levels ``b`` in units of 1/255."""
        last = self.scaling.shape[1] - 1
        place = (sigma / self._sigma_max * last).clamp(0, last)
        below = place.floor().clamp(max=last - 1)
        share, index = place - below, below.long()
        spline = self.scaling[:, index] * (1 - share) + self.scaling[:, index + 1] * share
        return (spline.exp() / (sigma + SIGMA_EPSILON)).T

    def at(self, sigma: Tensor) -> Operator:
        """Return R for noise levels ``b`` in units of 1/255, with gradients to the parameters."""
        *inner, last = self.layers()
        norm = lambda_max([*inner, last]).sqrt()
        layers = [layer.contiguous(memory_format=_CHANNELS_LAST) for layer in (*inner, last / norm)]
        return Operator(layers, self.alpha(sigma)[:, :, None, None, None], *self.potential())

    @torch.no_grad()
    def weights(self, config: TrainingConfig, card: dict[str, Any]) -> WcrrWeights:
        """Return the present parameters as a model, with the norm of the filters from a finer grid.

        Parameters
        ----------
        config : TrainingConfig
        card : dict
            Model card.
        """
        layers = tuple(layer.cpu().numpy().astype(np.float32) for layer in self.layers())
        mu, beta, gamma = (float(number) for number in self.potential())
        return WcrrWeights(
            layers=layers,
            scaling=self.scaling.cpu().numpy().astype(np.float32),
            sigma_max=config.sigma_max,
            sigma_unit=SIGMA_UNIT,
            log_mu=math.log(mu),
            beta=beta,
            gamma=gamma,
            lambda_max=fourier_lambda_max(layers),
            kappa=config.kappa,
            sigma_default=config.sigma_default * SIGMA_UNIT,
            card=card,
        )


@dataclass(frozen=True, slots=True)
class Operator:
    """R at given noise levels, for a batch ``b z y x``: a sum over the positions whose taps all lie inside."""

    layers: list[Tensor]
    """Kernels ``out in z y x``, divided by the norm."""
    alpha: Tensor
    """``b channel 1 1 1``."""
    mu: Tensor
    beta: Tensor
    gamma: Tensor

    def detach(self) -> Operator:
        """Return the same without gradients to the parameters."""
        numbers = (t.detach() for t in (self.alpha, self.mu, self.beta, self.gamma))
        return Operator([layer.detach() for layer in self.layers], *numbers)

    def respond(self, x: Tensor) -> Tensor:
        """Return ``Wx``, ``b channel z y x``, of a batch ``b z y x``; adjoint of `respond_adjoint`."""
        response = x[:, None]
        for layer in self.layers:
            response = conv3d(response, layer)
        return response

    def respond_adjoint(self, response: Tensor) -> Tensor:
        """Return ``Wᵀ`` of a response, ``b z y x``; adjoint of `respond`."""
        for layer in reversed(self.layers):
            # On a CPU a convolution with the mirrored kernel is faster than a transposed one.
            mirrored = layer.transpose(0, 1).flip(2, 3, 4).contiguous(memory_format=_CHANNELS_LAST)
            response = conv3d(response, mirrored, padding=2)
        return response[:, 0]

    def potential_derivative(self, t: Tensor) -> Tensor:
        """Return ``ψ'(αt)/α`` of a response, ``(μ + γ)·clip(t, ±k/α) - γ·clip(t, ±e/α)``."""
        knee, end = self._corners()
        return (self.mu + self.gamma) * t.clamp(-knee, knee) - self.gamma * t.clamp(-end, end)

    def gradient(self, x: Tensor) -> Tensor:
        """Return ``∇R(x)``, ``b z y x``."""
        return self.respond_adjoint(self.potential_derivative(self.respond(x)))

    def hessian(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the product with ``∇²R(x) = Wᵀ ψ''(αWx) W``, which is symmetric."""
        knee, end = self._corners()
        size = self.respond(x).abs()
        curvature = torch.where(size < knee, self.mu, torch.where(size < end, -self.gamma, size.new_zeros(())))
        return lambda u: self.respond_adjoint(self.respond(u) * curvature)

    def _corners(self) -> tuple[Tensor, Tensor]:
        """Return the values of ``t`` at which ``ψ'(αt)`` starts to fall and at which it is 0 again."""
        return self.beta / (self.mu + self.gamma) / self.alpha, self.beta / self.gamma / self.alpha


def lambda_max(layers: list[Tensor], n: int = _GRID) -> Tensor:
    """Return ``λ_max(WᵀW)`` of convolutions in sequence, differentiable: the largest power over the frequencies.

    Parameters
    ----------
    layers : list of Tensor, ``out in z y x``
        Kernels of the convolutions.
    n : int
        Frequencies per axis.
    """
    power: Tensor = torch.fft.rfftn(impulse_response(layers), s=(n, n, n), dim=(1, 2, 3)).abs().square().sum(dim=0)
    return power.max()
