"""Tasks that Dask runs on a worker: short names for its dashboard; messages hold tokens and boxes only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bigdeconv.engine import block
from bigdeconv.engine import probe as probing

if TYPE_CHECKING:
    from bigdeconv.engine.recipe import Recipe
    from bigdeconv.geometry import Box, Triple
    from bigdeconv.planning.blocks import BlockTask
    from bigdeconv.planning.seam_probes import SeamMeasurement, SeamProbe

RECIPES: dict[str, tuple[Recipe, ...]] = {}
"""Recipes on this worker, by token: one for each volume of the job."""


def solve(token: str, task: BlockTask) -> block.Solved:
    """Solve a block."""
    return block.solve_block(RECIPES[token][task.volume], task)


def merge(token: str, task: BlockTask, solved: block.Solved, overlaps: dict[Triple, int]) -> dict[str, Any]:
    """Merge and write a block."""
    return block.merge_block(RECIPES[token][task.volume], task, solved, overlaps)


def downsample(token: str, volume: int, level: int, timepoint: int, channel: int, box: Box) -> None:
    """Make a part of a coarse level."""
    block.downsample_region(RECIPES[token][volume], level, timepoint, channel, box)


def probe(token: str, seam: SeamProbe) -> SeamMeasurement:
    """Solve a part of a seam again."""
    return probing.probe_seam(RECIPES[token][seam.volume], seam)
