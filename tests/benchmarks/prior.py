"""Gradient of the learned prior: plain convolutions of a whole volume, the same in slabs, and by segments of rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bigdeconv import models
from bigdeconv.geometry import ceil_div
from bigdeconv.numerics.priors.filters import SequentialConvolutions, reach
from bigdeconv.numerics.priors.overlap_save import OverlapSaveFilters, products_per_segment
from bigdeconv.numerics.priors.wcrr import Wcrr
from bigdeconv.numerics.restoration import MU_MAX
from tests.benchmarks.measure import cheapest, random_volume

if TYPE_CHECKING:
    from bigdeconv.numerics.priors.weights import WcrrWeights

WAYS = {
    "plain": partial(SequentialConvolutions, limit_bytes=2**50),
    "slabs of 2 MiB": partial(SequentialConvolutions, limit_bytes=2**21),
    "segments": OverlapSaveFilters,
}
MODELS = ("compact", "large")
"""16 channels, and 64 as in the published architecture."""


def table(shape: tuple[int, int, int], rounds: int) -> list[dict[str, Any]]:
    """Return one row per model and way: nanoseconds per voxel, and the speed relative to the plain way."""
    x = random_volume(shape)
    rows = []
    for name in MODELS:
        model = models.resolve(name)
        priors = {w: Wcrr(model, sigma=model.sigma_default, mu_max=MU_MAX, filters=f) for w, f in WAYS.items()}
        costs = cheapest({way: partial(prior.gradient, x) for way, prior in priors.items()}, rounds)
        rows += [
            {
                "model": name,
                "way": way,
                "ns_per_voxel": cost.seconds / x.numel() * 1e9,
                "cpu_ns_per_voxel": cost.cpu_seconds / x.numel() * 1e9,
                "times_faster": costs["plain"].cpu_seconds / cost.cpu_seconds,
                "product_flop_per_voxel": product_flop(model, shape) if way == "segments" else None,
            }
            for way, cost in costs.items()
        ]
    return rows


def product_flop(model: WcrrWeights, shape: tuple[int, int, int]) -> float:
    """Return the operations per voxel of the matrix products of `OverlapSaveFilters`, transforms and adjoint included."""
    taps_z, taps_y, taps_x = (r + 1 for r in reach(model.layers))
    n_points, stride = products_per_segment(taps_x - 1)
    segments = ceil_div(shape[2] - taps_x + 1, stride)
    return 4 * len(model.layers[-1]) * n_points * (taps_z * taps_y + stride) * segments / shape[2]
