"""Tasks that Dask runs on a worker: short names for its dashboard; messages hold tokens and boxes only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bigdeconv.engine import block
from bigdeconv.engine import probe as probing
from bigdeconv.storage.attempts import Attempt
from bigdeconv.storage.patience import patiently

if TYPE_CHECKING:
    from bigdeconv.engine.recipe import Recipe
    from bigdeconv.geometry import Box, Triple
    from bigdeconv.planning.blocks import BlockTask
    from bigdeconv.planning.seam_probes import SeamMeasurement, SeamProbe
    from bigdeconv.storage.seals import FileMark

RECIPES: dict[str, tuple[Recipe, ...]] = {}
"""Recipes on this worker, by token: one for each volume of the job."""


def solving(index: int) -> str:
    """Return the name of the task that solves a block."""
    return f"solve-{index}"


def merging(index: int) -> str:
    """Return the name of the task that merges a block."""
    return f"merge-{index}"


def _begin(recipe: Recipe, task: str) -> Attempt:
    return patiently(lambda: Attempt.begin(recipe.scratch, task))


def solve(token: str, task: BlockTask) -> block.Solved:
    """Solve a block."""
    recipe = RECIPES[token][task.volume]
    attempt = _begin(recipe, solving(task.index))
    return patiently(lambda: block.solve_block(recipe, task, attempt.require_standing))


def merge(token: str, task: BlockTask, solved: block.Solved, overlaps: dict[Triple, int]) -> dict[str, Any]:
    """Merge and write a block."""
    recipe = RECIPES[token][task.volume]
    attempt = _begin(recipe, merging(task.index))
    record = patiently(lambda: block.merge_block(recipe, task, solved, overlaps, attempt.require_standing))
    return record | ({"attempt": attempt.number} if attempt.number > 1 else {})


def downsample(
    token: str, volume: int, level: int, number: int, timepoint: int, channel: int, box: Box
) -> tuple[list[FileMark], int]:
    """Make a part of a coarse level; return the files that it wrote, and the number of the attempt."""
    recipe = RECIPES[token][volume]
    attempt = _begin(recipe, f"level-{volume}-{level}-{number}")
    stands = attempt.require_standing
    return patiently(lambda: block.downsample_region(recipe, level, timepoint, channel, box, stands)), attempt.number


def probe(token: str, seam: SeamProbe) -> SeamMeasurement:
    """Solve a part of a seam again."""
    return probing.probe_seam(RECIPES[token][seam.volume], seam)
