"""Linear convolution with one or several PSFs by FFT, and its exact adjoint.

One axis of the data window ``D``, the estimate window ``E`` and the FFT window ``F`` for a PSF of extent ``P``
with its centre at ``c = P // 2``::

    E   |--P-1-c--|------------- D -------------|--c--|
    F   |------------------ E ------------------------|--- zeros to a fast length ---|

``E = D + P - 1`` is the data window grown by the reach of the PSF.  All light that reaches the data comes from it, so the FFT
wraps nothing into the data and no value outside has to be assumed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bigdeconv.geometry import Triple, fast_length, triple
from bigdeconv.planning.tuned import SLAB_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

AXES = (-3, -2, -1)


class Blur:
    """The forward model ``H`` of all views, without background.

    Parameters
    ----------
    psf_views : Tensor, ``v z y x``
        PSF of each view, all of one shape, each with its centre at ``shape // 2``.
    data_shape : tuple of int
        Extent of the data window, z y x.
    slab_bytes : int, optional
        Size of the part of a spectrum that is computed at a time; by default `SLAB_BYTES` per thread on a CPU, and the whole
        spectrum elsewhere.

    Notes
    -----
    ``forward`` and ``adjoint`` are adjoint to each other.  Planes are transformed before the axis z on the way to a spectrum and
    after it on the way back, so that planes of padding, and planes that are not read, are never computed.  Both work slab by
    slab, and in place where the former values are no longer needed.

    Examples
    --------
    >>> blur = Blur(torch.full((1, 1, 1, 3), 1 / 3), (1, 1, 4))
    >>> blur.estimate_shape, blur.data_slices[2]
    ((1, 1, 6), slice(1, 5, None))
    >>> blur.forward(torch.ones(blur.estimate_shape)).round(decimals=4)
    tensor([[[[1., 1., 1., 1.]]]])
    """

    def __init__(self, psf_views: Tensor, data_shape: Triple, *, slab_bytes: int | None = None) -> None:
        psf_shape = triple(psf_views.shape[1:])
        self.data_shape = data_shape
        self.estimate_shape = triple(d + p - 1 for d, p in zip(data_shape, psf_shape, strict=True))
        self.fft_shape = triple(fast_length(e) for e in self.estimate_shape)
        lower = (p - 1 - p // 2 for p in psf_shape)
        z, y, x = (slice(lo, lo + d) for lo, d in zip(lower, data_shape, strict=True))
        self.data_slices = (z, y, x)
        if slab_bytes is None:
            slab_bytes = SLAB_BYTES * torch.get_num_threads() if psf_views.device.type == "cpu" else 2**62
        row_bytes = 2 * psf_views.element_size() * (self.fft_shape[2] // 2 + 1)
        self._planes_at_once = max(slab_bytes // (row_bytes * self.fft_shape[1]), 1)
        self._rows_at_once = max(slab_bytes // (row_bytes * self.fft_shape[0]), 1)
        # Rolling the PSF by P-1 puts the first valid voxel of the linear convolution at index 0 of the FFT window.
        shifts = [1 - p for p in psf_shape]
        self.max_psf_sum = float(psf_views.flatten(1).sum(1).max())
        """Greatest sum of the PSF of a view: no voxel of ``H1`` exceeds it."""
        half = (*self.fft_shape[:2], self.fft_shape[2] // 2 + 1)
        # One allocation: many small ones would leave the gaps of their temporary arrays between them.
        self._otfs = torch.empty((len(psf_views), *half), dtype=psf_views.dtype.to_complex(), device=psf_views.device)
        for otf, psf in zip(self._otfs, psf_views, strict=True):
            otf.copy_(self._transform(torch.roll(_padded(psf, self.fft_shape), shifts, AXES)))

    @property
    def n_views(self) -> int:
        """Number of views."""
        return len(self._otfs)

    def views(self, x: Tensor) -> Iterator[Tensor]:
        """Yield ``H_v x`` on ``D``, view by view.

        Parameters
        ----------
        x : Tensor, ``z y x``
            Estimate on ``E``.
        """
        spectrum = self._transform(x)
        for otf in self._otfs:
            yield self._volume(self._blurred(spectrum, otf), self.data_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``H x``; adjoint of `adjoint`.

        Parameters
        ----------
        x : Tensor, ``z y x``
            Estimate on ``E``.

        Returns
        -------
        Tensor, ``v z y x``
            Views on ``D``.
        """
        return torch.stack(list(self.views(x)))

    def adjoint(self, y: Iterable[Tensor]) -> Tensor:
        """Return ``Σ_v H_vᵀ y_v``; adjoint of `forward`.

        Parameters
        ----------
        y : iterable of Tensor, ``z y x``
            Views on ``D``; one is in memory at a time.

        Returns
        -------
        Tensor, ``z y x``
            On ``E``.
        """
        total = None
        for view, otf in zip(y, self._otfs, strict=True):
            total = self._back_projected(self._planes(view), otf, total, total)
        assert total is not None
        return self._estimate(total)

    def forward_then_adjoint(self, x: Tensor, between: Callable[[int, slice, Tensor], Tensor]) -> Tensor:
        """Return ``Σ_v H_vᵀ f_v(H_v x)``, with one view in memory at a time.

        Parameters
        ----------
        x : Tensor, ``z y x``
            Estimate on ``E``.
        between : callable
            ``f``, elementwise.  Its arguments are the number of a view, a range of planes of ``D`` and these planes of
            ``H_v x``, which it may overwrite.

        Returns
        -------
        Tensor, ``z y x``
            On ``E``.
        """
        spectrum = self._transform(x)
        total = None
        # A single view needs the spectrum only once: all later results take its memory.
        spare = spectrum if self.n_views == 1 else None
        for v, otf in enumerate(self._otfs):
            blurred = self._blurred(spectrum, otf, None if spare is None else spare[: self.data_shape[0]])
            planes = self._changed(blurred, v, between)
            total = self._back_projected(planes, otf, total, total if spare is None else spare)
            del blurred, planes
        assert total is not None
        del spectrum, spare
        return self._estimate(total)

    def _transform(self, x: Tensor) -> Tensor:
        depth, height, width = self.fft_shape
        out = None
        if self._rows_at_once < height:
            out = torch.empty((depth, height, width // 2 + 1), dtype=x.dtype.to_complex(), device=x.device)
        planes = self._planes(x, None if out is None else out[: len(x)])
        return self._by_rows(lambda y: torch.fft.fft(planes[:, y], n=depth, dim=0), out)

    def _planes(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the spectra of the planes of a volume."""
        return self._by_planes(lambda z: torch.fft.rfft2(x[z], s=self.fft_shape[1:]), len(x), out)

    def _blurred(self, spectrum: Tensor, otf: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the spectra of the planes of ``H_v x`` on ``D``."""
        depth = self.data_shape[0]
        return self._by_rows(lambda y: torch.fft.ifft(spectrum[:, y] * otf[:, y], dim=0)[:depth], out)

    def _changed(self, planes: Tensor, view: int, between: Callable[[int, slice, Tensor], Tensor]) -> Tensor:
        """Return the spectra of the planes of ``f_v(H_v x)``, in the memory of those of ``H_v x``."""
        _, height, width = self.data_shape

        def change(z: slice) -> Tensor:
            model = torch.fft.irfft2(planes[z], s=self.fft_shape[1:])[:, :height, :width]
            spectra: Tensor = torch.fft.rfft2(between(view, z, model), s=self.fft_shape[1:])
            return spectra

        return self._by_planes(change, len(planes), planes)

    def _back_projected(self, planes: Tensor, otf: Tensor, total: Tensor | None, out: Tensor | None) -> Tensor:
        """Return ``total`` and the spectrum of a back-projection, in the memory of ``out`` where it is given."""

        def add(y: slice) -> Tensor:
            back: Tensor = torch.fft.fft(planes[:, y], n=self.fft_shape[0], dim=0).mul_(otf[:, y].conj())
            return back if total is None else back.add_(total[:, y])

        return self._by_rows(add, out)

    def _estimate(self, spectrum: Tensor) -> Tensor:
        """Return the volume on ``E`` of a spectrum, which is overwritten."""
        depth = self.estimate_shape[0]
        planes = self._by_rows(lambda y: torch.fft.ifft(spectrum[:, y], dim=0)[:depth], spectrum[:depth])
        return self._volume(planes, self.estimate_shape)

    def _volume(self, planes: Tensor, shape: Triple) -> Tensor:
        """Return the volume whose planes have these spectra, in the memory of the spectra where it is computed slab by slab."""
        _, height, width = shape
        out = None
        if self._planes_at_once < len(planes):
            out = torch.view_as_real(planes).flatten(2)[:, :height, :width]
        return self._by_planes(
            lambda z: torch.fft.irfft2(planes[z], s=self.fft_shape[1:])[:, :height, :width], len(planes), out
        )

    def _by_planes(self, make: Callable[[slice], Tensor], depth: int, out: Tensor | None = None) -> Tensor:
        return _joined(make, depth, self._planes_at_once, 0, out)

    def _by_rows(self, make: Callable[[slice], Tensor], out: Tensor | None = None) -> Tensor:
        return _joined(make, self.fft_shape[1], self._rows_at_once, 1, out)


def _joined(make: Callable[[slice], Tensor], extent: int, step: int, axis: int, out: Tensor | None) -> Tensor:
    """Return slabs joined along an axis, in the memory of ``out`` where it is given; a single slab is returned uncopied."""
    if step >= extent:
        return make(slice(None))
    for start in range(0, extent, step):
        slab = make(slice(start, min(start + step, extent)))
        if out is None:
            out = slab.new_empty((*slab.shape[:axis], extent, *slab.shape[axis + 1 :]))
        out.narrow(axis, start, slab.shape[axis]).copy_(slab)
    assert out is not None
    return out


def _first(shape: Triple) -> tuple[slice, slice, slice]:
    return slice(shape[0]), slice(shape[1]), slice(shape[2])


def _padded(psf: Tensor, shape: Triple) -> Tensor:
    padded = psf.new_zeros(shape)
    padded[_first(triple(psf.shape))] = psf
    return padded
