"""Linear convolution with one or several PSFs by FFT, and its exact adjoint.

One axis of the data window ``D``, the estimate window ``E`` and the FFT window ``F`` for a PSF of extent ``P``
with its centre at ``c = P // 2``::

    E   |--P-1-c--|------------- D -------------|--c--|
    F   |------------------ E ------------------------|--- zeros to a fast length ---|

``E = D + P - 1`` is the data window grown by the reach of the PSF: light that reaches the data comes from nowhere else, so
nothing wraps around and nothing outside has to be guessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bigdeconv.geometry import Triple, fast_length, triple

if TYPE_CHECKING:
    from torch import Tensor

AXES = (-3, -2, -1)


class Blur:
    """The forward model ``H`` of all views, without background.

    Parameters
    ----------
    kernels
        PSFs, ``v z y x``, all of one shape, each with its centre at ``shape // 2``.
    data_shape
        Extent of the data window, z y x.

    Notes
    -----
    ``forward`` and ``adjoint`` are each other's adjoint.  The steps that they are made of (``to_fourier``,
    ``forward_view``, ``adjoint_view``, ``from_fourier``) are public so that a solver can go through many views while it
    holds only one view of the data window besides the estimate.
    """

    def __init__(self, kernels: Tensor, data_shape: Triple) -> None:
        psf_shape = triple(kernels.shape[1:])
        self.data_shape = data_shape
        self.estimate_shape = triple(d + p - 1 for d, p in zip(data_shape, psf_shape, strict=True))
        self.fft_shape = triple(fast_length(e) for e in self.estimate_shape)
        lower = (p - 1 - p // 2 for p in psf_shape)
        z, y, x = (slice(lo, lo + d) for lo, d in zip(lower, data_shape, strict=True))
        self.data_slices = (z, y, x)
        # Rolling the kernel by P-1 puts the first valid voxel of the linear convolution at index 0 of the FFT window.
        shifts = [1 - p for p in psf_shape]
        self._otfs = [
            torch.fft.rfftn(torch.roll(_padded(kernel, self.fft_shape), shifts, AXES), dim=AXES) for kernel in kernels
        ]

    @property
    def n_views(self) -> int:
        """Number of views."""
        return len(self._otfs)

    def to_fourier(self, x: Tensor) -> Tensor:
        """Return the spectrum of an estimate on ``E``."""
        return self._transform(x)

    def forward_view(self, spectrum: Tensor, view: int) -> Tensor:
        """Return the blurred estimate on ``D`` as one view sees it; partner of `adjoint_view`."""
        return self._transform_back(spectrum * self._otfs[view], self.data_shape)

    def adjoint_view(self, data: Tensor, view: int) -> Tensor:
        """Return the spectrum of the back-projection of one view given on ``D``; partner of `forward_view`."""
        return self._transform(data).mul_(self._otfs[view].conj())

    def from_fourier(self, spectrum: Tensor) -> Tensor:
        """Return what a spectrum holds on ``E``; partner of `to_fourier`."""
        return self._transform_back(spectrum, self.estimate_shape)

    def _transform(self, x: Tensor) -> Tensor:
        """Transform planes first: those that would be padding are never made."""
        planes = torch.fft.rfft2(x, s=self.fft_shape[1:])
        spectrum: Tensor = torch.fft.fft(planes, n=self.fft_shape[0], dim=0)
        return spectrum

    def _transform_back(self, spectrum: Tensor, shape: Triple) -> Tensor:
        """Transform along z first: planes that nobody reads are left out after it."""
        planes = torch.fft.ifft(spectrum, dim=0)[: shape[0]]
        volume: Tensor = torch.fft.irfft2(planes, s=self.fft_shape[1:])
        return volume[_first(shape)]

    def forward(self, x: Tensor) -> Tensor:
        """Return ``H x``, ``v z y x`` on ``D``, of an estimate on ``E``; partner of `adjoint`."""
        spectrum = self.to_fourier(x)
        return torch.stack([self.forward_view(spectrum, v) for v in range(self.n_views)])

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``Σᵥ Hᵥᵀ yᵥ`` on ``E`` of views ``v z y x`` on ``D``; partner of `forward`."""
        spectrum = self.adjoint_view(y[0], 0)
        for v in range(1, self.n_views):
            spectrum += self.adjoint_view(y[v], v)
        return self.from_fourier(spectrum)


def _first(shape: Triple) -> tuple[slice, slice, slice]:
    return slice(shape[0]), slice(shape[1]), slice(shape[2])


def _padded(kernel: Tensor, shape: Triple) -> Tensor:
    padded = kernel.new_zeros(shape)
    padded[_first(triple(kernel.shape))] = kernel
    return padded
