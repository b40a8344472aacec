"""Smoothed isotropic total variation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bigdeconv.numerics.slabs import slabs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


class TotalVariation:
    """``R(x) = Σ sqrt(|Dx|² + ε)`` with forward differences ``D`` per length of the smallest voxel edge.

    An axis of extent 1 has no difference; the sum is over the positions whose upper neighbours all exist.

    Parameters
    ----------
    voxel_zyx_um : tuple of float
        Voxel size in µm; only its ratios matter.
    epsilon : float
        Smoothing, in squared units of the intensity scale.

    References
    ----------
    Rudin, Osher, Fatemi (1992); for Richardson-Lucy: Dey et al., Microsc. Res. Tech. 69 (2006), eq. 8.

    Examples
    --------
    >>> prior = TotalVariation((0.2, 0.1, 0.1))
    >>> round(prior.value(torch.tensor([[[0.0, 1.0, 1.0]]])), 2)
    1.0
    """

    min_inner_iterations = 4
    """With one iteration in the prior the objective falls a third more slowly than with the reference update."""
    max_momentum = 0.875
    """Optimal for a curvature of at least 0.4 % of the largest; with more the objective rises after some 60 iterations."""

    def __init__(self, voxel_zyx_um: tuple[float, float, float], epsilon: float = 1e-6) -> None:
        self._squared_scales = tuple((min(voxel_zyx_um) / v) ** 2 for v in voxel_zyx_um)
        self._epsilon = epsilon

    def value(self, x: Tensor) -> float:
        """Return ``R(x)`` of a volume ``z y x``."""
        differences = _differences(x)
        return float(self._squared_magnitude(differences).sqrt_().sum()) if differences else 0.0

    def gradient(self, x: Tensor) -> Tensor:
        """Return ``∇R(x)``, ``z y x``."""
        whole = torch.empty_like(x)
        for planes, gradient, _ in self.quadratic_majorisers(x):
            whole[planes] = gradient
        return whole

    def quadratic_majorisers(self, x: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield planes, ``∇R(x)`` in them and the curvatures, ``2 Σ s²/sqrt(|Dx|² + ε)`` over the differences of a voxel.

        A square root is majorised by its tangent in the squares, and a squared difference by two quadratics about its mean.
        """
        carried: tuple[Tensor, Tensor] | None = None
        for planes in slabs(x):
            # The part includes the plane above: the differences of the last plane belong to both.
            part = x[planes.start : planes.stop + 1]
            gradient = torch.zeros_like(part)
            # A voxel in no difference, at the far corner, keeps a curvature above 0, by which the solver divides.
            curvature = torch.full_like(part, torch.finfo(x.dtype).tiny)
            if carried is not None:
                gradient[0], curvature[0] = carried
            if len(part) > 1 or carried is None:  # the last of several planes has no difference to a plane above
                self._add(part, gradient, curvature)
            n = planes.stop - planes.start
            carried = (gradient[-1], curvature[-1])
            yield planes, gradient[:n], curvature[:n]

    def _add(self, x: Tensor, gradient: Tensor, curvature: Tensor) -> None:
        """Add the contributions of the differences of some planes to the gradient and the curvature."""
        differences = _differences(x)
        if not differences:
            return
        inverse = self._squared_magnitude(differences).rsqrt_()
        lower = _lower(x)
        for axis, difference in differences.items():
            upper, weight = _upper(x, axis), self._squared_scales[axis]
            flux = difference.mul_(inverse)
            gradient[lower].sub_(flux, alpha=weight)
            gradient[upper].add_(flux, alpha=weight)
            curvature[lower].add_(inverse, alpha=2 * weight)
            curvature[upper].add_(inverse, alpha=2 * weight)

    def _squared_magnitude(self, differences: dict[int, Tensor]) -> Tensor:
        """Return ``|Dx|² + ε``."""
        squares = torch.full_like(next(iter(differences.values())), self._epsilon)
        for axis, difference in differences.items():
            squares.addcmul_(difference, difference, value=self._squared_scales[axis])
        return squares


def _differences(x: Tensor) -> dict[int, Tensor]:
    """Return the unscaled differences by axis; an axis of extent 1 has none."""
    here = x[_lower(x)]
    return {axis: x[_upper(x, axis)] - here for axis in range(3) if x.shape[axis] > 1}


def _lower(x: Tensor) -> tuple[slice, ...]:
    """Return the index of the positions at which every difference exists."""
    return tuple(slice(0, max(n - 1, 1)) for n in x.shape)


def _upper(x: Tensor, axis: int) -> tuple[slice, ...]:
    """Return the index of the upper neighbours of these positions along an axis."""
    return tuple(slice(1, n) if a == axis else s for a, (n, s) in enumerate(zip(x.shape, _lower(x), strict=True)))
