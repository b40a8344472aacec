"""Priors on the estimate: a value, its gradient, and a curvature that bounds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Prior(Protocol):
    """A differentiable regulariser ``R`` of a ``z y x`` volume.

    ``R`` sums over the positions whose filter taps all lie in the volume; a volume too small for one such position has
    ``R = 0``.
    """

    steps: int
    """Least steps in the prior per step on the data."""

    def value(self, x: Tensor) -> float:
        """Return ``R(x)``."""
        ...

    def gradient(self, x: Tensor) -> Tensor:
        """Return ``∇R(x)``, the shape of ``x``."""
        ...

    def curvature(self, x: Tensor) -> Tensor | float:
        """Return a curvature per voxel, more than 0, of a separable parabola that touches ``R`` at ``x`` and lies above it."""
        ...
