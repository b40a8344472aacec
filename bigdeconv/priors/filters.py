"""The filters ``W`` of the learned prior: ``Wᵀ f(Wx)`` without the many-channel response of a whole volume in memory.

Both ways of computing it visit the positions whose taps all lie inside the volume, part by part, and add up what comes back.
`Chain` runs the small convolutions one after the other, as they are written down.  `Segments` is several times faster on a CPU:

* The chain of linear layers is one filter per channel, some 7×7×7 taps wide.
* A row is cut into segments that overlap by the reach of the filter.  Along x a short Fourier transform turns the 7 taps of the
  18 positions of a segment, 126 products, into 35: three real ones per complex frequency.
* The transforms of so short segments are small real matrices, and so everything is a product of real matrices, the fastest
  thing that a processor does.  In the order ``point, channel, position`` each reads what the one before wrote: nothing is
  transposed, and the step between them, elementwise, does not care for the order.
* What is left is, per point, a matrix of ``channels × taps`` times one of ``taps × positions``.  Rows shifted by each tap in y
  are laid side by side once per tile; the taps in z are then a window on it.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn.functional import conv3d, conv_transpose3d, pad

from bigdeconv.geometry import Box, Triple, triple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from torch import Tensor

CHAIN_BYTES = 256 * 2**20
"""Bytes that the last response of `Chain` may take at a time; it runs on devices with memory of their own."""
SEGMENT = 24
"""Voxels of a segment of `Segments`: longer ones overlap less, but cost more to transform."""
POSITIONS = 256
"""Segments that `Segments` takes in one step: the channels' responses stay near the core."""
DEPTH = 24
"""Planes of a tile of `Segments`."""


