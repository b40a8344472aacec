"""Checks of voxel sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import VOXEL_LIMITS_UM

if TYPE_CHECKING:
    from collections.abc import Sequence

    TripleUm = tuple[float, float, float]


def checked_voxel(voxel_zyx_um: Sequence[float], argument: str) -> TripleUm:
    """Return a voxel size as three floats.

    Parameters
    ----------
    voxel_zyx_um : sequence of float
        Voxel size in µm.
    argument : str
        Name of the argument for the message.

    Raises
    ------
    InvalidInputError
        If it is not three positive numbers that can be a voxel size.

    Examples
    --------
    >>> checked_voxel([1, 0.5, 0.5], "voxel_zyx_um")
    (1.0, 0.5, 0.5)
    """
    values = tuple(float(v) for v in voxel_zyx_um)
    least, most = VOXEL_LIMITS_UM
    if len(values) != 3 or not all(least <= v <= most for v in values):
        raise InvalidInputError(
            f"{argument}: got {values!r}; expected three positive lengths in µm in the order z,y,x, each from {least:g} to "
            f"{most:g}."
        )
    z, y, x = values
    return z, y, x
