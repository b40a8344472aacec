"""The law of the seam: what the end of a data window does to the voxels next to a face between two cores.

One axis; the window of the block below ends ``above`` voxels past the face, that of the block above starts ``below`` before it::

    block below   --------------------|- 2·blend -|---- halo ----|
    block above          |---- halo ----|------------------------
                                      ^ the face

The error of a block decays with the distance from where its window ends; the ramps of the blend weigh both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SAFETY = 3.0
"""A halo is chosen for the tolerance divided by this: calibrated on synthetic slabs and with a likely strength of the prior, it
must hold for what data there are and the strength that they choose: errors of up to four times the predicted ones were seen."""


@dataclass(frozen=True, slots=True)
class Decay:
    """Relative error of each plane of a window, by its distance in voxels from where the data end on one axis.

    Never rising with the distance; L2 over the plane, relative to the solution of the whole.
    """

    ends_above: tuple[float, ...]
    """Of a window whose data end at its upper face."""
    ends_below: tuple[float, ...]
    """Of a window whose data start at its lower face."""

    @property
    def floor(self) -> float:
        """The error that no halo takes away: what rounding grows to."""
        return max(self.ends_above[-1], self.ends_below[-1])


def strip_width(blend: int) -> int:
    """Return how many voxels on each side of a face count as next to it."""
    return max(2, blend)


@lru_cache(maxsize=4096)
def seam_error(decay: Decay, below: int | None, above: int | None, blend: int) -> float:
    """Return the relative error next to a face, L2 over the voxels within `strip_width` of it.

    Parameters
    ----------
    below, above
        How far before the face the upper block's data start, and past it the lower block's end; None where the volume itself
        ends there, so that nothing is missing.
    blend
        Half-width of the ramps.
    """
    width = strip_width(blend)
    energy = 0.0
    for plane in range(-width, width):
        own = 0.0 if plane < 0 else 1.0 if plane >= 2 * blend else (plane + 0.5) / (2 * blend)
        if above is not None:
            energy += ((1 - own) * _at(decay.ends_above, above - 1 - plane)) ** 2
        if below is not None:
            energy += (own * _at(decay.ends_below, below + plane)) ** 2
    return math.sqrt(energy / (2 * width))


def pooled_error(decay: Decay, reaches: Iterable[tuple[int | None, int | None]], blend: int) -> float:
    """Return the error of all faces of an axis together, from each one's ``below`` and ``above``; 0 without any."""
    energies = [seam_error(decay, below, above, blend) ** 2 for below, above in reaches]
    return math.sqrt(sum(energies) / len(energies)) if energies else 0.0


@lru_cache(maxsize=4096)
def least_halo(decay: Decay, blend: int, tolerance: float) -> int:
    """Return the smallest halo that keeps the error below the tolerance, with `SAFETY`.

    Where none does, the one from which on more halo hardly helps.
    """
    longest = max(len(decay.ends_above), len(decay.ends_below))
    wanted = max(tolerance / SAFETY, 1.1 * decay.floor)
    return next((h for h in range(longest) if seam_error(decay, h, h + 2 * blend, blend) <= wanted), longest)


def worst(decays: Iterable[Decay]) -> Decay:
    """Return the largest error of several problems at every distance."""
    several = list(decays)
    return Decay(_envelope([d.ends_above for d in several]), _envelope([d.ends_below for d in several]))


def _envelope(curves: list[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(max(_at(curve, i) for curve in curves) for i in range(max(map(len, curves))))


def _at(curve: tuple[float, ...], distance: int) -> float:
    return curve[min(max(distance, 0), len(curve) - 1)]
