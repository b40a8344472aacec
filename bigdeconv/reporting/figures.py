"""Pictures of a run: maximum projections of volumes, in the sample's own proportions."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from bigdeconv.errors import BigdeconvError
from bigdeconv.geometry import Box, triple
from bigdeconv.storage import omezarr
from bigdeconv.storage.arrays import read_box

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bigdeconv.planning.blocks import Plan
    from bigdeconv.storage.omezarr import VolumeInfo

MIN_PIXELS = 192
"""A picture is made from the coarsest level with as many voxels in y or x."""
MAX_VOXELS = 2**26
"""Larger levels are not read for a picture."""
PICTURE_PIXELS = 420
"""Extent of the longest axis of a picture in a report."""
_GAP = 4
_GREY = 128


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Maximum projections of one volume as a PNG file."""

    title: str
    png: bytes


def pictures(source: VolumeInfo, output: Path, plan: Plan, view_axis: str | None) -> list[Picture]:
    """Return projections of the first channel and time point of input and output, without those that cannot be read."""
    roi, timepoint, channel = plan.roi, plan.timepoints[0], plan.channels[0]
    after = _coarse_level(str(output), 0, None)
    if after is None:
        return []
    before = _coarse_level(source.location, source.level, after.zyx_shape)
    found = [_picture("deconvolved", after, Box.of_shape(after.zyx_shape), 0, 0, None)]
    if before is not None:
        ratio = [n / m for n, m in zip(before.zyx_shape, source.zyx_shape, strict=True)]
        start = triple(min(int(a * r), n - 1) for a, r, n in zip(roi.start, ratio, before.zyx_shape, strict=True))
        stop = triple(
            max(a + 1, min(int(b * r), n)) for a, b, r, n in zip(start, roi.stop, ratio, before.zyx_shape, strict=True)
        )
        found.insert(0, _picture("measured", before, Box(start, stop), timepoint, channel, view_axis))
    return [picture for picture in found if picture is not None]


def projections(volume: np.ndarray, voxel_zyx_um: Sequence[float], pixels: int) -> Image.Image:
    """Draw the maximum projection along z, and below it the one along y.

    Parameters
    ----------
    volume : ndarray, ``z y x``
        Finite values; the darkest percent is black and the brightest 0.2 % white.
    voxel_zyx_um : sequence of float
        Voxel size, for the proportions.
    pixels : int
        Extent of the longest axis.
    """
    above, side = volume.max(axis=0), volume.max(axis=1)
    low, high = np.percentile(above, [1.0, 99.8])
    extents = [n * v for n, v in zip(volume.shape, voxel_zyx_um, strict=True)]
    depth, height, width = (max(round(extent * pixels / max(extents)), 1) for extent in extents)
    canvas = Image.new("L", (width, height + depth + _GAP), _GREY)
    canvas.paste(_grey(above, low, high).resize((width, height), Image.Resampling.BOX), (0, 0))
    canvas.paste(_grey(side, low, high).resize((width, depth), Image.Resampling.BOX), (0, height + _GAP))
    return canvas


def _coarse_level(location: str, first: int, like: tuple[int, int, int] | None) -> VolumeInfo | None:
    """Return the coarsest level that is wide enough, or at least as large as ``like``; None if it is too large."""
    best: VolumeInfo | None = None
    number = first
    while True:
        try:
            info = omezarr.describe(location, level=number)
        except BigdeconvError:
            break
        enough = max(info.zyx_shape[1:]) >= MIN_PIXELS if like is None else max(info.zyx_shape[1:]) >= max(like[1:])
        if best is not None and not enough:
            break
        best, number = info, number + 1
    return best if best is not None and Box.of_shape(best.zyx_shape).size <= MAX_VOXELS else None


def _picture(
    title: str, info: VolumeInfo, box: Box, timepoint: int, channel: int, view_axis: str | None
) -> Picture | None:
    views = info.extent(view_axis) if view_axis else 1
    if views * box.size > MAX_VOXELS:
        return None
    try:
        found = read_box(info, box, timepoint=timepoint, channel=channel, view_axis=view_axis)
    except BigdeconvError:
        return None
    volume = np.nan_to_num(found.astype(np.float32))
    buffer = io.BytesIO()
    image = projections(volume.sum(axis=0) if view_axis else volume, info.voxel_zyx_um, PICTURE_PIXELS)
    image.save(buffer, "png", optimize=True)
    return Picture(title, buffer.getvalue())


def _grey(values: np.ndarray, low: float, high: float) -> Image.Image:
    shade = np.clip((values - low) / max(high - low, 1e-9), 0, 1) ** 0.7
    return Image.fromarray((255 * shade).astype(np.uint8))
