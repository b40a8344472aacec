"""Seam-error model: the error next to a face between two cores that follows from the ends of the data windows.

One axis; the window of the block below ends ``above`` voxels past the face, that of the block above starts ``below`` before it::

    block below   --------------------|- 2·blend -|---- halo ----|
    block above          |---- halo ----|------------------------
                                      ^ the face

The error of a block decreases with the distance from the end of its window; the ramps of the blend weigh both blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SAFETY = 3.0
"""A halo is chosen for the tolerance divided by this.  It is calibrated on synthetic slabs and with a nominal τ, while other data
and their τ gave errors of up to four times the predicted ones."""
LEARNED_SAFETY = 8.0
"""The same with the learned prior: its steps follow the last move, and meshes gave seven times the predicted errors."""


@dataclass(frozen=True, slots=True)
class EdgeErrorProfile:
    """Relative error of each plane of a window, by its distance in voxels from the end of the data on one axis.

    It never rises with the distance.  L2 over the plane, relative to the solution of the whole.
    """

    ends_above: tuple[float, ...]
    """Of a window whose data end at its upper face."""
    ends_below: tuple[float, ...]
    """Of a window whose data start at its lower face."""
    safety: float = SAFETY
    """Ratio of the tolerance to the error that a halo is chosen for."""

    @property
    def floor(self) -> float:
        """Error that remains whatever the halo, because rounding errors grow to it."""
        return max(self.ends_above[-1], self.ends_below[-1])


def strip_width(blend: int) -> int:
    """Return the number of voxels on each side of a face that count as next to it."""
    return max(2, blend)


@lru_cache(maxsize=4096)
def seam_error(profile: EdgeErrorProfile, below: int | None, above: int | None, blend: int) -> float:
    """Return the relative error next to a face, L2 over the voxels within `strip_width` of it.

    Parameters
    ----------
    profile : EdgeErrorProfile
    below, above : int or None
        Distance from the face to the start of the upper block's data, and to the end of the lower block's; None where the volume
        itself ends there, so that no data are missing.
    blend : int
        Half-width of the ramps.
    """
    width = strip_width(blend)
    energy = 0.0
    for plane in range(-width, width):
        own = 0.0 if plane < 0 else 1.0 if plane >= 2 * blend else (plane + 0.5) / (2 * blend)
        if above is not None:
            energy += ((1 - own) * _at(profile.ends_above, above - 1 - plane)) ** 2
        if below is not None:
            energy += (own * _at(profile.ends_below, below + plane)) ** 2
    return math.sqrt(energy / (2 * width))


def pooled_error(profile: EdgeErrorProfile, reaches: Iterable[tuple[int | None, int | None]], blend: int) -> float:
    """Return the error of all faces of an axis together; 0 without faces.

    Parameters
    ----------
    profile : EdgeErrorProfile
    reaches : iterable of (int or None, int or None)
        ``below`` and ``above`` of each face, see `seam_error`.
    blend : int
        Half-width of the ramps.
    """
    energies = [seam_error(profile, below, above, blend) ** 2 for below, above in reaches]
    return math.sqrt(sum(energies) / len(energies)) if energies else 0.0


@lru_cache(maxsize=4096)
def min_halo(profile: EdgeErrorProfile, blend: int, tolerance: float) -> int:
    """Return the smallest halo that keeps the error below the tolerance, with the profile's safety.

    If no halo does, it is the one beyond which a larger halo hardly helps.
    """
    longest = max(len(profile.ends_above), len(profile.ends_below))
    wanted = max(tolerance / profile.safety, 1.1 * profile.floor)
    return next((h for h in range(longest) if seam_error(profile, h, h + 2 * blend, blend) <= wanted), longest)


def worst(edge_profiles: Iterable[EdgeErrorProfile]) -> EdgeErrorProfile:
    """Return the largest error of several problems at each distance."""
    several = list(edge_profiles)
    return EdgeErrorProfile(
        _envelope([d.ends_above for d in several]),
        _envelope([d.ends_below for d in several]),
        max(d.safety for d in several),
    )


def _envelope(curves: list[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(max(_at(curve, i) for curve in curves) for i in range(max(map(len, curves))))


def _at(curve: tuple[float, ...], distance: int) -> float:
    return curve[min(max(distance, 0), len(curve) - 1)]
