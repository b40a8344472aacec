"""Parameters of the learned prior as plain arrays and numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class WcrrWeights:
    """Parameters of a weakly convex ridge regulariser, with its model card."""

    layers: tuple[np.ndarray, ...]
    """Kernels of the convolutions in sequence, each ``out in z y x``; those of the first layer have zero mean."""
    scaling: np.ndarray
    """Values of the scaling splines at uniform knots on [0, sigma_max], ``channel knot``."""
    sigma_max: float
    """Last knot, in units of ``sigma_unit``."""
    sigma_unit: float
    """A σ of 1 in the splines, as a fraction of the intensity scale (1/255 for models trained on 8-bit ranges)."""
    log_mu: float
    """Logarithm of the slope of ψ' at 0."""
    beta: float
    """Intercept of the falling branch of ψ'."""
    gamma: float
    """Slope of the falling branch of ψ'; used as ``min(|γ|, 1)``, which makes R 1-weakly convex."""
    lambda_max: float
    """Largest eigenvalue of ``WᵀW``; the filters are divided by its square root."""
    kappa: float
    """Dimensionless strength of the initial τ, ``τ = κ/(N σ²)`` for N photons per view at the intensity scale."""
    sigma_default: float
    """Default of σ, as a fraction of the intensity scale."""
    card: dict[str, Any] = field(default_factory=dict)
    """Model card: name, data, settings, metrics."""
