"""Smoothed isotropic total variation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


class TotalVariation:
    """``R(x) = Σ sqrt(|Dx|² + ε)`` with forward differences ``D``, scaled so that gradients are per smallest voxel edge.

    An axis of extent 1 has no difference; the sum runs over the positions whose upper neighbours all exist.

    Parameters
    ----------
    voxel_zyx_um
        Voxel size in µm; only its ratios matter.
    epsilon
        Smoothing, in squared units of the intensity scale.

    References
    ----------
    Rudin, Osher, Fatemi (1992); for Richardson-Lucy: Dey et al., Microsc. Res. Tech. 69 (2006), eq. 8.
    """

    steps = 4
    """Least steps in it per step on the data: with one, the objective falls a third slower than that of the reference."""

    def __init__(self, voxel_zyx_um: tuple[float, float, float], epsilon: float = 1e-6) -> None:
        self._scales = tuple(min(voxel_zyx_um) / v for v in voxel_zyx_um)
        self._epsilon = epsilon

    def value(self, x: Tensor) -> float:
        """Return ``R(x)`` of a ``z y x`` volume."""
        differences = self._differences(x)
        return float(self._magnitude(differences).sum()) if differences else 0.0

    def gradient(self, x: Tensor) -> Tensor:
        """Return ``∇R(x)``, ``z y x``."""
        gradient = torch.zeros_like(x)
        differences = self._differences(x)
        if not differences:
            return gradient
        magnitude = self._magnitude(differences)
        lower = gradient[_lower(x)]
        for axis, difference in differences.items():
            flux = difference.div_(magnitude).mul_(self._scales[axis])
            lower -= flux
            gradient[_upper(x, axis)] += flux
        return gradient

    def curvature(self, x: Tensor) -> Tensor:
        """Return ``2 Σ s²/sqrt(|Dx|² + ε)`` over the differences that a voxel takes part in, ``z y x``.

        The square root lies below its tangent parabola, and a squared difference below two parabolas about its middle.
        """
        # A voxel in no difference, at the far corner, keeps a curvature that divides nothing by 0.
        curvature = torch.full_like(x, torch.finfo(x.dtype).tiny)
        differences = self._differences(x)
        if not differences:
            return curvature
        inverse = self._magnitude(differences).reciprocal_()
        share = torch.empty_like(inverse)
        for axis in differences:
            torch.mul(inverse, 2 * self._scales[axis] ** 2, out=share)
            curvature[_lower(x)] += share
            curvature[_upper(x, axis)] += share
        return curvature

    def _differences(self, x: Tensor) -> dict[int, Tensor]:
        here = x[_lower(x)]
        return {a: (x[_upper(x, a)] - here).mul_(self._scales[a]) for a in range(3) if x.shape[a] > 1}

    def _magnitude(self, differences: dict[int, Tensor]) -> Tensor:
        squares = torch.zeros_like(next(iter(differences.values())))
        for difference in differences.values():
            squares.addcmul_(difference, difference)
        return squares.add_(self._epsilon).sqrt_()


def _lower(x: Tensor) -> tuple[slice, ...]:
    """Index of the positions at which every difference exists."""
    return tuple(slice(0, max(n - 1, 1)) for n in x.shape)


def _upper(x: Tensor, axis: int) -> tuple[slice, ...]:
    """Index of their upper neighbours along an axis."""
    return tuple(slice(1, n) if a == axis else s for a, (n, s) in enumerate(zip(x.shape, _lower(x), strict=True)))