class Filters(Protocol):
    """``W`` at one noise level, with the scalings ``α`` of its channels."""

    def apply(self, x: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``Wᵀ(f(αWx)/α)``, ``z y x``; ``through`` is ``f``, elementwise, 0 at 0, and may overwrite its argument."""
        ...

    def responses(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield channels and their part of ``αWx``, ``channel ...``, until every valid position was there once."""
        ...


class Chain:
    """The convolutions one after the other.

    Parameters
    ----------
    layers
        Kernels ``out in z y x`` of the chain, divided by the norm, float64.
    alpha
        Scaling per channel.
    dtype, device
        Where and how to compute.
    limit_bytes
        Memory of the last response at a time, if that is enough for a row.
    """

    def __init__(
        self,
        layers: Sequence[Tensor],
        alpha: Tensor,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        limit_bytes: int = CHAIN_BYTES,
    ) -> None:
        column = alpha[:, None, None, None, None]
        self._inward = [layer.to(device, dtype) for layer in (*layers[:-1], layers[-1] * column)]
        self._outward = [layer.to(device, dtype) for layer in (*layers[:-1], layers[-1] / column)]
        self._reach = reach(layers)
        self._limit_bytes = limit_bytes

    def apply(self, x: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``Wᵀ(f(αWx)/α)``."""
        total = torch.zeros_like(x)
        for slab in self._slabs(x):
            response = through(self._respond(x[slab.slices]))
            for layer in reversed(self._outward):
                response = conv_transpose3d(response, layer)
            total[slab.slices] += response[0]
        return total

    def responses(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield all channels slab by slab."""
        for slab in self._slabs(x):
            yield slice(None), self._respond(x[slab.slices])

    def _respond(self, part: Tensor) -> Tensor:
        response = part[None]
        for layer in self._inward:
            response = conv3d(response, layer)
        return response

    def _slabs(self, x: Tensor) -> Iterator[Box]:
        valid = triple(n - r for n, r in zip(x.shape, self._reach, strict=True))
        row_bytes = max(valid[2], 1) * self._inward[-1].shape[0] * x.element_size()
        rows = max(self._limit_bytes // row_bytes, 1)
        yield from _tiles(valid, self._reach, (max(rows // max(valid[1], 1), 1), rows))


class Segments:
    """The whole chain as one filter per channel, by real matrix products between transformed segments of rows.

    Parameters
    ----------
    layers
        Kernels ``out in z y x`` of the chain, divided by the norm, float64.
    alpha
        Scaling per channel.
    dtype, device
        Where and how to compute.
    positions, depth
        Size of a tile: segments of one plane in a step, if that is enough for a row, and planes.
    """

    def __init__(
        self,
        layers: Sequence[Tensor],
        alpha: Tensor,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        positions: int = POSITIONS,
        depth: int = DEPTH,
    ) -> None:
        self._reach = reach(layers)
        length = _segment_length(self._reach[2])
        self._stride = length - self._reach[2]
        ahead, of_filter, back = _products(length)
        kernels = impulse_response(layers).flip(1, 2, 3)
        filters = torch.einsum("pt,czyt->pczy", of_filter[:, : kernels.shape[3]], kernels).flatten(2)
        column = alpha[:, None]
        self._inward = (filters * column).to(device, dtype)
        self._outward = (filters / column).transpose(1, 2).to(device, dtype).contiguous()
        self._ahead = ahead.to(device, dtype)
        self._back = back[:, : self._stride].to(device, dtype)
        self._positions, self._depth = positions, depth

    def apply(self, x: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``Wᵀ(f(αWx)/α)``."""
        total = torch.zeros_like(x)
        for tile in self._tiles(x):
            total[tile.slices] += self._apply_tile(x[tile.slices], through)
        return total

    def responses(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield all channels, rows of one plane at a time."""
        for tile in self._tiles(x):
            part = x[tile.slices]
            count = self._count(part)
            shifted = self._shifted(self._transformed(part), count)
            for z in range(part.shape[0] - self._reach[0]):
                by_segment = self._respond(shifted, z).view(self._stride, self._inward.shape[1], -1, count)
                yield slice(None), by_segment.permute(1, 2, 3, 0).flatten(2)[..., : part.shape[2] - self._reach[2]]

    def _apply_tile(self, x: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
        count = self._count(x)
        beyond = count * self._stride + self._reach[2] - x.shape[2]
        transformed = self._transformed(x)
        shifted = self._shifted(transformed, count)
        n_points, _, taps_y, n_positions = shifted.shape
        total = torch.zeros_like(transformed)
        for z in range(x.shape[0] - self._reach[0]):
            response = self._respond(shifted, z)
            response.view(self._stride, -1, count)[self._stride - beyond :, :, -1] = 0
            points = (self._back @ through(response)).view(n_points, -1, n_positions)
            by_tap = torch.bmm(self._outward, points).view(n_points, -1, taps_y, n_positions)
            window = self._window(total, z)
            for dy in range(taps_y):
                window[..., dy * count : dy * count + n_positions] += by_tap[:, :, dy]
        return self._transformed_adjoint(total, x)

    def _respond(self, shifted: Tensor, z: int) -> Tensor:
        """Return ``αWx`` at plane ``z``, ``x channel·y·segment``; the last segment of a row may reach beyond it."""
        n_points, _, _, n_positions = shifted.shape
        taps = self._window(shifted, z).view(n_points, -1, n_positions)
        return self._back.t() @ torch.bmm(self._inward, taps).view(n_points, -1)

    def _transformed(self, x: Tensor) -> Tensor:
        """Return the segments as factors of the products, ``point z y·segment``."""
        count, length = self._count(x), self._ahead.shape[1]
        padded = pad(x, (0, count * self._stride + self._reach[2] - x.shape[2]))
        segments = padded.unfold(2, length, self._stride).reshape(-1, length)
        return (self._ahead @ segments.t()).view(len(self._ahead), x.shape[0], -1)

    def _transformed_adjoint(self, points: Tensor, x: Tensor) -> Tensor:
        """Return a tile like ``x`` to which the segments, where they overlap, have been added up."""
        count, rx = self._count(x), self._reach[2]
        segments = (self._ahead.t() @ points.flatten(1)).view(-1, *x.shape[:2], count).permute(1, 2, 3, 0)
        rows = x.new_zeros(*x.shape[:2], count * self._stride + rx)
        rows[..., : rows.shape[2] - rx] = segments[..., : self._stride].flatten(2)
        if rx:
            rows[..., self._stride :].unfold(2, rx, self._stride).add_(segments[..., self._stride :])
        return rows[..., : x.shape[2]]

    def _shifted(self, transformed: Tensor, count: int) -> Tensor:
        """Return the rows shifted by every tap in y, ``point z dy y·segment``."""
        n_positions = transformed.shape[2] - self._reach[1] * count
        return transformed.unfold(2, n_positions, count).contiguous()

    def _window(self, planes: Tensor, z: int) -> Tensor:
        return planes[:, z : z + self._reach[0] + 1]

    def _count(self, x: Tensor) -> int:
        """Return the segments of a row."""
        return -(-(x.shape[2] - self._reach[2]) // self._stride)

    def _tiles(self, x: Tensor) -> Iterator[Box]:
        valid = triple(n - r for n, r in zip(x.shape, self._reach, strict=True))
        height = max(self._positions // max(self._count(x), 1), 1)
        yield from _tiles(valid, self._reach, (self._depth, height))


def _products(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the matrices of a circular correlation of an even length by real products, ``point x`` each, float64.

    ``Σ_t w(t) s(x + t) = back.T @ (of_filter @ w * (ahead @ s))``, and ``ahead.T @ (of_filter @ w * (back @ r))`` is its adjoint.
    A point is a real product: one where the spectrum is real, three where it is complex (Gauss).  With cosine and sine parts
    ``a, b`` of ``s`` and ``c, d`` of ``w`` the product of the spectra is ``(ca + db) + i(da − cb)``; its parts come from
    ``ca``, ``db`` and ``(c − d)(a + b)``.
    """
    half = length // 2
    frequency, x = torch.arange(half + 1)[:, None], torch.arange(length)
    angle = (frequency * x % length).to(torch.float64) * (2 * math.pi / length)
    cos, sin = angle.cos(), angle.sin()
    share = torch.full((half + 1, 1), 2 / length, dtype=torch.float64)
    share[[0, half]] = 1 / length

    def stacked(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        return torch.cat([first, second[1:half], third[1:half]])

    back = stacked(*(part * share for part in (cos - sin, cos + sin, sin)))
    return stacked(cos, sin, cos + sin), stacked(cos, sin, cos - sin), back


def _segment_length(reach_x: int) -> int:
    return max(SEGMENT, 2 * reach_x + 2)


def products_per_segment(reach_x: int) -> tuple[int, int]:
    """Return the real products that `Segments` takes per segment and tap in z and y, and the positions they serve."""
    length = _segment_length(reach_x)
    return 3 * length // 2 - 1, length - reach_x


def reach(layers: Sequence[Tensor] | Sequence[np.ndarray]) -> Triple:
    """Return the taps of a chain beyond the first, along z, y and x."""
    return triple(sum(layer.shape[a] - 1 for layer in layers) for a in (2, 3, 4))


def impulse_response(layers: Sequence[Tensor]) -> Tensor:
    """Return the filters of the whole chain, ``channels z y x``, up to reflection."""
    taps = reach(layers)
    impulse = layers[0].new_zeros(1, *(2 * r + 1 for r in taps))
    impulse[0, taps[0], taps[1], taps[2]] = 1
    for layer in layers:
        impulse = conv3d(impulse, layer)
    return impulse


def work_bytes(layers: Sequence[Tensor] | Sequence[np.ndarray]) -> int:
    """Return the memory in bytes that `Segments` takes in float32 beside its result, for rows of up to `POSITIONS` segments."""
    n_channels, (rz, ry, rx) = layers[-1].shape[0], reach(layers)
    n_points, stride = products_per_segment(rx)
    taps = (rz + 1) * (ry + 1)
    planes = 3 * (DEPTH + rz) * (ry + 1) * n_points
    step = 2 * n_channels * (n_points + stride) + taps * n_points
    return 4 * (POSITIONS * (planes + step) + 2 * n_channels * taps * n_points)


def _tiles(valid: Triple, beyond: Triple, extent_zy: tuple[int, int]) -> Iterator[Box]:
    """Yield boxes whose valid positions tile all valid positions, rows whole."""
    if min(valid) < 1:
        return
    depth, height = (min(e, n) for e, n in zip(extent_zy, valid, strict=False))
    for z, y in product(range(0, valid[0], depth), range(0, valid[1], height)):
        stop = (min(z + depth, valid[0]), min(y + height, valid[1]), valid[2])
        yield Box((z, y, 0), stop).grow((0, 0, 0), beyond)
