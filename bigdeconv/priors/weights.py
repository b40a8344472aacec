"""What defines a learned prior, as plain arrays and numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class WcrrWeights:
    """Everything that defines a weakly convex ridge regulariser."""

    layers: tuple[np.ndarray, ...]
    """Kernels of the chain of convolutions, each ``out in z y x``; the first layer's are zero-mean."""
    scaling: np.ndarray
    """Values of the scaling splines at uniform knots on [0, sigma_max], ``channel knot``."""
    sigma_max: float
    """Last knot, in units of ``sigma_unit``."""
    sigma_unit: float
    """What a σ of 1 in the splines means as a fraction of the intensity scale (1/255 for weights trained on 8-bit ranges)."""
    log_mu: float
    """Logarithm of the slope of ψ' at 0."""
    beta: float
    """Intercept of the falling branch of ψ'."""
    gamma: float
    """Slope of the falling branch of ψ'; used as ``min(|γ|, 1)``, which makes R 1-weakly convex."""
    lambda_max: float
    """Largest eigenvalue of ``WᵀW``, by which the filters are divided."""
    kappa: float
    """Dimensionless strength behind ``--tau auto``: ``τ = κ/(N σ²)`` for N photons per view at the intensity scale."""
    sigma_default: float
    """σ used where none is given, as a fraction of the intensity scale."""
    card: dict[str, Any] = field(default_factory=dict)
    """The model card: name, data, settings, metrics."""
