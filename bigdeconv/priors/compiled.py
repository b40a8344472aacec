"""The learned prior between its transforms: products of small matrices with rows where they lie, compiled by Numba.

A matrix of filters times the windows of a volume is a product of matrices, but BLAS wants the rows of every window side by
side, and to copy each row for each tap costs more time than the product.  Here a row is read where it is.  The sums of a few
outputs at some tens of neighbouring segments stay in registers while all taps are added up, as in the core of any BLAS, and
what follows from them stays in the cache until it has been added to the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

_WIDE = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
_LANES, _VECTORS = (16, 3) if _WIDE else (8, 1)
"""Elements of a vector, and vectors per output: up to 9 outputs, and what is multiplied, fit a processor's registers."""
SEGMENTS = _LANES * _VECTORS
"""So many segments of a plane are taken at a time; a plane has room for a multiple of it."""
STRIDE = 18
"""Positions of a segment."""
CHANNELS, POINTS = 8, 7
"""The numbers of channels and of points are multiples of these."""
_TAPS = 7
"""Taps in y by which the adjoint goes as long as there are so many; those left over go one by one."""


def _sums(n_outputs: int, *, add: bool = False) -> Callable[..., None]:
    """Return what sets ``out[o, i]`` to ``Σ_ab weights[o, a, b] source[a, b, i]``, or adds that, for `SEGMENTS` neighbours ``i``.

    Its arguments are the three arrays, each from its first element on, and in elements the step of ``o`` in the output and in
    the weights, then the number of ``a`` and its steps in the source and in the weights, and the same of ``b``.
    """

    @intrinsic
    def sums(_: Any, out: Any, source: Any, weights: Any, *steps: Any) -> Any:
        return types.void(out, source, weights, types.StarArgTuple(steps)), generate

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, given: Any) -> ir.Value:
        *arrays, steps = given
        out, source, weights = (
            context.make_array(kind)(context, builder, array).data
            for kind, array in zip(signature.args, arrays, strict=False)
        )
        out_o, weights_o, n_a, source_a, weights_a, n_b, source_b, weights_b = cgutils.unpack_tuple(builder, steps)
        number, index = source.type.pointee, n_a.type
        vector = ir.VectorType(number, _LANES)
        multiply_add = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector, [vector] * 3),
            f"llvm.fma.v{_LANES}f{8 * number.get_abi_size(context.target_data)}",
        )

        def vectors(start: ir.Value) -> list[ir.Value]:
            places = [builder.gep(start, [index(_LANES * v)]) for v in range(_VECTORS)]
            return [builder.bitcast(place, vector.as_pointer()) for place in places]

        def element(array: ir.Value, *products: tuple[ir.Value, ir.Value]) -> ir.Value:
            place = index(0)
            for count, step in products:
                place = builder.add(place, builder.mul(count, step))
            return builder.gep(array, [place])

        totals = [[cgutils.alloca_once(builder, vector) for _ in range(_VECTORS)] for _ in range(n_outputs)]
        for total in (t for row in totals for t in row):
            builder.store(vector([0.0] * _LANES), total)
        with cgutils.for_range(builder, n_a) as a, cgutils.for_range(builder, n_b) as b:
            start = element(source, (a.index, source_a), (b.index, source_b))
            values = [builder.load(place, align=4) for place in vectors(start)]
            for o, row in enumerate(totals):
                tap = element(weights, (index(o), weights_o), (a.index, weights_a), (b.index, weights_b))
                weight = _everywhere(builder, builder.load(tap), vector)
                for total, value in zip(row, values, strict=True):
                    builder.store(builder.call(multiply_add, [weight, value, builder.load(total)]), total)
        for o, row in enumerate(totals):
            for total, place in zip(row, vectors(element(out, (index(o), out_o))), strict=True):
                value = builder.load(total)
                builder.store(builder.fadd(builder.load(place, align=4), value) if add else value, place, align=4)
        return context.get_dummy_value()

    return sums


def _everywhere(builder: ir.IRBuilder, value: ir.Value, vector: ir.VectorType) -> ir.Value:
    """Return a vector of one value."""
    empty, index = vector(ir.Undefined), ir.IntType(32)
    first = builder.insert_element(empty, value, index(0))
    return builder.shuffle_vector(first, empty, ir.VectorType(index, vector.count)([0] * vector.count))


_sums_of_channels, _sums_of_positions, _sums_of_points = _sums(CHANNELS), _sums(STRIDE // 2), _sums(POINTS)
_add_to_rows, _add_to_row = _sums(_TAPS, add=True), _sums(1, add=True)


@numba.njit(nogil=True, fastmath={"nnan", "nsz", "contract"})
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
    """Return what the points of a tile become by the filters, ψ' and the adjoint of the filters, like ``planes``.

    Parameters
    ----------
    planes
        The segments' points, ``point z y·segment``.
    inward, outward
        Filters there and back, ``point channel z y``.
    back
        Matrix from points to the positions of a segment, ``point x``; its transpose goes from positions to points.
    row, n_segments
        Segments of a row, and those of a plane that lie in rows whose taps in y all lie inside.
    last
        Positions of a row's last segment whose taps in x all lie inside.
    clips
        Numbers ``k, e, r, f`` with which ``ψ'(t) = r·clip(t, ±k) − f·clip(t, ±e)``.
    """
    n_points, n_planes, plane = planes.shape
    _, n_channels, taps_z, taps_y = inward.shape
    taps, block = taps_z * taps_y, n_channels * SEGMENTS
    knee, end, rising, falling = clips
    total = np.zeros_like(planes)
    points = np.empty((n_points, n_channels, SEGMENTS), planes.dtype)
    response = np.empty((STRIDE, n_channels, SEGMENTS), planes.dtype)
    elements = response.reshape(-1)
    for z in range(n_planes - taps_z + 1):
        for n in range(0, n_segments, SEGMENTS):
            for p in range(n_points):
                for c in range(0, n_channels, CHANNELS):
                    steps = SEGMENTS, taps, taps_z, plane, taps_y, taps_y, row, 1
                    _sums_of_channels(points[p, c:], planes[p, z:, n:], inward[p, c:], *steps)
            for c in range(n_channels):
                for x in range(0, STRIDE, STRIDE // 2):
                    steps = block, 1, n_points, block, STRIDE, 1, 0, 0
                    _sums_of_positions(response[x:, c], points[:, c], back[:, x:], *steps)
            for i in range(elements.size):
                t = elements[i]
                elements[i] = rising * min(max(t, -knee), knee) - falling * min(max(t, -end), end)
            for i in range(SEGMENTS):
                if n + i >= n_segments:
                    response[:, :, i] = 0
                elif (n + i) % row == row - 1:
                    response[last:, :, i] = 0
            for c in range(n_channels):
                for p in range(0, n_points, POINTS):
                    steps = block, STRIDE, STRIDE, block, 1, 1, 0, 0
                    _sums_of_points(points[p:, c], response[:, c], back[p:], *steps)
            for p in range(n_points):
                for dz in range(taps_z):
                    steps = row, 1, n_channels, SEGMENTS, taps, 1, 0, 0
                    for dy in range(0, taps_y - _TAPS + 1, _TAPS):
                        _add_to_rows(total[p, z + dz, n + dy * row :], points[p], outward[p, :, dz, dy:], *steps)
                    for dy in range(taps_y - taps_y % _TAPS, taps_y):
                        _add_to_row(total[p, z + dz, n + dy * row :], points[p], outward[p, :, dz, dy:], *steps)
    return total
