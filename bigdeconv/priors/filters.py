"""The filters ``W`` of the learned prior: ``Wᵀ(ψ'(αWx)/α)`` without the many-channel response of a whole volume in memory.

The positions whose taps all lie inside the volume are visited tile by tile, and what comes back is added up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn.functional import conv3d, conv_transpose3d

from bigdeconv.geometry import Box, Triple, triple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from torch import Tensor

CHAIN_BYTES = 256 * 2**20
"""Bytes that the last response of `Chain` may take at a time; it runs on devices with memory of their own."""


@dataclass(frozen=True, slots=True)
class Potential:
    """The potential ``ψ``, by its derivative ``ψ'(t) = sign(t)·max(0, min(μ|t|, β − γ|t|))``, ``γ ≥ 0``.

    Parameters
    ----------
    mu
        Slope of ψ' at 0.
    beta, gamma
        Intercept and slope of its falling branch.
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
        """Return ``ψ'(t)``, overwriting ``t``."""
        knee, end, rising, falling = self.clips
        return t.clamp(-knee, knee).mul_(rising).sub_(t.clamp_(-end, end), alpha=falling)

    def value(self, t: Tensor) -> Tensor:
        """Return ``ψ(t)``, the integral of ``ψ'`` from 0."""
        knee, end, *_ = self.clips
        size = t.abs().clamp_(max=end)
        falling = self.mu * knee**2 / 2 + self.beta * (size - knee) - self.gamma * (size**2 - knee**2) / 2
        return torch.where(size < knee, self.mu * size**2 / 2, falling)


class Filters(Protocol):
    """``W`` at one noise level, with the scalings ``α`` of its channels."""

    def apply(self, x: Tensor, potential: Potential) -> Tensor:
        """Return ``Wᵀ(ψ'(αWx)/α)``, ``z y x``."""
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

    def apply(self, x: Tensor, potential: Potential) -> Tensor:
        """Return ``Wᵀ(ψ'(αWx)/α)``."""
        total = torch.zeros_like(x)
        for slab in self._slabs(x):
            response = potential.derivative_(self._respond(x[slab.slices]))
            for layer in reversed(self._outward):
                response = conv_transpose3d(response, layer)
            total[slab.slices] += response[0]
        return total

    def responses(self, x: Tensor) -> Iterator[Tensor]:
        """Yield ``αWx``, ``channel z y x``, slab by slab."""
        for slab in self._slabs(x):
            yield self._respond(x[slab.slices])

    def _respond(self, part: Tensor) -> Tensor:
        response = part[None]
        for layer in self._inward:
            response = conv3d(response, layer)
        return response

    def _slabs(self, x: Tensor) -> Iterator[Box]:
        valid = triple(n - r for n, r in zip(x.shape, self._reach, strict=True))
        row_bytes = max(valid[2], 1) * self._inward[-1].shape[0] * x.element_size()
        rows = max(self._limit_bytes // row_bytes, 1)
        yield from tiles(valid, self._reach, (max(rows // max(valid[1], 1), 1), rows))


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


def tiles(valid: Triple, beyond: Triple, extent_zy: tuple[int, int]) -> Iterator[Box]:
    """Yield boxes whose valid positions tile all valid positions, rows whole."""
    if min(valid) < 1:
        return
    depth, height = (min(max(e, 1), n) for e, n in zip(extent_zy, valid, strict=False))
    for z, y in product(range(0, valid[0], depth), range(0, valid[1], height)):
        stop = (min(z + depth, valid[0]), min(y + height, valid[1]), valid[2])
        yield Box((z, y, 0), stop).grow((0, 0, 0), beyond)
