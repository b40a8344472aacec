"""What the blocks of a plan cost, from numbers that a trial has measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bigdeconv.memory import HEAP_BYTES, prior_voxels

if TYPE_CHECKING:
    from bigdeconv.blocks import Plan

FRESH_BYTES = 60
"""Bytes of arrays that a pair of transforms makes per FFT voxel."""
PRIOR_FRESH_BYTES = 80
"""Bytes of arrays that a step in the prior makes per voxel."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one core, or of a GPU with its worker; the defaults are those of some machine, for their ratios."""

    fft: float = 6e-10
    """Per FFT voxel, its logarithm to base 2, iteration, and pair of transforms."""
    prior: float = 0.0
    """Per voxel that the prior acts on and iteration."""
    prior_steps: int = 1
    """Steps in the prior per iteration."""
    prepare: float = 4e-8
    """Per voxel and view that is turned into photons."""
    fault: float = 0.0
    """Per byte of memory that the system hands out anew, as it does for each array larger than `HEAP_BYTES`."""
    decode: float = 4e-9
    """Per voxel decoded."""
    write: float = 2e-8
    """Per voxel merged, encoded and averaged to the next levels."""
    block: float = 0.01
    """Per block: messages, small files, the journal."""

    def total(self, plan: Plan, n_views: int, iterations: int) -> float:
        """Return the seconds of all blocks of a plan, on one core or GPU."""
        volumes = len(plan.timepoints) * len(plan.channels)
        n_fft = math.prod(plan.fft_shape)
        fresh = self.fault if 4 * n_fft >= HEAP_BYTES else 0.0
        # The start of the iteration costs as much as a step of it.
        transforms = (iterations + 1) * (n_views + 1) * (self.fft * math.log2(max(n_fft, 2)) + FRESH_BYTES * fresh)
        prior = iterations * (self.prior + (PRIOR_FRESH_BYTES * fresh * self.prior_steps if self.prior else 0.0))
        prior *= prior_voxels(plan.read_shape, plan.fft_shape) / math.prod(plan.read_shape)
        per_voxel = (
            plan.compute_amplification * transforms
            + plan.read_amplification * (prior + n_views * self.prepare)
            + plan.decode_amplification * n_views * self.decode
            + self.write
        )
        return volumes * plan.roi.size * per_voxel + plan.n_blocks * self.block
