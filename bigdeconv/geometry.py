"""Boxes of voxels and grids of cores, in plain integers.

All triples are in the order z, y, x; a box is half-open on each axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

from bigdeconv.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

Triple = tuple[int, int, int]

VOXEL_LIMITS_UM = (1e-6, 1e6)
"""Range of possible voxel sizes: from a picometre to a metre."""

PRIOR_MARGIN = 6
"""Voxels around the data window on which a prior acts too, where the estimate reaches so far.  The filters of the shipped models
have as many taps beyond the first, so that every filter that sees a voxel of the data acts.  A prior that ended with the data
would leave its outermost voxels to the noise."""


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open box of voxels: ``start <= index < stop`` on z, y and x."""

    start: Triple
    stop: Triple

    @classmethod
    def of_shape(cls, zyx_shape: Triple) -> Box:
        """Return the box from the origin to ``zyx_shape``."""
        return cls((0, 0, 0), zyx_shape)

    @property
    def shape(self) -> Triple:
        """Extent in voxels, z y x; never negative."""
        return triple(max(b - a, 0) for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of voxels."""
        z, y, x = self.shape
        return z * y * x

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index into a ``z y x`` array."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def grow(self, lower: Triple, upper: Triple | None = None) -> Box:
        """Move the lower faces out by ``lower`` and the upper ones by ``upper`` (the same where not given)."""
        upper = lower if upper is None else upper
        return Box(
            triple(a - g for a, g in zip(self.start, lower, strict=True)),
            triple(b + g for b, g in zip(self.stop, upper, strict=True)),
        )

    def intersect(self, other: Box) -> Box:
        """Return the voxels in both boxes (an empty box where they do not meet)."""
        start = triple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = (min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box(start, triple(max(a, b) for a, b in zip(start, stop, strict=True)))

    def contains(self, other: Box) -> bool:
        """Tell whether every voxel of ``other`` lies in this box."""
        return self.intersect(other) == other

    def relative_to(self, origin: Triple) -> Box:
        """Return the same box counted from ``origin``."""
        return self.shift(triple(-o for o in origin))

    def shift(self, offset: Triple) -> Box:
        """Return the box moved by ``offset``."""
        return Box(
            triple(a + o for a, o in zip(self.start, offset, strict=True)),
            triple(b + o for b, o in zip(self.stop, offset, strict=True)),
        )

    def coarsen(self, factors: Triple) -> Box:
        """Return the box in a grid that is coarser by ``factors``: every coarse voxel that a fine one falls into."""
        return Box(
            triple(a // f for a, f in zip(self.start, factors, strict=True)),
            triple(ceil_div(b, f) for b, f in zip(self.stop, factors, strict=True)),
        )


@dataclass(frozen=True, slots=True)
class Grid:
    """Cores of one shape that tile a volume; the last on each axis may be smaller.

    ::

        |-- core --|-- core --|- core -|      one axis of a volume of 28 with cores of 10
        0         10         20       28
    """

    zyx_shape: Triple
    core_shape: Triple

    @property
    def counts(self) -> Triple:
        """Number of cores along z, y and x."""
        return triple(ceil_div(n, c) for n, c in zip(self.zyx_shape, self.core_shape, strict=True))

    def __len__(self) -> int:
        z, y, x = self.counts
        return z * y * x

    def core(self, position: Triple) -> Box:
        """Return the box of the core at a grid position."""
        start = triple(p * c for p, c in zip(position, self.core_shape, strict=True))
        return Box(start, triple(a + c for a, c in zip(start, self.core_shape, strict=True))).intersect(
            Box.of_shape(self.zyx_shape)
        )

    def positions(self) -> Iterator[Triple]:
        """Yield every grid position in lexicographic order."""
        z, y, x = self.counts
        yield from product(range(z), range(y), range(x))


def triple(values: object) -> Triple:
    """Return three integers as a tuple.

    Raises
    ------
    InvalidInputError
        If there are not exactly three.
    """
    items = tuple(int(v) for v in values)  # type: ignore[attr-defined]
    if len(items) != 3:
        raise InvalidInputError(f"expected three integers z,y,x, got {items!r}")
    return items


def zyx_text(values: Triple) -> str:
    """Return ``z,y,x`` as the command line takes it."""
    return ",".join(str(v) for v in values)


def ceil_div(a: int, b: int) -> int:
    """Divide and round up."""
    return -(-a // b)


def round_up(a: int, multiple: int) -> int:
    """Return the smallest multiple that is at least ``a``."""
    return ceil_div(a, multiple) * multiple


@lru_cache(maxsize=4096)
def fast_length(n: int) -> int:
    """Return the smallest length of the form 2ᵃ·3ᵇ·5ᶜ that is at least ``n``: lengths that every FFT library is fast at."""
    best = 1
    while best < n:
        best *= 2
    five = 1
    while five < best:
        three = five
        while three < best:
            candidate = three
            while candidate < n:
                candidate *= 2
            best = min(best, candidate)
            three *= 3
        five *= 5
    return best
