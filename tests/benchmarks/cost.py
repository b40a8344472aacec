"""Predicted against measured CPU time of a block, and of volumes of 1, 2 and 4 times the size.

GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python tests/benchmarks/cost.py [--only WORD]

The trials and the blocks run in one process, in turn: the ratio counts.  bigdeconv sets the variable for its own workers.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bigdeconv import models  # noqa: E402
from bigdeconv.calibration import block_cost  # noqa: E402
from bigdeconv.engine.block import merge_block, solve_block  # noqa: E402
from tests.benchmarks.measure import cheapest  # noqa: E402
from tests.benchmarks.memory import Case, make_recipe  # noqa: E402

if TYPE_CHECKING:
    from bigdeconv.engine.recipe import Recipe
    from bigdeconv.numerics.priors.weights import WcrrWeights
    from bigdeconv.planning.cost import Costs

ITERATIONS = 4
ROUNDS = 3
"""Number of measurements of everything, in turn: the least is the cost of undisturbed work."""
GRID = (
    Case((64,) * 3, (1.0,) * 3, "rl"),
    Case((96,) * 3, (2.0,) * 3, "rl"),
    Case((192,) * 3, (2.0,) * 3, "rl"),
    Case((64,) * 3, (1.0,) * 3, "rltv"),
    Case((160,) * 3, (1.0,) * 3, "rltv"),
    Case((64,) * 3, (1.0,) * 3, "garl"),
    Case((32, 256, 256), (2.0, 1.0, 1.0), "garl"),
    Case((64,) * 3, (2.0,) * 3, "rl", views=8),
    Case((64,) * 3, (1.0,) * 3, "garl", views=8),
)


def ratio(case: Case) -> tuple[float, float]:
    """Return the predicted and the measured CPU time of a job of two blocks, the least of those found in turn."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_recipe(case, Path(folder), ITERATIONS)
        model = models.resolve(case.model) if case.method == "garl" else None
        subject = block_cost.Subject(case.method, "convergent", case.views, case.model, "cpu", 1)
        found = [
            (measured_anew(subject, model).total(recipe.plan, case.views, ITERATIONS), cpu_of_all_blocks(recipe))
            for _ in range(ROUNDS)
        ]
        predicted, measured = (min(times) for times in zip(*found, strict=True))
        return predicted, measured


def measured_anew(subject: block_cost.Subject, model: WcrrWeights | None) -> Costs:
    """Return the costs that a trial measures now, whatever the cache holds."""
    with tempfile.TemporaryDirectory() as empty, mock.patch.dict(os.environ, XDG_CACHE_HOME=empty):
        return block_cost.measure(subject, model)


def cpu_of_all_blocks(recipe: Recipe) -> float:
    """Solve and merge every block as a worker does; return the CPU time."""
    started = time.process_time()
    for task in recipe.plan.tasks():
        merge_block(recipe, task, solve_block(recipe, task), {})
    return time.process_time() - started


def by_size() -> list[float]:
    """Return the CPU time of 4, 8 and 16 blocks of one shape, the least of those measured in turn."""
    with ExitStack() as folders:
        calls = {}
        for n in (2, 4, 8):
            folder = Path(folders.enter_context(tempfile.TemporaryDirectory()))
            recipe = make_recipe(Case((64 * n, 96, 96), (1.0,) * 3, "rl"), folder, ITERATIONS)
            plan = replace(recipe.plan, core_shape=(64, 96, 96))
            calls[str(n)] = partial(cpu_of_all_blocks, replace(recipe, plan=plan))
        return [cost.cpu_seconds for cost in cheapest(calls, ROUNDS).values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a row's name; the last line comes without it")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    print("predicted measured  ratio")
    for case in GRID:
        if only in str(case):
            predicted, measured = ratio(case)
            print(f"{predicted:9.2f} {measured:8.2f} {predicted / measured:6.2f}  {case}", flush=True)
    if only:
        return
    times = by_size()
    print("size 1, 2, 4:", ", ".join(f"{t:.2f} s ({t / times[0]:.2f})" for t in times))


if __name__ == "__main__":
    main()
