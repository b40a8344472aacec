"""The filters ``W`` of the learned prior: ``Wᵀ(ψ'(αWx)/α)`` without the many-channel response of a whole volume in memory.

The positions whose taps all lie inside the volume are processed tile by tile, and the results of the tiles are added up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn.functional import conv3d, conv_transpose3d

from bigdeconv.geometry import Box, Triple, triple
from bigdeconv.planning.tuned import RESPONSE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Potential:
    """The potential ``ψ``, by its derivative ``ψ'(t) = sign(t)·max(0, min(μ|t|, β − γ|t|))``, ``γ ≥ 0``.

    Parameters
    ----------
    mu : float
        Slope of ψ' at 0.
    beta, gamma : float
        Intercept and slope of the falling branch of ψ'.

    Examples
    --------
    >>> psi = Potential(mu=10.0, beta=1.0, gamma=0.5)
    >>> psi.derivative_(torch.tensor([-0.05, 0.05, 1.0, 3.0]))
    tensor([-0.5000,  0.5000,  0.5000,  0.0000])
    """

    mu: float
    beta: float
    gamma: float

    @property
    def clips(self) -> tuple[float, float, float, float]:
        """Numbers ``k, e, r, f`` with which ``ψ'(t) = r·clip(t, ±k) − f·clip(t, ±e)``."""
        knee = self.beta / (self.mu + self.gamma)
        end = self.beta / self.gamma if self.gamma > 0 else math.inf
        return knee, end, self.mu + self.gamma, self.gamma

    def derivative_(self, t: Tensor) -> Tensor:
        """Return ``ψ'(t)`` of a tensor of any shape, which is overwritten."""
        knee, end, rising, falling = self.clips
        return t.clamp(-knee, knee).mul_(rising).sub_(t.clamp_(-end, end), alpha=falling)

    def value(self, t: Tensor) -> Tensor:
        """Return ``ψ(t)``, the integral of ``ψ'`` from 0, of a tensor of any shape."""
        knee, end, *_ = self.clips
        size = t.abs().clamp_(max=end)
        falling = self.mu * knee**2 / 2 + self.beta * (size - knee) - self.gamma * (size**2 - knee**2) / 2
        return torch.where(size < knee, self.mu * size**2 / 2, falling)


class Filters(Protocol):
    """``W`` at one noise level, with the scalings ``α`` of its channels."""

    def apply(self, x: Tensor, potential: Potential) -> Tensor:
        """Return ``Wᵀ(ψ'(αWx)/α)``, ``z y x``, of a volume ``z y x``."""
        ...


