"""What a block takes at the most demanding moment, term by term, from shapes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bigdeconv.geometry import PRIOR_MARGIN, Triple

PROCESS_BYTES = 450 * 2**20
"""Resident memory of a worker that has imported torch, Dask and zarr, before any block."""
HEAP_BYTES = 32 * 2**20
"""Up to this size glibc keeps freed arrays in heaps, where the next ones often do not fit; larger ones go back to the system."""
PREPARING_BYTES = 16
"""Bytes that a voxel of one view takes while its count becomes photons: both, masks, and what finds hot voxels."""
CUDA_PROCESS_BYTES = 3 * 2**30
"""Resident memory of a worker in which a CUDA context is open, before any block."""
SLAB_BYTES = 2**19
"""Least part of an array that a CPU core takes at a time; one plane is more where planes are large."""
FFT_SLABS = 5
"""Slabs that the transforms of one slab of planes, and what is done between them, have in memory at once."""

Terms = tuple[tuple[str, int], ...]
"""Named parts of a sum, in bytes."""


@dataclass(frozen=True, slots=True)
class PriorMemory:
    """What a prior takes, beside the estimate."""

    window_bytes: int
    """Work per voxel that the prior acts on."""
    slabs: int = 0
    """Slabs that are in memory at once."""
    fixed_bytes: int = 0
    """Work whatever the block."""
    process_bytes: int = 0
    """Resident memory of its compiler and what that has compiled."""


@dataclass(frozen=True, slots=True)
class Extents:
    """The extents of a block in voxels, z y x."""

    read: Triple
    """Of the data window."""
    fft: Triple
    """Of the data window grown by the PSF's reach and to fast lengths."""
    core: Triple

    @property
    def spectrum_bytes(self) -> int:
        """Bytes of the spectrum of the estimate."""
        z, y, x = self.fft
        return 8 * z * y * (x // 2 + 1)

    @property
    def planes_bytes(self) -> int:
        """Bytes of the spectra of the planes of the data window."""
        return self.spectrum_bytes * self.read[0] // self.fft[0]

    @property
    def plane_bytes(self) -> int:
        """Bytes of one plane of the spectrum, of those along z and y or along y and x; a real plane is no larger."""
        return self.spectrum_bytes // min(self.fft[:2])


@dataclass(frozen=True, slots=True)
class Contents:
    """What a block holds per voxel."""

    n_views: int = 1
    input_itemsize: int = 2
    output_itemsize: int = 2
    prior: PriorMemory | None = None
    threads: int = 1
    """Cores of a worker, which share each slab."""

    @property
    def photon_bytes(self) -> int:
        """Bytes of a voxel in photons: float32, and float64 beside it where the input may be that."""
        return 12 if self.input_itemsize == 8 else 4


def worker_terms(contents: Contents, block: Extents) -> Terms:
    """Return the terms of a worker that computes on CPU cores."""
    slab_bytes = max(SLAB_BYTES * contents.threads, block.plane_bytes)
    # One spectrum becomes all that follows from it.  That of several views stays, beside their sum and the planes of one.
    spectra_bytes = block.spectrum_bytes if contents.n_views == 1 else 2 * block.spectrum_bytes + block.planes_bytes
    solver = _solver_terms(contents, block, spectra_bytes + FFT_SLABS * slab_bytes, slab_bytes)
    # Each of two threads has a heap.  It keeps the small arrays of a window that became photons, or gaps between those of a
    # prior's steps; of large ones up to twice the largest that it has held.
    kept = 4 * HEAP_BYTES
    if 4 * math.prod(block.read) < HEAP_BYTES:
        kept = max(2 * PREPARING_BYTES * math.prod(block.read), 3 * dict(solver)[_WORK] // 4)
    process = PROCESS_BYTES + (contents.prior.process_bytes if contents.prior else 0)
    return ("process", process), *solver, ("kept in heaps", kept), *_terms_beside(contents, block)


def host_terms(contents: Contents, block: Extents) -> Terms:
    """Return the terms of a worker that computes on a GPU."""
    photons = contents.n_views * math.prod(block.read) * (contents.photon_bytes + 5)
    return (
        ("process", CUDA_PROCESS_BYTES),
        ("photons and weights, two blocks", 2 * photons),
        *_terms_beside(contents, block),
    )


def device_terms(contents: Contents, block: Extents) -> Terms:
    """Return the terms of what a block allocates on a GPU."""
    # Beside what a CPU holds: made in one piece, the product, the transform's input as the library wants it, and its output.
    spectra = (2 if contents.n_views == 1 else 3) + 2
    solver = _solver_terms(contents, block, spectra * block.spectrum_bytes + 4 * math.prod(block.fft), 0)
    # The library of the transforms takes a work space of its own.
    return (*solver, ("FFT library", block.spectrum_bytes))


def prior_voxels(read: Triple, fft: Triple) -> int:
    """Return how many voxels a prior acts on at most, for a data window and its FFT window."""
    return math.prod(min(r + 2 * PRIOR_MARGIN, f) for r, f in zip(read, fft, strict=True))


_WORK = "FFT work, or the prior's"


def _solver_terms(contents: Contents, block: Extents, transform_bytes: int, slab_bytes: int) -> Terms:
    """Return what is in memory at the most demanding moment of an iteration."""
    n_data = contents.n_views * math.prod(block.read)
    prior = contents.prior or PriorMemory(0)
    # A prior acts when the ratios have come back, which lie in the spectrum's memory.
    prior_work = block.spectrum_bytes + prior.window_bytes * prior_voxels(block.read, block.fft)
    prior_work += prior.slabs * slab_bytes + prior.fixed_bytes
    return (
        ("photons", n_data * contents.photon_bytes),
        ("weights", n_data * 4),
        # Each came back from a spectrum and keeps its memory.
        ("estimate, momentum, sensitivity", 3 * block.spectrum_bytes),
        ("OTFs", contents.n_views * block.spectrum_bytes),
        (_WORK, max(transform_bytes, prior_work)),
    )


def _terms_beside(contents: Contents, block: Extents) -> Terms:
    """Return what a worker holds beside the block that it restores: it reads the next one and writes the last."""
    n_core = math.prod(block.core)
    return (
        ("next block", contents.n_views * math.prod(block.read) * contents.input_itemsize),
        ("solved core that waits", 4 * n_core),
        # What is stored and, twice as wide, its sums for the next level with the two halves that are added.
        ("last block: core, rims, levels, codecs", 5 * n_core * contents.output_itemsize),
    )
