"""A training that starts from a model with fewer channels: the same R at first, with more to learn in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from bigdeconv.errors import InvalidInputError

if TYPE_CHECKING:
    from bigdeconv.priors.weights import WcrrWeights
    from bigdeconv.training.config import TrainingConfig
    from bigdeconv.training.regularizer import Regularizer

_UNLIKE = 0.1
"""Relative random change of each copied filter; equal copies would stay equal for ever."""


@torch.no_grad()
def start_from(regularizer: Regularizer, weights: WcrrWeights, config: TrainingConfig) -> None:
    """Set the parameters to those of a model whose last layer is copied as often as the channels ask for.

    A filter ``w`` with scaling ``α`` and its ``n`` copies ``w/√n`` with ``α√n`` are the same R: ``n (α√n)⁻² ψ(αwx)``.

    Raises
    ------
    InvalidInputError
        If the model has other layers or knots, potentials out of the configured bounds, or channels that do not divide.
    """
    _check(weights, config)
    *inner, last = (torch.as_tensor(layer) for layer in weights.layers)
    scaling = torch.as_tensor(weights.scaling)
    n = config.channels[-1] // last.shape[0]
    generator = torch.Generator().manual_seed(config.seed)
    copies = last.repeat(n, 1, 1, 1, 1) / math.sqrt(n)
    if n > 1:
        copies += _UNLIKE * copies.std() * torch.randn(copies.shape, generator=generator)
    for parameter, value in zip(regularizer.filters, [*inner, copies], strict=True):
        parameter.copy_(value)
    regularizer.scaling.copy_(scaling.repeat(n, 1) + math.log(n) / 2)
    regularizer.raw_mu.fill_(_logit(math.exp(weights.log_mu) / config.mu_max))
    regularizer.raw_beta.fill_(math.log(math.expm1(weights.beta)))
    regularizer.raw_gamma.fill_(_logit(weights.gamma / config.gamma_max))


def _check(weights: WcrrWeights, config: TrainingConfig) -> None:
    channels = tuple(layer.shape[0] for layer in weights.layers)
    same = channels[:-1] == config.channels[:-1] and len(channels) == len(config.channels)
    if not same or config.channels[-1] % channels[-1] or weights.scaling.shape[1] != config.knots:
        raise InvalidInputError(
            f"warm_start: the model has the channels {channels} and {weights.scaling.shape[1]} knots, the configuration "
            f"{config.channels} and {config.knots}; allowed is a last layer that is a multiple, all else the same."
        )
    if not (math.exp(weights.log_mu) < config.mu_max and 0 < weights.gamma < config.gamma_max and weights.beta > 0):
        raise InvalidInputError(
            f"warm_start: the model has μ = {math.exp(weights.log_mu):.3g} and γ = {weights.gamma:.3g}, allowed are less "
            f"than mu_max = {config.mu_max:g} and gamma_max = {config.gamma_max:g}; raise these or take another model."
        )


def _logit(share: float) -> float:
    return math.log(share / (1 - share))
