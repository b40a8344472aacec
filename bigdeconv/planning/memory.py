"""Peak-memory model of a worker, a GPU and the driver: named terms, from shapes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bigdeconv.geometry import PRIOR_MARGIN, Triple
from bigdeconv.planning.tuned import (
    CUDA_PROCESS_BYTES,
    FFT_SLABS,
    HEAP_BYTES,
    PREPARING_BYTES,
    PROCESS_BYTES,
    SLAB_BYTES,
)

SAMPLE_REGION = 64
"""Largest edge of a sample region, in voxels."""
SAMPLED_VOXELS = 1e8
"""Largest number of voxels that are sampled of a channel, over all views and regions."""

Terms = tuple[tuple[str, int], ...]
"""Named terms of a sum, in bytes."""


@dataclass(frozen=True, slots=True)
class PriorMemory:
    """Memory of a prior beside the estimate."""

    window_bytes: int
    """Per voxel on which the prior acts."""
    slabs: int = 0
    """Slabs in memory at once."""
    fixed_bytes: int = 0
    """Independent of the block."""
    process_bytes: int = 0
    """Resident memory of its compiler and of the compiled code."""


@dataclass(frozen=True, slots=True)
class Extents:
    """Extents of a block in voxels, z y x."""

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
    """Contents of a block per voxel."""

    n_views: int = 1
    input_itemsize: int = 2
    output_itemsize: int = 2
    prior: PriorMemory | None = None
    threads: int = 1
    """Cores of a worker; they share each slab."""
    process_bytes: int = PROCESS_BYTES
    """Resident memory of the process before any block."""

    @property
    def photon_bytes(self) -> int:
        """Bytes of a voxel in photons: float32, and float64 beside it where the input may be float64."""
        return 12 if self.input_itemsize == 8 else 4


def worker_terms(contents: Contents, block: Extents) -> Terms:
    """Return the terms of a worker that computes on CPU cores."""
    solver = _cpu_solver_terms(contents, block)
    # Each of two threads has a heap.  It keeps the small arrays of the conversion to photons, or gaps between those of a prior's
    # iterations; of large arrays up to twice the largest that it has held.
    kept = 4 * HEAP_BYTES
    if 4 * math.prod(block.read) < HEAP_BYTES:
        kept = max(2 * PREPARING_BYTES * math.prod(block.read), 3 * dict(solver)[_WORK] // 4)
    process = contents.process_bytes + (contents.prior.process_bytes if contents.prior else 0)
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
    """Return the terms of a GPU."""
    # More than on a CPU, because nothing goes slab by slab: the product, the input in the library's layout, and its output.
    spectra = (2 if contents.n_views == 1 else 3) + 2
    solver = _solver_terms(contents, block, spectra * block.spectrum_bytes + 4 * math.prod(block.fft), 0)
    # The FFT library has a work space of its own.
    return (*solver, ("FFT library", block.spectrum_bytes))


def driver_terms(contents: Contents, sampled_voxels: int, sample: Extents, trial: Extents) -> Terms:
    """Return the terms of the driver while it plans and calibrates.

    Parameters
    ----------
    contents : Contents
    sampled_voxels : int
        Voxels of all sample regions and views of a channel.
    sample : Extents
        Largest sample region with its halo, which is restored to choose the output scale.
    trial : Extents
        Window of one view that is restored to measure the cost of a block.
    """
    samples = sampled_voxels * contents.input_itemsize
    # One number per sampled voxel, in pieces and put together.
    estimates = 2 * sampled_voxels * (8 if contents.input_itemsize == 8 else 4)
    single = replace(contents, n_views=1)
    process = contents.process_bytes + (contents.prior.process_bytes if contents.prior else 0)
    return (
        ("process", process),
        (
            "samples, or a trial",
            max(samples + max(estimates, _restoration(contents, sample)), _restoration(single, trial)),
        ),
    )


def _restoration(contents: Contents, window: Extents) -> int:
    """Return the peak of the restoration of a window on CPU cores, without the process."""
    return sum(size for _, size in _cpu_solver_terms(contents, window))


def _cpu_solver_terms(contents: Contents, block: Extents) -> Terms:
    slab_bytes = max(SLAB_BYTES * contents.threads, block.plane_bytes)
    # A single view's spectrum is overwritten step by step.  With several views it stays, beside their sum and the planes of one.
    spectra_bytes = block.spectrum_bytes if contents.n_views == 1 else 2 * block.spectrum_bytes + block.planes_bytes
    return _solver_terms(contents, block, spectra_bytes + FFT_SLABS * slab_bytes, slab_bytes)


def prior_voxels(read: Triple, fft: Triple) -> int:
    """Return the largest number of voxels on which a prior acts, for a data window and its FFT window."""
    return math.prod(min(r + 2 * PRIOR_MARGIN, f) for r, f in zip(read, fft, strict=True))


_WORK = "FFT work, or that of the prior"


def _solver_terms(contents: Contents, block: Extents, transform_bytes: int, slab_bytes: int) -> Terms:
    """Return the terms of the peak of an iteration."""
    n_data = contents.n_views * math.prod(block.read)
    prior = contents.prior or PriorMemory(0)
    # A prior acts after the back-projection of the ratios, which lies in the memory of the spectrum.
    prior_work = block.spectrum_bytes + prior.window_bytes * prior_voxels(block.read, block.fft)
    prior_work += prior.slabs * slab_bytes + prior.fixed_bytes
    return (
        ("photons", n_data * contents.photon_bytes),
        ("weights", n_data * 4),
        # Each was transformed in place and keeps the memory of its spectrum.
        ("estimate, momentum, sensitivity", 3 * block.spectrum_bytes),
        ("OTFs", contents.n_views * block.spectrum_bytes),
        (_WORK, max(transform_bytes, prior_work)),
    )


def _terms_beside(contents: Contents, block: Extents) -> Terms:
    """Return the terms beside the block that is restored: a worker reads the next one and writes the last."""
    n_core = math.prod(block.core)
    return (
        ("next block", contents.n_views * math.prod(block.read) * contents.input_itemsize),
        ("solved core that waits", 4 * n_core),
        # Stored values and, twice as wide, their sums for the next level with the two halves that are added.
        ("last block: core, overlap slabs, levels, codecs", 5 * n_core * contents.output_itemsize),
    )
