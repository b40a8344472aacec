"""What to expect next to a seam, until it is calibrated: a table."""

from __future__ import annotations

import math

_SEAM_HALO = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
_SEAM_ITERATIONS = (5, 10, 20, 50)
_SEAM_ERROR = (
    (0.13, 0.16, 0.19, 0.28),
    (0.029, 0.044, 0.056, 0.088),
    (0.0057, 0.010, 0.017, 0.032),
    (0.0009, 0.0023, 0.0058, 0.013),
    (8e-5, 5e-4, 2.1e-3, 5.0e-3),
    (1e-6, 3e-5, 2e-4, 1.3e-3),
    (8e-7, 2e-6, 1.5e-5, 3e-4),
)
"""Seam error of accelerated RL against halo (in PSF radii) and iterations, measured with a Gaussian PSF of radius 4 σ."""


def tabulated_error(halo_in_radii: float, iterations: int) -> float:
    """Return the relative error next to a seam of accelerated RL for a halo in PSF radii.

    Logarithms of the table, linear in the halo and in the logarithm of the iterations.
    """
    h = min(max(halo_in_radii, _SEAM_HALO[0]), _SEAM_HALO[-1])
    k = min(max(math.log(max(iterations, 1)), math.log(_SEAM_ITERATIONS[0])), math.log(_SEAM_ITERATIONS[-1]))
    i = max(j for j in range(len(_SEAM_HALO) - 1) if _SEAM_HALO[j] <= h)
    logs = [math.log(n) for n in _SEAM_ITERATIONS]
    j = max(m for m in range(len(logs) - 1) if logs[m] <= k)
    u = (h - _SEAM_HALO[i]) / (_SEAM_HALO[i + 1] - _SEAM_HALO[i])
    v = (k - logs[j]) / (logs[j + 1] - logs[j])
    table = [[math.log(e) for e in row[j : j + 2]] for row in _SEAM_ERROR[i : i + 2]]
    low, high = ((1 - v) * row[0] + v * row[1] for row in table)
    return math.exp((1 - u) * low + u * high)
