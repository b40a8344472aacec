"""A PSF made wider or narrower about its centre."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from scipy.interpolate import CubicSpline

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from bigdeconv.psf.psf import PSF

    Floats = npt.NDArray[np.float64]


def scaled(psf: PSF, factors_zyx: Sequence[float]) -> PSF:
    """Return a PSF that is wider or narrower by a factor on each axis, all views alike.

    Parameters
    ----------
    psf : PSF
    factors_zyx : sequence of float
        More than 1 for a wider PSF.

    Returns
    -------
    PSF
        The same sum and centre, and a note.

    Examples
    --------
    >>> from bigdeconv.psf import PSF, gaussian
    >>> narrow = scaled(PSF(gaussian((4, 2, 2))[None], (0.2, 0.1, 0.1)), (0.5, 0.5, 0.5))
    >>> narrow.support_zyx, float(narrow.views.sum().round(4))
    ((17, 9, 9), 1.0)
    """
    if all(factor == 1 for factor in factors_zyx):
        return psf
    views = psf.views.astype(np.float64)
    sums = views.sum(axis=(1, 2, 3), keepdims=True)
    for axis, factor in enumerate(factors_zyx, start=1):
        if factor != 1 and views.shape[axis] > 1:
            views = rebinned(views, axis, 1 / factor)
    views *= sums / views.sum(axis=(1, 2, 3), keepdims=True)
    z, y, x = factors_zyx
    note = f"PSF: {z:g},{y:g},{x:g} times as wide (z,y,x) as given."
    return replace(psf, views=np.ascontiguousarray(views, np.float32), notes=(*psf.notes, note))


def rebinned(views: Floats, axis: int, ratio: float) -> Floats:
    """Integrate over voxels that are ``ratio`` times as wide: differences of a spline of the cumulative sum.

    This preserves the sum along the axis exactly, and for wider voxels the integral is the filter against aliasing.
    """
    n = views.shape[axis]
    zero = np.zeros_like(views.take([0], axis=axis))
    cumulative = np.concatenate([zero, np.cumsum(views, axis=axis)], axis=axis)
    spline = CubicSpline(np.arange(n + 1.0), cumulative, axis=axis, bc_type="natural")
    # The last new voxel covers the last old face; the small number keeps a radius of 2.0000001 from becoming 3.
    radius = max(ceil(0.5 * n / ratio - 0.5 - 1e-6), 0)
    edges = 0.5 * n + (np.arange(2 * radius + 2) - radius - 0.5) * ratio
    fine = np.diff(spline(np.clip(edges, 0, n)), axis=axis)
    return np.clip(fine, 0, None)  # a spline overshoots a little below 0 beside sharp edges
