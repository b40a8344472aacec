"""The filters ``W`` of the learned prior: ``Wᵀ f(Wx)`` without the many-channel response of a whole volume in memory.

Both ways of computing it visit the positions whose taps all lie inside the volume, part by part, and add up what comes back.
`Chain` runs the small convolutions one after the other, as they are written down.  `Rows` is several times faster on a CPU:

* The chain of linear layers is one filter per channel, some 7×7×7 taps wide.
* Along x it becomes a product per frequency: 343 taps turn into 49 complex ones.  A row is transformed whole, so nothing is
  wasted: what wraps around lies at positions that do not count.
* What is left is, per frequency, a matrix of ``channels × taps`` times one of ``taps × positions``.  Rows shifted by each tap
  in y are laid side by side once per tile; the taps in z are then a window on it, and nothing is gathered any more.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import product
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn.functional import conv3d, conv_transpose3d

from bigdeconv.geometry import Box, Triple, even_fast_length, triple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from torch import Tensor

CHAIN_BYTES = 256 * 2**20
"""Bytes that the last response of `Chain` may take at a time; it runs on devices with memory of their own."""
STEP_VOXELS = 8192
"""Voxels of rows that `Rows` takes in one step: with `GROUP` channels they fill a core's cache."""
GROUP = 32
"""Channels that `Rows` takes in one step."""
DEPTH = 24
"""Planes of a tile of `Rows`."""
_KEPT = 4
"""Lengths of rows whose spectra `Rows` keeps: inner and outer blocks of a volume."""


