"""The interface between the solvers and the priors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


class Prior(Protocol):
    """A differentiable regulariser ``R`` of a volume ``z y x``.

    ``R`` is a sum over the positions whose filter taps all lie in the volume; for a volume without such a position ``R = 0``.
    """

    min_inner_iterations: int
    """Smallest number of iterations in the prior per iteration on the data."""
    max_momentum: float
    """Bound of the momentum between iterations: with a larger one and a strong prior the objective oscillates."""

    def value(self, x: Tensor) -> float:
        """Return ``R(x)``.

        Parameters
        ----------
        x : Tensor, ``z y x``
        """
        ...

    def gradient(self, x: Tensor) -> Tensor:
        """Return ``∇R(x)``.

        Parameters
        ----------
        x : Tensor, ``z y x``

        Returns
        -------
        Tensor, ``z y x``
        """
        ...

    def quadratic_majorisers(self, x: Tensor) -> Iterator[tuple[slice, Tensor, Tensor | float]]:
        """Yield a separable quadratic that equals ``R`` at ``x`` and is nowhere below it, for consecutive ranges of planes.

        Parameters
        ----------
        x : Tensor, ``z y x``
            Must not change before the last range.

        Yields
        ------
        planes : slice
            Range of planes.
        gradient : Tensor, ``z y x``
            ``∇R(x)`` in these planes; the caller may overwrite it.
        curvature : Tensor, ``z y x``, or float
            Curvature of the quadratic in each voxel, above 0.
        """
        ...
