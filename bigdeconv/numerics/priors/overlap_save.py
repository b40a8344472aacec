"""The filters of the learned prior by the overlap-save method: short transforms along x, for a CPU.

* The linear layers in sequence are one filter per channel, some 7×7×7 taps wide.
* A row is cut into segments that overlap by the reach of the filter.  Along x a short Fourier transform replaces the 126 products
  of 7 taps with the 18 positions of a segment by 35 products: three real ones per complex frequency.
* The transforms of such short segments are small real matrices.  In the order ``point, channel, segment`` each product reads the
  output of the one before: nothing is transposed, and the elementwise step between them works in any order.
* The remaining work is, per point, the product of a matrix ``channels × taps`` and a matrix ``taps × segments``, whose rows are
  windows on the points of a few planes.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from bigdeconv.geometry import ceil_div, round_up, triple
from bigdeconv.numerics.priors import numba_kernels
from bigdeconv.numerics.priors.filters import impulse_response, reach, tiles
from bigdeconv.planning.tuned import MAX_TILES, TILE_DEPTH, TILE_SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from torch import Tensor

    from bigdeconv.geometry import Box, Triple
    from bigdeconv.numerics.priors.filters import Potential


class OverlapSaveFilters:
    """All layers as one filter per channel, by real matrix products between transformed segments of rows.

    Parameters
    ----------
    layers : sequence of Tensor, ``out in z y x``
        Kernels of the convolutions, divided by the norm, float64.
    alpha : Tensor, ``channel``
        Scalings.
    dtype : torch.dtype
        Number type of the computation.
    device : torch.device or str
        The CPU; `SequentialConvolutions` serves other devices.
    segments, depth : int
        Size of a tile: segments of a plane, of which a tile has at least one row, and planes.
    """

    def __init__(
        self,
        layers: Sequence[Tensor],
        alpha: Tensor,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        segments: int = TILE_SEGMENTS,
        depth: int = TILE_DEPTH,
    ) -> None:
        self._reach = reach(layers)
        ahead, of_filter, back = _products(_segment_length(self._reach[2]))
        kernels = impulse_response(layers).flip(1, 2, 3)
        filters = torch.einsum("pt,czyt->pczy", of_filter[:, : kernels.shape[3]], kernels)
        # The compiled kernel processes several points and channels at a time; zeros fill their numbers up.
        more_points = round_up(len(ahead), numba_kernels.POINTS) - len(ahead)
        more_channels = round_up(len(alpha), numba_kernels.CHANNELS) - len(alpha)
        filters = pad(filters, (0, 0, 0, 0, 0, more_channels, 0, more_points))
        ahead, back = (pad(matrix, (0, 0, 0, more_points)) for matrix in (ahead, back))
        column = pad(alpha, (0, more_channels), value=1.0)[:, None, None]
        self._ahead = ahead.to(device, dtype)
        self._inward, self._outward, self._back = (
            array.to(device, dtype).contiguous().numpy()
            for array in (filters * column, filters / column, back[:, : numba_kernels.STRIDE])
        )
        self._segments, self._depth = segments, depth

    def apply(self, x: Tensor, potential: Potential) -> Tensor:
        """Return ``Wᵀ(ψ'(αWx)/α)``, ``z y x``, of a volume ``z y x``."""
        total = torch.zeros_like(x)
        boxes = list(self._tiles(x.shape))
        at_once = min(torch.get_num_threads(), MAX_TILES)
        through_filters = partial(self._through_filters, potential=potential)
        with ThreadPoolExecutor(at_once) as pool:
            # torch computes the transforms with its own threads.  The order of the sums is the same for any number of threads.
            for first in range(0, len(boxes), at_once):
                batch = boxes[first : first + at_once]
                planes = [self._transformed(x[box.slices]) for box in batch]
                for box, points in zip(batch, pool.map(through_filters, planes, batch), strict=True):
                    total[box.slices] += self._transformed_adjoint(points, box.shape)
        return total

    def _through_filters(self, planes: Tensor, tile: Box, *, potential: Potential) -> Tensor:
        """Apply the filters, ψ' and the adjoint of the filters to the points of a tile."""
        (_, rows, n), row = self._valid(tile.shape), self._row(tile.shape)
        last = n - (row - 1) * numba_kernels.STRIDE
        filters = (self._inward, self._outward, self._back)
        return torch.from_numpy(
            numba_kernels.gradient(planes.numpy(), *filters, row, rows * row, last, potential.clips)
        )

    def _transformed(self, x: Tensor) -> Tensor:
        """Return the transformed segments of a tile, ``point z y·segment``, with spare rows at the end of a plane."""
        (n_points, length), row = self._ahead.shape, self._row(x.shape)
        n_segments = row * self._valid(x.shape)[1]
        spare = ceil_div(round_up(n_segments, numba_kernels.NEIGHBOURS) - n_segments, row)
        padded = pad(x, (0, (row - 1) * numba_kernels.STRIDE + length - x.shape[2], 0, spare))
        segments = padded.unfold(2, length, numba_kernels.STRIDE).reshape(-1, length)
        return (self._ahead @ segments.t()).view(n_points, x.shape[0], -1)

    def _transformed_adjoint(self, points: Tensor, shape: Triple) -> Tensor:
        """Return the adjoint of `_transformed`: a tile in which overlapping segments are added up."""
        length, row, stride = self._ahead.shape[1], self._row(shape), numba_kernels.STRIDE
        segments = (points.flatten(1).t() @ self._ahead).view(shape[0], -1, row, length)
        rows = points.new_zeros(*segments.shape[:2], (row - 1) * stride + length)
        for start in range(0, length, stride):
            part = segments[..., start : start + stride]
            rows[..., start:].unfold(2, part.shape[3], stride)[:, :, :row].add_(part)
        return rows[:, : shape[1], : shape[2]]

    def _row(self, shape: Sequence[int]) -> int:
        """Return the number of segments of a row."""
        return ceil_div(self._valid(shape)[2], numba_kernels.STRIDE)

    def _valid(self, shape: Sequence[int]) -> Triple:
        """Return the extent of the positions whose taps all lie inside."""
        return triple(n - r for n, r in zip(shape, self._reach, strict=True))

    def _tiles(self, shape: Sequence[int]) -> Iterator[Box]:
        yield from tiles(self._valid(shape), self._reach, (self._depth, self._segments // max(self._row(shape), 1)))


def _segment_length(reach_x: int) -> int:
    """Return the number of voxels of a segment, which is even."""
    return numba_kernels.STRIDE + reach_x + reach_x % 2


def _products(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the matrices of a circular correlation of an even length by real products, ``point x`` each, float64.

    ``Σ_t w(t) s(x + t) = back.T @ (of_filter @ w * (ahead @ s))``, and ``ahead.T @ (of_filter @ w * (back @ r))`` is its adjoint.
    A point is a real product: one per real value of the spectrum, three per complex value (Gauss).  With cosine and sine parts
    ``a, b`` of ``s`` and ``c, d`` of ``w`` the product of the spectra is ``(ca + db) + i(da − cb)``; its parts are sums of
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


def products_per_segment(reach_x: int) -> tuple[int, int]:
    """Return the real products of `OverlapSaveFilters` per segment and tap in z and y, and the positions of a segment.

    Parameters
    ----------
    reach_x : int
        Taps beyond the first along x.

    Examples
    --------
    >>> products_per_segment(6)
    (35, 18)
    """
    return round_up(3 * _segment_length(reach_x) // 2 - 1, numba_kernels.POINTS), numba_kernels.STRIDE


def work_bytes(layers: Sequence[Tensor] | Sequence[np.ndarray]) -> int:
    """Return the memory in bytes of a tile of `OverlapSaveFilters` in float32, for rows of up to `TILE_SEGMENTS` segments.

    Parameters
    ----------
    layers : sequence of Tensor or ndarray, ``out in z y x``
        Kernels of the convolutions.
    """
    rz, ry, rx = reach(layers)
    n_channels = round_up(layers[-1].shape[0], numba_kernels.CHANNELS)
    n_points, stride = products_per_segment(rx)
    # For each segment the points before and after the filters, and twice its voxels.
    planes = (TILE_DEPTH + rz) * TILE_SEGMENTS * (ry + 2) * 2 * (n_points + _segment_length(rx))
    filters = 2 * (rz + 1) * (ry + 1) * n_points
    return 4 * (planes + n_channels * (filters + numba_kernels.NEIGHBOURS * (n_points + stride)))