class Filters(Protocol):
    """``W`` at one noise level, with the scalings ``α`` of its channels."""

    def apply(self, x: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``Wᵀ(f(αWx)/α)``, ``z y x``; ``through`` is ``f``, elementwise, and may overwrite its argument."""
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


class Rows:
    """The whole chain as one filter per channel, by matrix products between the spectra of rows.

    Parameters
    ----------
    layers
        Kernels ``out in z y x`` of the chain, divided by the norm, float64.
    alpha
        Scaling per channel.
    dtype, device
        Where and how to compute.
    step_voxels, depth
        Size of a tile: rows of one plane in a step, and planes.
    """

    def __init__(
        self,
        layers: Sequence[Tensor],
        alpha: Tensor,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        step_voxels: int = STEP_VOXELS,
        depth: int = DEPTH,
    ) -> None:
        self._kernels = impulse_response(layers).flip(1, 2, 3)
        self._alpha = alpha
        self._reach = reach(layers)
        self._complex = torch.complex(torch.zeros(0, dtype=dtype), torch.zeros(0, dtype=dtype)).dtype
        self._device = device
        self._step_voxels, self._depth = step_voxels, depth
        self._spectra: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()
        self._lock = Lock()

    def apply(self, x: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``Wᵀ(f(αWx)/α)``."""
        total = torch.zeros_like(x)
        for tile in self._tiles(x):
            total[tile.slices] += self._apply_tile(x[tile.slices], through)
        return total

    def responses(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield groups of channels, rows of one plane at a time."""
        for tile in self._tiles(x):
            shifted, length = self._shifted_rows(x[tile.slices])
            inward, _ = self._filter_spectra(length)
            for channels, z in self._steps(shifted):
                yield channels, self._respond(inward[:, channels], shifted, z, length)[:, : x.shape[2] - self._reach[2]]

    def _apply_tile(self, x: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
        shifted, length = self._shifted_rows(x)
        inward, outward = self._filter_spectra(length)
        back = torch.zeros_like(shifted)
        for channels, z in self._steps(shifted):
            response = self._respond(inward[:, channels], shifted, z, length)
            response[:, x.shape[2] - self._reach[2] :] = 0
            spectrum = torch.fft.rfft(through(response))
            window = self._window(back, z)
            by_frequency = spectrum.t().contiguous().view(len(spectrum.t()), -1, shifted.shape[3])
            window += torch.bmm(outward[:, :, channels], by_frequency).view_as(window)
        rows = torch.zeros(shifted.shape[0], x.shape[0], x.shape[1], dtype=back.dtype, device=back.device)
        n_rows = shifted.shape[3]
        for dy in range(shifted.shape[2]):
            rows[:, :, dy : dy + n_rows] += back[:, :, dy]
        total: Tensor = torch.fft.irfft(rows.permute(1, 2, 0), n=length)
        return total[..., : x.shape[2]]

    def _shifted_rows(self, x: Tensor) -> tuple[Tensor, int]:
        """Return the spectra of all rows as ``frequency z dy y``, each shifted by every tap in y, and the row's length."""
        length = even_fast_length(x.shape[2])
        spectrum = torch.fft.rfft(x, n=length).permute(2, 0, 1)
        return spectrum.unfold(2, x.shape[1] - self._reach[1], 1).contiguous(), length

    def _respond(self, inward: Tensor, shifted: Tensor, z: int, length: int) -> Tensor:
        """Return some channels of ``αWx`` at the rows of plane ``z``, ``channel·y x``; the end of each row wraps around."""
        taps = self._window(shifted, z).view(len(shifted), -1, shifted.shape[3])
        by_frequency = torch.bmm(inward, taps).view(len(shifted), -1)
        response: Tensor = torch.fft.irfft(by_frequency.t().contiguous(), n=length)
        return response

    def _window(self, shifted: Tensor, z: int) -> Tensor:
        return shifted[:, z : z + self._reach[0] + 1]

    def _steps(self, shifted: Tensor) -> Iterator[tuple[slice, int]]:
        """Yield groups of channels and planes: a group's spectra stay in the cache while the planes go by."""
        n_channels = len(self._kernels)
        for c in range(0, n_channels, GROUP):
            for z in range(shifted.shape[1] - self._reach[0]):
                yield slice(c, min(c + GROUP, n_channels)), z

    def _filter_spectra(self, length: int) -> tuple[Tensor, Tensor]:
        """Return the filters for rows of a length: ``frequency channel tap`` with α, ``frequency tap channel`` with 1/α."""
        with self._lock:  # workers may solve several blocks with one prior
            if length not in self._spectra:
                self._spectra[length] = self._make_spectra(length)
                while len(self._spectra) > _KEPT:
                    self._spectra.popitem(last=False)
            self._spectra.move_to_end(length)
            return self._spectra[length]

    def _make_spectra(self, length: int) -> tuple[Tensor, Tensor]:
        spectrum = torch.fft.rfft(self._kernels, n=length).flatten(1, 2).permute(2, 0, 1)
        column = self._alpha[:, None]
        inward = (spectrum.conj() * column).resolve_conj()
        outward = (spectrum / column).transpose(1, 2)
        return inward.to(self._device, self._complex).contiguous(), outward.to(self._device, self._complex).contiguous()

    def _tiles(self, x: Tensor) -> Iterator[Box]:
        valid = triple(n - r for n, r in zip(x.shape, self._reach, strict=True))
        height = max(self._step_voxels // even_fast_length(x.shape[2]), 1)
        yield from _tiles(valid, self._reach, (self._depth, height))


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


def work_bytes(layers: Sequence[Tensor] | Sequence[np.ndarray]) -> tuple[int, int]:
    """Return the memory in bytes that `Rows` takes in float32 beside its result: for its tiles, and per voxel of a row.

    The former holds for rows of 16 to `STEP_VOXELS` voxels.
    """
    n_channels, (rz, ry, _) = layers[-1].shape[0], reach(layers)
    frequencies = STEP_VOXELS // 2 + STEP_VOXELS // 16
    tile = 3 * (DEPTH + rz) * (ry + 1) + 4 * min(n_channels, GROUP) + (rz + 1) * (ry + 1)
    spectra = 2 * n_channels * (rz + 1) * (ry + 1)
    return 8 * frequencies * tile, 4 * spectra * _KEPT


def _tiles(valid: Triple, beyond: Triple, extent_zy: tuple[int, int]) -> Iterator[Box]:
    """Yield boxes whose valid positions tile all valid positions, rows whole."""
    if min(valid) < 1:
        return
    depth, height = (min(e, n) for e, n in zip(extent_zy, valid, strict=False))
    for z, y in product(range(0, valid[0], depth), range(0, valid[1], height)):
        stop = (min(z + depth, valid[0]), min(y + height, valid[1]), valid[2])
        yield Box((z, y, 0), stop).grow((0, 0, 0), beyond)
