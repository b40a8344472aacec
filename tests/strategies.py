"""Hypothesis strategies: boxes, and requests for plans of volumes small enough to count voxel by voxel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from bigdeconv.geometry import Box, triple
from bigdeconv.planning.memory import Contents
from bigdeconv.planning.planner import PlanRequest
from bigdeconv.planning.resources import Resources
from bigdeconv.planning.tuned import PROCESS_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import DrawFn, SearchStrategy

    from bigdeconv.geometry import Triple


def triples(low: int, high: int) -> SearchStrategy[Triple]:
    """Three integers from ``low`` to ``high``."""
    return st.tuples(*[st.integers(low, high)] * 3)


@st.composite
def boxes(draw: DrawFn, low: int = -6, high: int = 9, least: int = 0) -> Box:
    """A box between ``low`` and ``high``, at least ``least`` voxels on each axis."""
    start = draw(triples(low, high - least))
    return Box(start, triple(draw(st.integers(a + least, high)) for a in start))


@st.composite
def requests(
    draw: DrawFn, *, largest: int = 30, explicit: bool | None = None, volumes: bool = True, **fixed: Any
) -> PlanRequest:
    """A request that can be met: with a block shape given (``explicit``), or with a memory budget that may be small.

    ``volumes`` allows more than one time point and channel; ``fixed`` overrides what would be drawn.
    """
    shape = draw(triples(1, largest))
    whole = Box.of_shape(shape)
    roi = draw(st.none() | _inside(whole))
    extent = (roi or whole).shape
    chunk = draw(triples(1, 8))
    values: dict[str, Any] = {
        "zyx_shape": shape,
        "roi": roi,
        "psf_shape": draw(triples(1, 9)),
        "voxel_zyx_um": draw(st.sampled_from([(1.0, 1.0, 1.0), (2.0, 0.5, 0.5), (0.1, 0.3, 1.0)])),
        "contents": Contents(n_views=draw(st.integers(1, 3))),
        "sharded": draw(st.booleans()),
        "n_levels": draw(st.none() | st.integers(1, 5)),
        "halo": draw(st.none() | triples(0, 5)),
        "resources": Resources(workers=draw(st.integers(1, 4))),
    }
    if volumes:
        values["timepoints"] = draw(st.sampled_from([(0,), (1, 4), (3, 0, 2)]))
        values["channels"] = draw(st.sampled_from([(0,), (2, 0)]))
    if explicit or (explicit is None and draw(st.booleans())):
        blocks = draw(triples(1, 4))
        # Even numbers of chunks now and then, so that coarser levels can be aligned.
        core = triple(c * b for c, b in zip(chunk, blocks, strict=True))
        values["chunk_shape"] = chunk
        values["block_shape"] = core
        values["blend"] = draw(st.none() | _at_most(triple(c // 2 for c in core), lambda c: min(c, 4)))
        if values["sharded"] and draw(st.booleans()):
            divisors = [draw(st.sampled_from([d for d in range(1, b + 1) if b % d == 0])) for b in blocks]
            clipped = [min(c, n) for c, n in zip(chunk, extent, strict=True)]
            values["shard_shape"] = triple(
                c * d if c == k else k for c, d, k in zip(chunk, divisors, clipped, strict=True)
            )
    else:
        # Few candidates to choose from, so that a plan takes milliseconds.
        values["chunk_shape"] = triple(max(c, n // 3) for c, n in zip(chunk, extent, strict=True))
        budget_bytes = PROCESS_BYTES + draw(st.integers(0, 3_000_000))
        values["resources"] = replace(values["resources"], budget_bytes=budget_bytes)
    return PlanRequest(**values | fixed)


@st.composite
def _inside(draw: DrawFn, whole: Box) -> Box:
    start = triple(draw(st.integers(0, n - 1)) for n in whole.stop)
    return Box(start, triple(draw(st.integers(a + 1, n)) for a, n in zip(start, whole.stop, strict=True)))


def _at_most(limits: Triple, cap: Callable[[int], int]) -> SearchStrategy[Triple]:
    return st.tuples(*(st.integers(0, cap(n)) for n in limits))
