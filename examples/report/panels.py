"""Rows of pictures of volumes: a lateral slice, an axial one below it, and magnified regions of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from phantom import VOXEL_ZYX_UM

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

BAR_UM = 0.357
_COLOURS = ("#ffb000", "#40b0ff", "#ff5fa0", "#60d060")


@dataclass(frozen=True, slots=True)
class View:
    """Parts of a volume that are shown."""

    z: int
    """Plane of the lateral slice."""
    y: int
    """Row of the axial slice."""
    lateral_rois: tuple[tuple[int, int, int, int], ...]
    """First row, first column, height and width in the lateral slice."""
    axial_rois: tuple[tuple[int, int, int, int], ...]
    """The same in the axial slice."""


def draw(path: Path, volumes: dict[str, np.ndarray], view: View, title: str) -> None:
    """Draw volumes ``z y x`` side by side, each slice on a colour scale of its own: its scale is not compared."""
    n_rois = len(view.lateral_rois) + len(view.axial_rois)
    depth, height, width = next(iter(volumes.values())).shape
    axial = depth * VOXEL_ZYX_UM[0] / (height * VOXEL_ZYX_UM[1])
    ratios = [1.0, axial, *[height / width] * n_rois]
    size = 1.75
    figure, axes = plt.subplots(
        len(ratios),
        len(volumes),
        figsize=(size * len(volumes), 1.03 * size * sum(ratios) + 0.7),
        gridspec_kw={"height_ratios": ratios},
        layout="constrained",
        squeeze=False,
    )
    for column, (name, volume) in zip(axes.T, volumes.items(), strict=True):
        _column(column, volume, view)
        column[0].set_title(name, fontsize=9)
    for axis, label in zip(axes[:, 0], ["xy", "xz", *(f"ROI {i + 1}" for i in range(n_rois))], strict=True):
        axis.set_ylabel(label, fontsize=8)
    _scale_bar(axes[0, 0], volume.shape[1:])
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def interesting(truth: np.ndarray) -> View:
    """Return the brightest plane and row of a volume, and the two brightest regions that do not overlap in each."""
    z, y = int(truth.sum(axis=(1, 2)).argmax()), int(truth.sum(axis=(0, 2)).argmax())
    depth, height, width = truth.shape
    side = max(width // 4, 8)
    lateral = _busiest(truth[z], (max(height // 4, 8), side))
    axial = _busiest(truth[:, y], (min(depth, max(round(side * VOXEL_ZYX_UM[2] / VOXEL_ZYX_UM[0]), 4)), side))
    return View(z, y, lateral, axial[:1])


def _busiest(picture: np.ndarray, size: tuple[int, int]) -> tuple[tuple[int, int, int, int], ...]:
    windows = np.lib.stride_tricks.sliding_window_view(picture, size)
    contrast = windows.std(axis=(2, 3))
    found = []
    for _ in range(2):
        top, left = (int(i) for i in np.unravel_index(contrast.argmax(), contrast.shape))
        found.append((top, left, *size))
        contrast[max(top - size[0], 0) : top + size[0], max(left - size[1], 0) : left + size[1]] = -1
    return tuple(found)


def _column(axes: Sequence[Axes], volume: np.ndarray, view: View) -> None:
    lateral, axial = volume[view.z], volume[:, view.y]
    z_aspect = VOXEL_ZYX_UM[0] / VOXEL_ZYX_UM[2]
    pictures = [(lateral, 1.0, view.lateral_rois), (axial, z_aspect, view.axial_rois)]
    for axis, (picture, aspect, _) in zip(axes[:2], pictures, strict=True):
        axis.imshow(picture, aspect=aspect, **_limits(picture))
    parts = [(axis, *p[:2], roi) for axis, p in zip(axes[:2], pictures, strict=True) for roi in p[2]]
    for axis, (whole, picture, aspect, (top, left, height, width)), colour in zip(
        axes[2:], parts, _COLOURS, strict=False
    ):
        axis.imshow(picture[top : top + height, left : left + width], aspect=aspect, **_limits(picture))
        whole.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=colour, linewidth=0.9))
        for spine in axis.spines.values():
            spine.set_color(colour)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])


def _limits(picture: np.ndarray) -> dict[str, str | float]:
    low, high = (float(value) for value in np.percentile(picture, [2.0, 99.7]))
    return {"cmap": "inferno", "vmin": low, "vmax": max(high, low + 1e-9)}


def _scale_bar(axis: Axes, yx_shape: tuple[int, ...]) -> None:
    length = BAR_UM / VOXEL_ZYX_UM[2]
    thickness = 0.025 * yx_shape[0]
    corner = (0.05 * yx_shape[1], 0.93 * yx_shape[0])
    axis.add_patch(Rectangle(corner, length, thickness, color="white"))
