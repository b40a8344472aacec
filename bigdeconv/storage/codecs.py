"""Compression of the output's arrays, and its cost."""

from __future__ import annotations

import time
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore


def compressors(zarr_format: Literal[2, 3]) -> Any:
    """Return the compressors of the output's arrays, in the form that ``zarr.create_array`` expects for a zarr format."""
    # Bit shuffling wrote noisy 16-bit data nearly twice as fast as byte shuffling, for files 4 to 8 % larger.
    if zarr_format == 2:
        return {"id": "blosc", "cname": "zstd", "clevel": 3, "shuffle": 2, "blocksize": 0}
    # Blosc keeps no checksum: without the last codec a flipped bit is read back as data.
    return [BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()]


def compressed_share(values: np.ndarray) -> float:
    """Return the bytes of some voxels in chunks of an output over those in memory.

    Examples
    --------
    >>> compressed_share(np.zeros((64, 64, 64), np.uint16)) < 0.01
    True
    """
    store = MemoryStore()
    chunks = tuple(min(n, 64) for n in values.shape)
    array = zarr.create_array(store, shape=values.shape, chunks=chunks, dtype=values.dtype, compressors=compressors(3))
    array[...] = values
    return float(array.nbytes_stored() / values.nbytes)


def seconds_per_voxel(edge: int = 64) -> tuple[float, float]:
    """Measure the CPU time of decoding and encoding noisy 16-bit chunks with the output's codecs, zarr's own part included.

    Parameters
    ----------
    edge : int
        Edge of the chunks in voxels.

    Returns
    -------
    tuple of float
        Seconds per voxel of decoding and of encoding, the lesser of two measurements each.

    Examples
    --------
    >>> decode, encode = seconds_per_voxel(edge=8)
    >>> decode >= 0 and encode >= 0
    True
    """
    voxels = 4 * edge**3
    data = np.random.default_rng(0).poisson(100.0, (4 * edge, edge, edge)).astype(np.uint16)
    array = zarr.create_array(
        MemoryStore(), shape=data.shape, chunks=(edge,) * 3, dtype=data.dtype, compressors=compressors(3)
    )
    decode, encode = [], []
    for _ in range(2):
        started = time.process_time()
        array[...] = data
        between = time.process_time()
        array[...]
        encode.append(between - started)
        decode.append(time.process_time() - between)
    return min(decode) / voxels, min(encode) / voxels
