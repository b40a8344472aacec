"""Windows of a sample on which settings are tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import uniform_filter

from bigdeconv.calibration.choices import Window
from bigdeconv.geometry import triple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bigdeconv.geometry import Triple

WINDOW_VOXELS = 2**16
"""Voxels of a window on which candidates are tried, all views together."""
MIN_EDGE = 32
"""Smallest edge of that window, in voxels."""


def brightest_window(window: Window) -> Window:
    """Return the part of `WINDOW_VOXELS` voxels with the brightest mean over the views."""
    part = window_of(window.photons)
    start = triple(a + s.start for a, s in zip(window.place.start_zyx, part, strict=True))
    inside = (slice(None), *part)
    return Window(
        np.nan_to_num(window.photons[inside]),
        None if window.voxel_weights is None else window.voxel_weights[inside],
        window.place._replace(start_zyx=start),
    )


def window_of(photons: np.ndarray) -> tuple[slice, ...]:
    """Return the slices ``z y x`` of the window of `WINDOW_VOXELS` with the brightest mean over the views ``v z y x``."""
    mean = np.nan_to_num(photons).mean(axis=0)
    shape = _window_shape(mean.shape, len(photons))
    # The mean over a window, at the window's first voxel; those that would reach out of the volume do not count.
    sums = uniform_filter(mean, shape, mode="constant", origin=[-(n // 2) for n in shape])
    inside = sums[tuple(slice(0, n - w + 1) for n, w in zip(mean.shape, shape, strict=True))]
    start = np.unravel_index(int(inside.argmax()), inside.shape)
    return tuple(slice(int(a), int(a) + n) for a, n in zip(start, shape, strict=True))


def _window_shape(zyx_shape: Sequence[int], n_views: int) -> Triple:
    edge = max(round((WINDOW_VOXELS / n_views) ** (1 / 3)), MIN_EDGE)
    z, y, x = (min(edge, n) for n in zyx_shape)
    return z, y, x
