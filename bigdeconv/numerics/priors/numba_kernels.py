"""The learned prior between its transforms: products of small matrices with rows of a volume, compiled by Numba.

A matrix of filters times the windows of a volume is a product of matrices, but BLAS needs the rows of every window side by
side, and copying each row for each tap takes longer than the product.  Here rows are read in place.  The sums of a few outputs
at some tens of neighbouring segments stay in registers while all taps are added up, as in the core of any BLAS, and the values
computed from them stay in the cache until they have been added to the result.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from bigdeconv.planning.tuned import NARROW_VECTORS, WIDE_VECTORS

if TYPE_CHECKING:
    from collections.abc import Callable


def _has_wide_vectors() -> bool:
    try:
        return bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
    except RuntimeError:  # LLVM does not know the features of every processor
        return False


_LANES, _VECTORS = WIDE_VECTORS if _has_wide_vectors() else NARROW_VECTORS
"""Elements of a vector, and vectors per output: in float32 up to 9 outputs and their factors fit the registers."""
NEIGHBOURS = _LANES * _VECTORS
"""Segments of a plane that are processed at a time."""
STRIDE = 18
"""Positions of a segment."""
CHANNELS, POINTS = 8, 7
"""The numbers of channels and of points are multiples of these."""
_TAPS = 7
"""Taps in y that the adjoint processes at a time; remaining ones are processed one by one."""


def _sums(n_outputs: int, *, add: bool = False) -> Callable[..., None]:
    """Return a function that sets ``out[o, i]`` to ``Σ_ab weights[o, a, b] source[a, b, i]``, or adds that, for all ``i``.

    The index ``i`` counts `NEIGHBOURS` segments.  The arguments of the function are the three arrays, each from its first element
    on; the strides of ``o`` in the output and in the weights; the number of ``a`` and its strides in the source and in the
    weights; the same of ``b``.  Strides count elements.
    """

    @intrinsic
    def sums(_: Any, out: Any, source: Any, weights: Any, *strides: Any) -> Any:
        return types.void(out, source, weights, types.StarArgTuple(strides)), generate

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        *arrays, strides = arguments
        out, source, weights = (
            context.make_array(kind)(context, builder, array).data
            for kind, array in zip(signature.args, arrays, strict=False)
        )
        out_o, weights_o, n_a, source_a, weights_a, n_b, source_b, weights_b = cgutils.unpack_tuple(builder, strides)
        index, real = context.get_value_type(types.intp), context.get_value_type(signature.args[0].dtype)
        vector = ir.VectorType(real, _LANES)
        # LLVM's intrinsic fuses only where the processor can; elsewhere ``fma`` would become a call for every element.
        kind = ir.FunctionType(vector, [vector] * 3)
        bits = 8 * real.get_abi_size(context.target_data)
        multiply_add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{_LANES}f{bits}")

        # LLVM keeps the totals in registers.
        totals = [[cgutils.alloca_once(builder, vector) for _ in range(_VECTORS)] for _ in range(n_outputs)]
        for total in (t for row in totals for t in row):
            builder.store(vector([0.0] * _LANES), total)
        with cgutils.for_range(builder, n_a) as a, cgutils.for_range(builder, n_b) as b:
            first = _element(builder, source, (a.index, source_a), (b.index, source_b))
            values = [_load(builder, pointer) for pointer in _vectors(builder, first, vector)]
            for o, row in enumerate(totals):
                tap = _element(builder, weights, (index(o), weights_o), (a.index, weights_a), (b.index, weights_b))
                weight = _broadcast(builder, builder.load(tap), vector)
                for total, value in zip(row, values, strict=True):
                    builder.store(builder.call(multiply_add, [weight, value, builder.load(total)]), total)
        for o, row in enumerate(totals):
            pointers = _vectors(builder, _element(builder, out, (index(o), out_o)), vector)
            for total, pointer in zip(row, pointers, strict=True):
                value = builder.load(total)
                builder.store(builder.fadd(_load(builder, pointer), value) if add else value, pointer, align=4)
        return context.get_dummy_value()

    return sums


def _element(builder: ir.IRBuilder, array: ir.Value, *steps: tuple[ir.Value, ir.Value]) -> ir.Value:
    """Return a pointer to an element; each step is a number and the stride that it counts, in elements."""
    products = [builder.mul(count, stride) for count, stride in steps]
    return builder.gep(array, [reduce(builder.add, products)])


def _vectors(builder: ir.IRBuilder, first: ir.Value, vector: ir.VectorType) -> list[ir.Value]:
    """Return pointers to consecutive vectors."""
    pointers = [builder.gep(first, [ir.IntType(64)(_LANES * v)]) for v in range(_VECTORS)]
    return [builder.bitcast(pointer, vector.as_pointer()) for pointer in pointers]


def _load(builder: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
    return builder.load(pointer, align=4)  # a vector starts at any element


def _broadcast(builder: ir.IRBuilder, value: ir.Value, vector: ir.VectorType) -> ir.Value:
    """Return a vector of one value."""
    empty, index = vector(ir.Undefined), ir.IntType(32)
    first = builder.insert_element(empty, value, index(0))
    return builder.shuffle_vector(first, empty, ir.VectorType(index, vector.count)([0] * vector.count))


_sum_taps, _sum_points, _sum_positions = _sums(CHANNELS), _sums(STRIDE // 2), _sums(POINTS)
_add_channels, _add_channels_to_row = _sums(_TAPS, add=True), _sums(1, add=True)


@numba.njit(nogil=True)
def gradient(
    planes: np.ndarray,
    inward: np.ndarray,
    outward: np.ndarray,
    back: np.ndarray,
    row: int,
    n_segments: int,
    last: int,
    clips: tuple[float, float, float, float],
) -> np.ndarray:
    """Apply the filters, ψ' and the adjoint of the filters to the transformed segments of a tile.

    Nothing is checked: the arrays are C-contiguous and of one dtype, points and channels are multiples of `POINTS` and
    `CHANNELS`, and the taps in y of ``n_segments``, rounded up to a multiple of `NEIGHBOURS`, all lie in the plane.

    Parameters
    ----------
    planes : ndarray, ``point z y·segment``
        Transformed segments.
    inward, outward : ndarray, ``point channel z y``
        Filters, and filters of the adjoint.
    back : ndarray, ``point x``
        Matrix from points to the positions of a segment; its transpose maps positions to points.
    row, n_segments : int
        Segments of a row; segments of a plane in rows whose taps in y all lie inside.
    last : int
        Positions of the last segment of a row whose taps in x all lie inside.
    clips : tuple of float
        Numbers ``k, e, r, f`` with which ``ψ'(t) = r·clip(t, ±k) − f·clip(t, ±e)``.

    Returns
    -------
    ndarray, ``point z y·segment``
        Transformed segments of ``Wᵀ(ψ'(αWx)/α)``.
    """
    n_points, n_planes, plane = planes.shape
    _, n_channels, taps_z, taps_y = inward.shape
    knee, end, rising, falling = clips
    taps, block = taps_z * taps_y, n_channels * NEIGHBOURS
    of_taps = NEIGHBOURS, taps, taps_z, plane, taps_y, taps_y, row, 1
    of_points = block, 1, n_points, block, STRIDE, 1, 0, 0
    of_positions = block, STRIDE, STRIDE, block, 1, 1, 0, 0
    of_channels = row, 1, n_channels, NEIGHBOURS, taps, 1, 0, 0
    total = np.zeros_like(planes)
    points = np.empty((n_points, n_channels, NEIGHBOURS), planes.dtype)
    response = np.empty((STRIDE, n_channels, NEIGHBOURS), planes.dtype)
    elements = response.reshape(-1)
    for z in range(n_planes - taps_z + 1):
        for n in range(0, n_segments, NEIGHBOURS):
            for p in range(n_points):
                for c in range(0, n_channels, CHANNELS):
                    _sum_taps(points[p, c:], planes[p, z:, n:], inward[p, c:], *of_taps)
            for c in range(n_channels):
                for x in range(0, STRIDE, STRIDE // 2):
                    _sum_points(response[x:, c], points[:, c], back[:, x:], *of_points)
            for i in range(elements.size):
                t = elements[i]
                elements[i] = rising * min(max(t, -knee), knee) - falling * min(max(t, -end), end)
            for i in range(NEIGHBOURS):
                if n + i >= n_segments:
                    response[:, :, i] = 0
                elif (n + i) % row == row - 1:
                    response[last:, :, i] = 0
            for c in range(n_channels):
                for p in range(0, n_points, POINTS):
                    _sum_positions(points[p:, c], response[:, c], back[p:], *of_positions)
            for p in range(n_points):
                for dz in range(taps_z):
                    for dy in range(0, taps_y - _TAPS + 1, _TAPS):
                        start = n + dy * row
                        _add_channels(total[p, z + dz, start:], points[p], outward[p, :, dz, dy:], *of_channels)
                    for dy in range(taps_y - taps_y % _TAPS, taps_y):
                        start = n + dy * row
                        _add_channels_to_row(total[p, z + dz, start:], points[p], outward[p, :, dz, dy:], *of_channels)
    return total