class SequentialConvolutions:
    """The convolutions one after the other, by torch.

    Parameters
    ----------
    layers : sequence of Tensor, ``out in z y x``
        Kernels of the convolutions, divided by the norm, float64.
    alpha : Tensor, ``channel``
        Scalings.
    dtype, device : torch.dtype, torch.device or str
        Number type and place of the computation.
    limit_bytes : int
        Memory of the last response of a tile; a tile has at least one row.
    """

    def __init__(
        self,
        layers: Sequence[Tensor],
        alpha: Tensor,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        limit_bytes: int = RESPONSE_BYTES,
    ) -> None:
        column = alpha[:, None, None, None, None]
        self._inward = [layer.to(device, dtype) for layer in (*layers[:-1], layers[-1] * column)]
        self._outward = [layer.to(device, dtype) for layer in (*layers[:-1], layers[-1] / column)]
        self._reach = reach(layers)
        self._limit_bytes = limit_bytes

    def apply(self, x: Tensor, potential: Potential) -> Tensor:
        """Return ``Wᵀ(ψ'(αWx)/α)``, ``z y x``, of a volume ``z y x``."""
        total = torch.zeros_like(x)
        for tile in self._tiles(x):
            with _exact_convolutions():
                response = potential.derivative_(self._respond(x[tile.slices]))
                for layer in reversed(self._outward):
                    response = conv_transpose3d(response, layer)
            total[tile.slices] += response[0]
        return total

    def responses(self, x: Tensor) -> Iterator[Tensor]:
        """Yield ``αWx``, ``channel z y x``, tile by tile, of a volume ``z y x``."""
        for tile in self._tiles(x):
            with _exact_convolutions():
                response = self._respond(x[tile.slices])
            yield response

    def _respond(self, part: Tensor) -> Tensor:
        response = part[None]
        for layer in self._inward:
            response = conv3d(response, layer)
        return response

    def _tiles(self, x: Tensor) -> Iterator[Box]:
        valid = triple(n - r for n, r in zip(x.shape, self._reach, strict=True))
        row_bytes = max(valid[2], 1) * self._inward[-1].shape[0] * x.element_size()
        rows = max(self._limit_bytes // row_bytes, 1)
        yield from tiles(valid, self._reach, (max(rows // max(valid[1], 1), 1), rows))


def _exact_convolutions() -> AbstractContextManager[None]:
    """Return a context in which cuDNN multiplies in float32 and always sums in the same order.

    TF32, its default, carries 10 bits of mantissa, and takes twice as long for these few channels.
    """
    exact: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return exact


def reach(layers: Sequence[Tensor] | Sequence[np.ndarray]) -> Triple:
    """Return the taps beyond the first, along z, y and x, of all layers together.

    Parameters
    ----------
    layers : sequence of Tensor or ndarray, ``out in z y x``
        Kernels of the convolutions.

    Examples
    --------
    >>> reach([torch.ones(4, 1, 3, 3, 3), torch.ones(8, 4, 1, 3, 3)])
    (2, 4, 4)
    """
    return triple(sum(layer.shape[a] - 1 for layer in layers) for a in (2, 3, 4))


def is_fusible(shapes: Sequence[Sequence[int]]) -> bool:
    """Tell whether `FusedConvolutions` works for convolutions of these shapes, ``out in z y x``.

    Examples
    --------
    >>> is_fusible([(4, 1, 3, 3, 3), (8, 4, 3, 3, 3), (16, 8, 3, 3, 3)])
    True
    >>> is_fusible([(4, 1, 3, 3, 3), (6, 4, 3, 3, 3)])
    False
    >>> is_fusible([(4, 1, 3, 3, 3), (1, 4, 3, 3, 3)])
    False
    """
    channels = [shape[0] for shape in shapes]
    cubes = all(len(set(shape[2:])) == 1 for shape in shapes)
    return len(shapes) > 1 and shapes[0][1] == 1 and cubes and all(n > 1 and n & (n - 1) == 0 for n in channels)


def fused_bytes(shapes: Sequence[Sequence[int]]) -> int:
    """Return the memory of `FusedConvolutions` per voxel, beside a volume and its gradient, for shapes ``out in z y x``.

    Examples
    --------
    A response of 16 channels beside 8 channels, in float32:

    >>> fused_bytes([(4, 1, 3, 3, 3), (8, 4, 3, 3, 3), (16, 8, 3, 3, 3)])
    96
    """
    channels = [shape[0] for shape in shapes]
    return 4 * max(sum(pair) for pair in pairwise(channels))


def impulse_response(layers: Sequence[Tensor]) -> Tensor:
    """Return the filters of all layers together, up to reflection.

    Parameters
    ----------
    layers : sequence of Tensor, ``out in z y x``
        Kernels of the convolutions.

    Returns
    -------
    Tensor, ``channel z y x``
    """
    taps = reach(layers)
    impulse = layers[0].new_zeros(1, *(2 * r + 1 for r in taps))
    impulse[0, taps[0], taps[1], taps[2]] = 1
    for layer in layers:
        impulse = conv3d(impulse, layer)
    return impulse


def tiles(valid: Triple, beyond: Triple, extent_zy: tuple[int, int]) -> Iterator[Box]:
    """Yield boxes whose valid positions tile all valid positions of a volume; rows are not cut.

    Parameters
    ----------
    valid : tuple of int
        Number of positions whose taps all lie inside, z y x.
    beyond : tuple of int
        Taps beyond the first, z y x.
    extent_zy : tuple of int
        Valid positions of a tile along z and y.

    Examples
    --------
    >>> [box.shape for box in tiles((3, 4, 5), (2, 2, 2), (2, 4))]
    [(4, 6, 7), (3, 6, 7)]
    """
    if min(valid) < 1:
        return
    depth, height = (min(max(e, 1), n) for e, n in zip(extent_zy, valid, strict=False))
    for z, y in product(range(0, valid[0], depth), range(0, valid[1], height)):
        stop = (min(z + depth, valid[0]), min(y + height, valid[1]), valid[2])
        yield Box((z, y, 0), stop).grow((0, 0, 0), beyond)
