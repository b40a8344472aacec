"""Priors on the estimate: a value, its gradient, and a curvature that bounds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

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

    def parabolas(self, x: Tensor) -> Iterator[tuple[slice, Tensor, Tensor | float]]:
        """Yield consecutive planes, ``∇R(x)`` there, which the caller may overwrite, and a curvature per voxel, more than 0.

        A separable parabola of that curvature touches ``R`` at ``x`` and lies above it.  Do not change ``x`` meanwhile.
        """
        ...
