"""The filters of the learned prior on a GPU: a kernel per convolution, on tensor cores, as exact as float32.

cuDNN pads one to eight channels to tiles of 32 and moves every response several times; these kernels do neither.  Operands in
half precision or TF32 would be faster, but the curvature along the last move is a quotient of small differences: on an H200 their
rounding moved the estimate by 1e-2, and by as much between a block and its neighbour.

Imported only where Triton, which comes with PyTorch for CUDA, is installed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from bigdeconv.numerics.priors import fused_kernels
from bigdeconv.numerics.priors.filters import Potential, SequentialConvolutions, is_fusible
from bigdeconv.planning.tuned import FUSED_POSITIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from bigdeconv.geometry import Triple

MAX_DIFFERENCE = 1e-4
"""Relative difference from float32, in a trial on noise, above which the kernels are not trusted."""
MAX_PROBLEM = 300
"""Characters of a compiler's message that are kept."""
MIN_MATRIX = 16
"""Smallest extent of an operand of a tensor core's product."""
_UNUSED = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A convolution, forward or transposed, with weights as the kernels read them."""

    weights: Tensor
    """``tap×input, output``, padded with zeros; with one channel ``tap, input×output``."""
    n_in: int
    n_out: int
    taps: int
    pad: int
    """0 for a convolution, ``taps − 1`` for a transposed one."""

    @property
    def chunk(self) -> tuple[int, int]:
        """Taps along x in one product, and the extent of the product."""
        taps_x = self.taps if self.n_in < MIN_MATRIX else 1
        return taps_x, max(1 << (taps_x * self.n_in - 1).bit_length(), MIN_MATRIX)

    def out_shape(self, shape: Triple) -> Triple:
        """Return the extents of the output."""
        change = 2 * self.pad - self.taps + 1
        depth, height, width = shape
        return depth + change, height + change, width + change


class FusedConvolutions:
    """The convolutions one after the other, by kernels of their own; interface and parameters of `SequentialConvolutions`.

    Parameters
    ----------
    layers : sequence of Tensor, ``out in z y x``
        Kernels of the convolutions, divided by the norm, float64; `is_fusible` tells which ones work.
    alpha : Tensor, ``channel``
        Scalings.
    dtype : torch.dtype
        float32.
    device : torch.device or str

    Notes
    -----
    A voxel's gradient is the same, to the bit, in every window that holds its taps.  The whole window is processed at once, see
    `fused_bytes`.
    """

    def __init__(
        self, layers: Sequence[Tensor], alpha: Tensor, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        if dtype != torch.float32 or not is_fusible([layer.shape for layer in layers]):
            raise ValueError(f"fused convolutions: got {dtype} and {[tuple(layer.shape) for layer in layers]}")
        column = alpha[:, None, None, None, None]
        inward, outward = [*layers[:-1], layers[-1] * column], [*layers[:-1], layers[-1] / column]
        self._inward = [_packed(layer.permute(2, 3, 4, 1, 0), 0, device) for layer in inward]
        back = [layer.flip(2, 3, 4).permute(2, 3, 4, 0, 1) for layer in reversed(outward)]
        self._outward = [_packed(kernel, kernel.shape[0] - 1, device) for kernel in back]

    def apply(self, x: Tensor, potential: Potential) -> Tensor:
        """Return ``Wᵀ(ψ'(αWx)/α)``, ``z y x``, of a volume ``z y x``."""
        values, shape = x.contiguous(), (x.shape[0], x.shape[1], x.shape[2])
        if min(n - sum(layer.taps - 1 for layer in self._inward) for n in shape) < 1:
            return torch.zeros_like(x)
        *first, last = self._inward
        for layer in first:
            values, shape = _convolved(layer, values, shape)
        values, shape = _convolved(last, values, shape, potential.clips)
        for layer in self._outward:
            values, shape = _convolved(layer, values, shape)
        return values.view(x.shape)


@cache
def problem_here() -> str | None:
    """Return why the kernels cannot be used on the GPU of this process, which is tried once; None where they can.

    Triton needs a C compiler and a cache folder, and not every card is supported.
    """
    try:
        difference = trial_difference("cuda")
    except Exception as error:  # compilers fail in many ways, and torch's convolutions work without one
        return " ".join(str(error).split())[:MAX_PROBLEM] or type(error).__name__
    return None if difference < MAX_DIFFERENCE else f"they are wrong on this GPU, by {difference:.0e}"


def trial_difference(device: str) -> float:
    """Return the relative difference between these filters and `SequentialConvolutions` on a small volume of noise."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 1, 3, 3, 3), (8, 4, 3, 3, 3), (16, 8, 3, 3, 3))
    layers = [
        torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(27 * shape[1]) for shape in shapes
    ]
    layers[0] -= layers[0].mean((2, 3, 4), keepdim=True)
    alpha = torch.linspace(1.0, 3.0, 16, dtype=torch.float64)
    x = torch.rand((9, 10, 11), generator=generator).to(device)
    found, exact = (
        make(layers, alpha, dtype=torch.float32, device=device).apply(x, Potential(3.0, 0.5, 0.8))
        for make in (FusedConvolutions, SequentialConvolutions)
    )
    return float((found - exact).norm() / exact.norm())


def _packed(kernel: Tensor, pad: int, device: torch.device | str) -> _Layer:
    """Return a layer of a kernel ``z y x in out``."""
    taps, n_in, n_out = kernel.shape[0], kernel.shape[3], kernel.shape[4]
    if min(n_in, n_out) == 1:
        weights = kernel.reshape(taps**3, n_in * n_out).to(device, torch.float32).contiguous()
        return _Layer(weights, n_in, n_out, taps, pad)
    taps_x, chunk = _Layer(kernel, n_in, n_out, taps, pad).chunk
    padded = kernel.new_zeros(taps * taps * (taps // taps_x), chunk, max(n_out, MIN_MATRIX))
    padded[:, : taps_x * n_in, :n_out] = kernel.reshape(len(padded), taps_x * n_in, n_out)
    return _Layer(padded.flatten(0, 1).to(device, torch.float32).contiguous(), n_in, n_out, taps, pad)


def _convolved(
    layer: _Layer,
    values: Tensor,
    shape: Triple,
    clips: tuple[float, float, float, float] | None = None,
) -> tuple[Tensor, Triple]:
    """Return the output ``z y x channel`` of a layer, and its extents; with clips, ψ' of it."""
    depth, height, width = out_shape = layer.out_shape(shape)
    out = torch.empty((*out_shape, layer.n_out), dtype=torch.float32, device=values.device)
    grid = (-(-height * width // FUSED_POSITIONS), depth)
    extents = (shape[1], shape[2], shape[0], height, width)
    if min(layer.n_in, layer.n_out) == 1:
        fused_kernels.convolve_one_channel[grid](
            values, layer.weights, out, *extents,
            IN=layer.n_in, OUT=layer.n_out, TAPS=layer.taps, PAD=layer.pad, POSITIONS=FUSED_POSITIONS,
        )  # fmt: skip
    else:
        taps_x, chunk = layer.chunk
        fused_kernels.convolve[grid](
            values, layer.weights, out, *extents, *(clips or _UNUSED),
            IN=layer.n_in, OUT=layer.n_out, COLUMNS=layer.weights.shape[1], TAPS=layer.taps, TAPS_X=taps_x,
            CHUNK=chunk, PAD=layer.pad, POTENTIAL=clips is not None, POSITIONS=FUSED_POSITIONS,
        )  # fmt: skip
    return out, out_shape
