"""First guess of the strength of a prior."""

from __future__ import annotations

KAPPA_TV = 0.3
"""κ of TV, see `initial_tau`."""


def initial_tau(method: str, photons: float, sigma: float, kappa: float) -> float:
    """Return the initial τ: ``κ/(N σ²)`` for the learned prior, ``κ_TV/N`` for TV, 0 for RL.

    Parameters
    ----------
    method : str
    photons : float
        N, photons per view at the intensity scale.
    sigma : float
        Noise level of the learned prior, as a fraction of the intensity scale.
    kappa : float
        κ of the learned prior's model.

    Examples
    --------
    >>> initial_tau("garl", photons=100.0, sigma=0.02, kappa=0.004)
    0.1
    """
    if method == "rl":
        return 0.0
    return (KAPPA_TV if method == "rltv" else kappa / sigma**2) / photons
