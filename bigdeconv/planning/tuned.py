"""Constants that were measured on one kind of machine: Intel Xeon with AVX-512, 2 cores, glibc 2.36, in November 2026.

They decide memory promised and speed, never a result beyond rounding.  The benchmarks named beside them measure them again.
"""

from __future__ import annotations

# glibc's allocator and the processes, `tests/benchmarks/memory.py`.
PROCESS_BYTES = 450 * 2**20
"""Resident memory of a worker that has imported torch (built for CPUs), Dask and zarr, before any block."""
CUDA_BUILD_BYTES = 300 * 2**20
"""Resident memory that a torch built for CUDA adds to a process, without a GPU too (torch 2.13 with CUDA 13.0: 280 MiB)."""
CUDA_PROCESS_BYTES = 3 * 2**30
"""Resident memory of a worker with an open CUDA context, before any block; not measured yet."""
COMPILER_BYTES = 200 * 2**20
"""Resident memory of Numba and what it has compiled; 150 MiB of it with Numba 0.68."""
HEAP_BYTES = 32 * 2**20
"""Size up to which glibc keeps freed arrays in heaps, where the next ones often do not fit; larger ones go back to the system."""
PREPARING_BYTES = 16
"""Bytes per voxel of a view while counts become photons: counts, photons, masks and the search for hot pixels."""

# Caches, ``python -m tests.benchmarks``.
SLAB_BYTES = 2**19
"""Part of an array that a CPU core takes at a time, so that it stays in the cache; a single plane may be larger."""
FFT_SLABS = 5
"""Slabs in memory at once while a slab of planes is transformed."""
TILE_SEGMENTS = 240
"""Segments of a plane of a tile of the learned prior, if that is enough for a row."""
TILE_DEPTH = 24
"""Planes of a tile."""
MAX_TILES = 16
"""Tiles at a time, one per thread; more cores of a worker are left to the rest of the iteration."""
RESPONSE_BYTES = 256 * 2**20
"""Bytes that the last response of the sequential convolutions takes at a time."""
FUSED_POSITIONS = 128
"""Neighbouring voxels that one program of the fused convolutions computes on a GPU; on an H200 in November 2026, with operands in
half precision, 64 took 0.43 and 128 0.36 ns per voxel and gradient."""

# Registers: elements of a vector, and vectors per output of the compiled kernel.
WIDE_VECTORS = (16, 3)
"""With AVX-512."""
NARROW_VECTORS = (8, 1)
"""Elsewhere."""
