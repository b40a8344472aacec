"""Predicted cost of the blocks of a plan, from measured rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bigdeconv.planning.memory import prior_voxels
from bigdeconv.planning.tuned import HEAP_BYTES

if TYPE_CHECKING:
    from bigdeconv.planning.blocks import Plan


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates that depend on the size of a block's arrays, in seconds."""

    transform: float = 6e-10
    """Per FFT voxel, its logarithm to base 2, iteration, and pair of transforms."""
    otf: float = 0.0
    """Per FFT voxel and view, for each change of the shape of the data window."""
    prior: float = 0.0
    """Per voxel that the prior acts on and iteration."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one core, or of a GPU with its worker.  The defaults are of one machine and good for ratios only."""

    small: Rates = Rates()
    """For arrays that come from heaps."""
    large: Rates = Rates()
    """For arrays of `HEAP_BYTES` and more: no cache holds them, and the system maps their memory each time."""
    prepare: float = 4e-8
    """Per voxel and view whose counts become photons."""
    decode: float = 4e-9
    """Per voxel decoded."""
    write: float = 2e-8
    """Per voxel merged, encoded and averaged to the next levels."""
    block: float = 0.01
    """Per block: messages, small files, the journal."""

    def total(self, plan: Plan, n_views: int, iterations: int) -> float:
        """Return the time of all blocks of a plan on one core or GPU, in seconds.

        Parameters
        ----------
        plan : Plan
        n_views, iterations : int
        """
        volumes = len(plan.timepoints) * len(plan.channels)
        n_fft, acted_on = math.prod(plan.fft_shape), prior_voxels(plan.read_shape, plan.fft_shape)
        rates = self.large if 4 * n_fft >= HEAP_BYTES else self.small
        # The start of the iteration costs as much as a step of it.
        transforms = (iterations + 1) * (n_views + 1) * rates.transform * math.log2(max(n_fft, 2))
        prior = iterations * rates.prior * acted_on / math.prod(plan.read_shape)
        per_voxel = (
            plan.compute_amplification * transforms
            + plan.read_amplification * (prior + n_views * self.prepare)
            + plan.decode_amplification * n_views * self.decode
            + self.write
        )
        otfs = plan.n_window_shapes * n_views * rates.otf * n_fft
        return volumes * (plan.roi.size * per_voxel + otfs) + plan.n_blocks * self.block
