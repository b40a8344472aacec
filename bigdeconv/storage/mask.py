"""Masks on disk: which blocks hold foreground, found with a small part of the mask in memory at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from bigdeconv.errors import BigdeconvError, InvalidInputError
from bigdeconv.geometry import Box, ceil_div, round_up, triple
from bigdeconv.storage.arrays import read_box
from bigdeconv.storage.locations import resolve_location
from bigdeconv.storage.ome_parsing import open_group, parse_image
from bigdeconv.storage.omezarr import VolumeInfo, describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bigdeconv.planning.blocks import Plan

MAX_LEVEL_VOXELS = 2**26
"""Of a pyramid, the finest level of at most so many voxels is read, or else the coarsest."""
MAX_VOXELS, MAX_BRICK_VOXELS = 2**40, 2**30
"""Voxels of the level that is read, and of what is read of it at a time."""
BRICK = 64
"""Least edge in z and y, in voxels, of the bricks that are read at a time."""
UNPLACED_UM = (1.0, 1.0, 1.0)
"""Voxel size in place of one that a mask does not have; it is not used."""

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Mask:
    """One level of an integer or boolean image, placed against a volume; voxels other than 0 are foreground."""

    info: VolumeInfo
    placement: tuple[tuple[float, float], ...]
    """Mask voxels per voxel of the volume, and position of the volume's first face in mask voxels; z y x."""

    def covers(self, zyx_shape: Sequence[int]) -> bool:
        """Tell whether the mask covers the volume, ``z y x``, to within one mask voxel."""
        faces = zip(self.placement, zyx_shape, self.info.zyx_shape, strict=True)
        return all(first > -1 and first + step * n < size + 1 for (step, first), n, size in faces)

    def occupied(self, spans: Sequence[Sequence[Span]], *, timepoint: int, channel: int) -> np.ndarray:
        """Tell which boxes hold foreground.

        Every voxel of the level is read once, a brick at a time.

        Parameters
        ----------
        spans : sequence of sequence of tuple of int
            For z, y and x, half-open ranges of the volume's voxels; the boxes are their products.
        timepoint, channel : int
            Indices into the mask.

        Returns
        -------
        ndarray of bool, ``z y x``
            One item per range of z, y and x.
        """
        z, y, x = ([self._touched(axis, span) for span in spans[axis]] for axis in range(3))
        lower = triple(min(a for a, _ in ranges) for ranges in (z, y, x))
        upper = triple(max(b for _, b in ranges) for ranges in (z, y, x))
        inside = Box(lower, upper).intersect(Box.of_shape(self.info.zyx_shape))
        z, y, x = ([(a - o, b - o) for a, b in r] for r, o in zip((z, y, x), inside.start, strict=True))
        planes = np.zeros((inside.shape[0], len(y), len(x)), bool)
        for front, back in self._bricks("z", inside.shape[0]):
            rows = np.zeros((back - front, inside.shape[1], len(x)), bool)
            for top, bottom in self._bricks("y", inside.shape[1]):
                box = Box((front, top, 0), (back, bottom, inside.shape[2])).shift(inside.start)
                brick = read_box(self.info, box, timepoint=timepoint, channel=channel) != 0
                rows[:, top:bottom] = _any_over(brick, x, axis=2)
            planes[front:back] = _any_over(rows, y, axis=1)
        return _any_over(planes, z, axis=0)

    def _touched(self, axis: int, span: Span) -> Span:
        """Return the mask voxels that a range of the volume touches; rounding errors of the metadata touch none."""
        step, first = self.placement[axis]
        size = self.info.zyx_shape[axis]
        start, stop = math.floor(first + step * span[0] + 1e-6), math.ceil(first + step * span[1] - 1e-6)
        return min(max(start, 0), size), min(max(stop, 0), size)

    @property
    def brick_voxels(self) -> int:
        """Voxels that are read at a time."""
        bricks = [self._bricks(axis, extent)[0] for axis, extent in zip("zy", self.info.zyx_shape, strict=False)]
        return math.prod(stop for _, stop in bricks) * self.info.zyx_shape[2]

    def _bricks(self, axis: str, extent: int) -> list[Span]:
        position = self.info.axis_index(axis)
        edge = BRICK if position is None else round_up(BRICK, self.info.chunk_shape[position])
        return [(a, min(a + edge, extent)) for a in range(0, extent, edge)]


def blocks_outside(
    location: str, volumes: Sequence[VolumeInfo], plans: Sequence[Plan], view_axis: str | None
) -> tuple[np.ndarray, list[str]]:
    """Find the blocks without foreground within their reach.

    Parameters
    ----------
    location : str
        The mask: an OME-Zarr image or label image.
    volumes : sequence of VolumeInfo
        Volumes of the job.
    plans : sequence of Plan
        Plan of each volume.
    view_axis : str or None
        Axis of the views.

    Returns
    -------
    outside : ndarray of bool
        One item per block of all volumes.
    notes : list of str
        One sentence per oddity of the mask.

    Raises
    ------
    InvalidInputError
        See `open_mask`.
    """
    found, notes = [], list[str]()
    for volume, plan in zip(volumes, plans, strict=True):
        mask = open_mask(location, volume, view_axis)
        found.append(_outside(mask, plan))
        if not mask.covers(volume.zyx_shape):
            notes.append("The mask covers a part of the volume only; the rest counts as outside of it.")
    outside = np.concatenate(found)
    if outside.all():
        notes.append("The mask has no foreground near any block: nothing is computed and the output is empty.")
    return outside, list(dict.fromkeys(notes))


