"""What Dask runs on a worker: short names for its dashboard, and nothing in the messages but tokens and boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bigdeconv.engine import block
from bigdeconv.engine import probe as probing

if TYPE_CHECKING:
    from bigdeconv.blocks import BlockTask
    from bigdeconv.engine.recipe import Recipe
    from bigdeconv.geometry import Box, Triple
    from bigdeconv.probes import Measured, SeamProbe

RECIPES: dict[str, tuple[Recipe, ...]] = {}
"""The recipes that this worker has been sent, by token: one for each volume of the job."""


def solve(token: str, task: BlockTask) -> block.Solved:
    """Solve a block."""
    return block.solve_block(RECIPES[token][task.volume], task)


def merge(token: str, task: BlockTask, solved: block.Solved, rims: dict[Triple, int]) -> dict[str, Any]:
    """Merge and write a block."""
    return block.merge_block(RECIPES[token][task.volume], task, solved, rims)


def downsample(token: str, volume: int, level: int, timepoint: int, channel: int, box: Box) -> None:
    """Make a part of a coarse level."""
    block.downsample_region(RECIPES[token][volume], level, timepoint, channel, box)


def probe(token: str, seam: SeamProbe) -> Measured:
    """Solve a part of a seam again."""
    return probing.probe_seam(RECIPES[token][seam.volume], seam)
