"""Kernels of `fused_convolutions`, compiled by Triton for the GPU at hand.

Volumes lie in memory as ``z y x channel``.  A program computes some neighbouring positions of one plane of an output, and gathers
every tap of theirs itself: no order of sums depends on where a block is cut, and no two programs write to one place.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def convolve(
    source,
    weights,
    out,
    source_height,
    source_width,
    source_depth,
    height,
    width,
    knee,
    end,
    rising,
    falling,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    TAPS_X: tl.constexpr,
    CHUNK: tl.constexpr,
    PAD: tl.constexpr,
    POTENTIAL: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """``out[z, y, x, o] = Σ source[z + dz − PAD, y + dy − PAD, x + dx − PAD, i] · weights[(dz, dy, dx, i), o]``.

    Values of `TAPS_X` neighbouring taps lie side by side in the source and are one operand of a product of small matrices.  Each
    operand is split in two numbers of TF32: the products are nearly those of float32.  With `POTENTIAL` the result is ``ψ'`` of
    the sum.
    """
    z = tl.program_id(1)
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    inside = position < height * width
    y, x = position // width, position % width
    k = tl.arange(0, CHUNK)
    column = tl.arange(0, COLUMNS)
    used = k < TAPS_X * IN
    total = tl.zeros((POSITIONS, COLUMNS), tl.float32)
    for dz in tl.static_range(TAPS):
        plane = z + dz - PAD
        # 64 bits only here: within a plane, 32 are enough.
        base = source + plane.to(tl.int64) * source_height * source_width * IN
        in_volume = (plane >= 0) & (plane < source_depth)
        for dy in tl.static_range(TAPS):
            row = y + dy - PAD
            for dx in tl.static_range(0, TAPS, TAPS_X):
                first = x + dx - PAD
                at = (row * source_width + first) * IN
                valid = inside[:, None] & used[None, :]
                if PAD > 0:
                    tap = first[:, None] + (k // IN)[None, :]
                    valid = valid & in_volume & ((row >= 0) & (row < source_height))[:, None]
                    valid = valid & (tap >= 0) & (tap < source_width)
                values = tl.load(base + at[:, None] + k[None, :], mask=valid, other=0.0)
                chunk = (dz * TAPS + dy) * (TAPS // TAPS_X) + dx // TAPS_X
                matrix = tl.load(weights + (chunk * CHUNK + k)[:, None] * COLUMNS + column[None, :])
                total = tl.dot(values, matrix, total, input_precision="tf32x3")
    if POTENTIAL:
        total = rising * tl.minimum(tl.maximum(total, -knee), knee) - falling * tl.minimum(tl.maximum(total, -end), end)
    target = out + z.to(tl.int64) * height * width * OUT + position[:, None] * OUT + column[None, :]
    tl.store(target, total, mask=inside[:, None] & (column < OUT)[None, :])


@triton.jit
def convolve_one_channel(
    source,
    weights,
    out,
    source_height,
    source_width,
    source_depth,
    height,
    width,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    TAPS: tl.constexpr,
    PAD: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Compute the same as `convolve`, without potential and matrices, where the source or the output has one channel."""
    z = tl.program_id(1)
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    inside = position < height * width
    y, x = position // width, position % width
    i, o = tl.arange(0, IN), tl.arange(0, OUT)
    WIDE: tl.constexpr = IN * OUT
    channel = tl.arange(0, WIDE)
    total = tl.zeros((POSITIONS, WIDE), tl.float32)
    for dz in tl.static_range(TAPS):
        plane = z + dz - PAD
        base = source + plane.to(tl.int64) * source_height * source_width * IN
        in_volume = (plane >= 0) & (plane < source_depth)
        for dy in tl.static_range(TAPS):
            row = y + dy - PAD
            for dx in tl.static_range(TAPS):
                tap = x + dx - PAD
                valid = inside
                if PAD > 0:
                    valid = valid & in_volume & (row >= 0) & (row < source_height) & (tap >= 0) & (tap < source_width)
                at = (row * source_width + tap) * IN
                values = tl.load(base + at[:, None] + i[None, :], mask=valid[:, None], other=0.0)
                matrix = tl.load(weights + ((dz * TAPS + dy) * TAPS + dx) * WIDE + channel)
                total += values * matrix[None, :]
    target = out + z.to(tl.int64) * height * width * OUT + position[:, None] * OUT + o[None, :]
    if IN > 1:
        tl.store(target, tl.sum(total, 1)[:, None], mask=inside[:, None])
    else:
        tl.store(target, total, mask=inside[:, None])