def _outside(mask: Mask, plan: Plan) -> np.ndarray:
    spans = [plan.reach(axis) for axis in range(3)]
    # One time point or channel of the mask may serve all of the volume's.
    served = [
        (min(t, mask.info.n_timepoints - 1), min(c, mask.info.n_channels - 1))
        for t, c in product(plan.timepoints, plan.channels)
    ]
    occupied = {key: mask.occupied(spans, timepoint=key[0], channel=key[1]) for key in dict.fromkeys(served)}
    return np.concatenate([~occupied[key].transpose(plan.axis_order).ravel() for key in served])


def open_mask(location: str, volume: VolumeInfo, view_axis: str | None) -> Mask:
    """Open a mask and place it against a volume: by the metadata of both, or, if the mask has none, by the ratio of extents.

    Parameters
    ----------
    location : str
        The mask: an OME-Zarr image or label image.
    volume : VolumeInfo
        The volume.
    view_axis : str or None
        Axis of the views.

    Raises
    ------
    InvalidInputError
        If it is no OME-Zarr image of integers or booleans, or does not fit the volume.
    """
    try:
        info, placed = _describe(location)
    except BigdeconvError as error:
        raise InvalidInputError(f"mask: {error}; give auto, none, or an OME-Zarr image or label image.") from error
    _check_axes(info, volume, view_axis)
    placement = _by_metadata(info, volume) if placed else _by_extent(info, volume)
    mask = Mask(info, placement)
    if mask.brick_voxels > MAX_BRICK_VOXELS or math.prod(info.zyx_shape) > MAX_VOXELS:
        raise InvalidInputError(
            f"mask: {info.location} has shape {info.zyx_shape} (z,y,x), which is too much to look through; give it a pyramid, or "
            "one mask voxel for several of the volume."
        )
    whole = [[(0, n)] for n in volume.zyx_shape]
    if any(a >= b for axis in range(3) for a, b in [mask._touched(axis, whole[axis][0])]):
        raise InvalidInputError(
            f"mask: {info.location} lies beside the volume: it begins at {_um(info)} µm (z,y,x), the volume at {_um(volume)} µm; "
            "correct the translation or scale in its metadata."
        )
    return mask


def _describe(location: str) -> tuple[VolumeInfo, bool]:
    """Describe the level to read, and tell whether its metadata give its position."""
    where = resolve_location(location)
    n_levels = len(parse_image(where, open_group(where).attrs.asdict()).datasets)
    for level in range(n_levels):
        try:
            info, placed = describe(where, level=level, kinds="biu"), True
        except InvalidInputError:
            # Any defect but a missing voxel size is met again.
            info, placed = describe(where, level=level, kinds="biu", voxel_zyx_um=UNPLACED_UM), False
        if math.prod(info.zyx_shape) <= MAX_LEVEL_VOXELS:
            break
    return info, placed


def _check_axes(info: VolumeInfo, volume: VolumeInfo, view_axis: str | None) -> None:
    for axis, extent in zip(info.axes, info.shape, strict=True):
        expected = 1 if axis == view_axis or axis not in {"t", "c"} else volume.extent(axis)
        if axis not in {"z", "y", "x"} and extent not in (1, expected):
            raise InvalidInputError(
                f"mask: {info.location} has {extent} entries on axis {axis!r}; it must have 1"
                + (f", or {expected} as the volume has." if expected > 1 else ".")
            )


def _by_metadata(info: VolumeInfo, volume: VolumeInfo) -> tuple[tuple[float, float], ...]:
    """Place voxel centres by scale and translation; one voxel spans an axis that the mask does not store."""
    placement = []
    for i, axis in enumerate("zyx"):
        if info.axis_index(axis) is None:
            placement.append((1 / volume.zyx_shape[i], 0.0))
            continue
        mine, theirs = info.voxel_zyx_um[i], volume.voxel_zyx_um[i]
        face = volume.translation_zyx_um[i] - theirs / 2 - (info.translation_zyx_um[i] - mine / 2)
        placement.append((theirs / mine, face / mine))
    return tuple(placement)


def _by_extent(info: VolumeInfo, volume: VolumeInfo) -> tuple[tuple[float, float], ...]:
    """Spread the mask over the whole volume, which must be finer by whole factors."""
    placement = []
    for axis, n, m in zip("zyx", volume.zyx_shape, info.zyx_shape, strict=True):
        factor = _whole_factor(n, m) if axis in info.axes else n
        if factor is None:
            raise InvalidInputError(
                f"mask: {info.location} has shape {info.zyx_shape} (z,y,x) and no voxel size, the volume has {volume.zyx_shape}; "
                "give it a scale in its metadata, or the volume's shape divided by whole numbers."
            )
        placement.append((1 / factor, 0.0))
    return tuple(placement)


def _whole_factor(fine: int, coarse: int) -> int | None:
    """Return the factor by which an axis was divided, the remainder rounded either way."""
    likely = (fine // coarse, fine // coarse + 1)
    return next((f for f in likely if f and coarse in (fine // f, ceil_div(fine, f))), None)


def _um(info: VolumeInfo) -> str:
    return ",".join(f"{t:.6g}" for t in info.translation_zyx_um)


def _any_over(flags: np.ndarray, spans: Sequence[Span], axis: int) -> np.ndarray:
    """Replace an axis by one item per range: whether any flag in it is set."""
    before = (slice(None),) * axis
    return np.stack([flags[(*before, slice(a, b))].any(axis=axis) for a, b in spans], axis=axis)
