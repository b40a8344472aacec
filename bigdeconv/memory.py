"""What a block takes at the most demanding moment, term by term, from shapes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bigdeconv.geometry import PRIOR_MARGIN, Triple

PROCESS_BYTES = 450 * 2**20
"""Resident memory of a worker that has imported torch, Dask and zarr, before any block."""
HEAP_BYTES = 32 * 2**20
"""Up to this size glibc keeps freed arrays in heaps, where the next ones often do not fit; larger ones go back to the system."""
CUDA_PROCESS_BYTES = 3 * 2**30
"""Resident memory of a worker in which a CUDA context is open, before any block."""

Terms = tuple[tuple[str, int], ...]
"""Named parts of a sum, in bytes."""


@dataclass(frozen=True, slots=True)
class PriorMemory:
    """What a prior takes, beside the estimate."""

    window_bytes: int
    """Work per voxel that the prior acts on."""
    fixed_bytes: int = 0
    """Work whatever the block."""
    row_bytes: int = 0
    """What is kept from block to block, per voxel of a row that it acts on."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a block holds per voxel."""

    n_views: int = 1
    input_itemsize: int = 2
    output_itemsize: int = 2
    prior: PriorMemory | None = None

    @property
    def photon_bytes(self) -> int:
        """Bytes of a voxel in photons: float32, and float64 beside it where the input may be that."""
        return 12 if self.input_itemsize == 8 else 4


def worker_terms(contents: Contents, read: Triple, fft: Triple, core: Triple) -> Terms:
    """Return the terms of a worker that computes on CPU cores, for its largest block.

    Parameters
    ----------
    read, fft, core
        Extents in voxels of the data window, its FFT and the core.
    """
    solver = dict(_solver_terms(contents, read, fft, _transform_bytes(contents, fft)))
    kept = 3 * solver[_WORK] // 4 if 4 * math.prod(read) < HEAP_BYTES else 0
    return ("process", PROCESS_BYTES), *solver.items(), ("gaps in heaps", kept), *_terms_beside(contents, read, core)


def host_terms(contents: Contents, read: Triple, core: Triple) -> Terms:
    """Return the terms of a worker that computes on a GPU."""
    photons = contents.n_views * math.prod(read) * (contents.photon_bytes + 5)
    return (
        ("process", CUDA_PROCESS_BYTES),
        ("photons and weights, two blocks", 2 * photons),
        *_terms_beside(contents, read, core),
    )


def device_terms(contents: Contents, read: Triple, fft: Triple) -> Terms:
    """Return the terms of what a block allocates on a GPU."""
    spectrum = _spectrum_bytes(fft)
    # Made in one piece: the product, the transform's input as the library wants it, and its output.
    transforms = _transform_bytes(contents, fft) + 2 * spectrum
    # The library of the transforms takes a work space of its own.
    return (*_solver_terms(contents, read, fft, transforms), ("FFT library", spectrum))


def prior_voxels(read: Triple, fft: Triple) -> int:
    """Return how many voxels a prior acts on at most, for a data window and its FFT window."""
    return math.prod(min(r + 2 * PRIOR_MARGIN, f) for r, f in zip(read, fft, strict=True))


_WORK = "FFT work, or the prior's"


def _solver_terms(contents: Contents, read: Triple, fft: Triple, transform_bytes: int) -> Terms:
    """Return what is in memory at the most demanding moment of an iteration."""
    n_read, real, views = math.prod(read), 4 * math.prod(fft), contents.n_views
    prior = contents.prior or PriorMemory(0)
    prior_work = real + prior.window_bytes * prior_voxels(read, fft) + prior.fixed_bytes
    return (
        ("photons", views * n_read * contents.photon_bytes),
        ("weights", views * n_read * 4),
        ("estimate, momentum, sensitivity", 3 * real),
        ("OTFs", views * _spectrum_bytes(fft)),
        (_WORK, max(transform_bytes, prior_work)),
        ("prior's filters", prior.row_bytes * min(read[2] + 2 * PRIOR_MARGIN, fft[2])),
    )


def _transform_bytes(contents: Contents, fft: Triple) -> int:
    # The spectrum of the estimate, that of its planes once blurred, with several views also the sum of the back-projections; what
    # comes back, and the slabs in which all that is made.
    return (2 if contents.n_views == 1 else 3) * _spectrum_bytes(fft) + 4 * math.prod(fft)


def _terms_beside(contents: Contents, read: Triple, core: Triple) -> Terms:
    """Return what a worker holds beside the block that it restores: it reads the next one and writes the last."""
    n_core = math.prod(core)
    return (
        ("next block", contents.n_views * math.prod(read) * contents.input_itemsize),
        ("solved core that waits", 4 * n_core),
        # The core once more, what is stored of it, its sums to the next level, and the codec's buffers.
        ("last block: core, rims, levels, codecs", n_core * (4 + 2 * contents.output_itemsize + 8)),
    )


def _spectrum_bytes(fft: Triple) -> int:
    return 8 * fft[0] * fft[1] * (fft[2] // 2 + 1)
