"""Start of a training from a model with fewer channels: nearly the same R, with more parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from bigdeconv.errors import InvalidInputError

if TYPE_CHECKING:
    from bigdeconv.numerics.priors.weights import WcrrWeights
    from bigdeconv.training.config import TrainingConfig
    from bigdeconv.training.regularizer import Regularizer

_UNLIKE = 0.1
"""Relative random change of each copied filter; equal copies would have equal gradients and stay equal."""


@torch.no_grad()
def start_from(regularizer: Regularizer, model: WcrrWeights, config: TrainingConfig) -> None:
    """Set the parameters to those of a model, with as many copies of its last layer as the configuration has channels for.

    A filter ``w`` with scaling ``α`` and its ``n`` copies ``w/√n`` with ``α√n`` give the same R: ``n (α√n)⁻² ψ(αwx)``.

    Parameters
    ----------
    regularizer : Regularizer
        Parameters to set.
    model : WcrrWeights
        Model to start from.
    config : TrainingConfig

    Raises
    ------
    InvalidInputError
        If the model has other layers or knots, a potential outside the bounds of the configuration, or a number of channels
        that does not divide that of the configuration.
    """
    _check(model, config)
    *inner, last = (torch.as_tensor(layer) for layer in model.layers)
    scaling = torch.as_tensor(model.scaling)
    n = config.channels[-1] // last.shape[0]
    generator = torch.Generator().manual_seed(config.seed)
    copies = last.repeat(n, 1, 1, 1, 1) / math.sqrt(n)
    if n > 1:
        copies += _UNLIKE * copies.std() * torch.randn(copies.shape, generator=generator)
    for parameter, value in zip(regularizer.filters, [*inner, copies], strict=True):
        parameter.copy_(value)
    regularizer.scaling.copy_(scaling.repeat(n, 1) + math.log(n) / 2)
    regularizer.raw_mu.fill_(_logit(math.exp(model.log_mu) / config.mu_max))
    regularizer.raw_beta.fill_(math.log(math.expm1(model.beta)))
    regularizer.raw_gamma.fill_(_logit(model.gamma / config.gamma_max))


def _check(model: WcrrWeights, config: TrainingConfig) -> None:
    channels = tuple(layer.shape[0] for layer in model.layers)
    same = channels[:-1] == config.channels[:-1] and len(channels) == len(config.channels)
    if not same or config.channels[-1] % channels[-1] or model.scaling.shape[1] != config.knots:
        raise InvalidInputError(
            f"warm_start: got a model with channels {channels} and {model.scaling.shape[1]} knots; expected those of the "
            f"configuration, {config.channels} and {config.knots}, of which only the last channel number may be a multiple."
        )
    if not (math.exp(model.log_mu) < config.mu_max and 0 < model.gamma < config.gamma_max and model.beta > 0):
        raise InvalidInputError(
            f"warm_start: got a model with μ = {math.exp(model.log_mu):.3g} and γ = {model.gamma:.3g}; expected less than "
            f"mu_max = {config.mu_max:g} and gamma_max = {config.gamma_max:g}. Raise these or use another model."
        )


def _logit(share: float) -> float:
    return math.log(share / (1 - share))
