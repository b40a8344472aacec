"""Traffic of the stores per voxel of the output, its cost on a core, and the shares of the workers' time.

python -m tests.benchmarks.io [OUTPUT]

Writes ``io.json`` in OUTPUT.  The blocks of a volume are read, merged and written in this process, the solver replaced by a copy;
bytes are counted at the stores, chunks at their codec, and processor time is that of all threads.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter, OrderedDict
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from bigdeconv import make_config
from bigdeconv.engine import block
from bigdeconv.numerics.blending import DIRECTIONS
from tests import make
from tests.benchmarks import shares
from tests.benchmarks.measure import table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bigdeconv.engine.recipe import Recipe

Triple = tuple[int, int, int]
GPU_VOXELS = 200e6
"""Assumed speed of a GPU in voxels of the output per second."""
KEPT = ("nothing", "a window", "a row of windows", "a layer of windows")
"""Decoded chunks that a worker might keep, the least recently used dropped first."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Chunks and shards of an input."""

    chunk: Triple
    shard: Triple | None = None

    def __str__(self) -> str:
        chunk = "×".join(map(str, self.chunk))
        return f"chunks of {chunk}" + (f" in shards of {'×'.join(map(str, self.shard))}" if self.shard else "")


@dataclass(frozen=True, slots=True)
class Size:
    """Sizes of all parts."""

    shape: Triple = (384, 384, 384)
    core: Triple = (128, 128, 128)
    halo: Triple = (16, 16, 16)
    layouts: tuple[Layout, ...] = (
        Layout((64, 64, 64)),
        Layout((64, 64, 64), (192, 192, 192)),
        Layout((1, 384, 384)),
    )
    run_shape: Triple = (64, 256, 256)
    run_core: Triple = (64, 128, 128)
    run_iterations: int | None = None
    workers: int = 2


SMALL = Size(
    (24, 32, 32),
    (8, 16, 16),
    (2, 2, 2),
    (Layout((8, 8, 8)), Layout((8, 8, 8), (16, 16, 16))),
    (16, 32, 32),
    (16,) * 3,
    2,
)
"""Enough to see that everything runs."""


def run(folder: Path, size: Size, *, scheduler: str | None = None) -> dict[str, Any]:
    """Measure everything in a folder."""
    traffic = [measure(folder / str(i), size, layout) for i, layout in enumerate(size.layouts)]
    parts = {}
    for method in ("rl", "garl"):
        (folder / method).mkdir()
        parts[method] = shares.measure(
            folder / method,
            size.run_shape,
            core=size.run_core,
            workers=size.workers,
            scheduler=scheduler,
            method=method,
            iterations=size.run_iterations,
        )
    return {"size": asdict(size), "traffic": traffic, "shares": parts}


def measure(folder: Path, size: Size, layout: Layout) -> dict[str, Any]:
    """Read, merge and write every block of a volume; return counts and nanoseconds of a core, per voxel of the output."""
    (recipe,) = _recipes(folder, size, layout)
    plan, clock = recipe.plan, _Clock()
    with counting(recipe) as count, clock.timing(block, "read_and_look"), _copying():
        for task in plan.tasks():
            solved = clock.timed("solve_block", block.solve_block, recipe, task)
            overlaps = {d: plan.neighbour(task, tuple(-i for i in d)) for d in DIRECTIONS}
            lower = {d: n for d, n in overlaps.items() if n is not None and plan.has_overlaps}
            clock.timed("merge_block", block.merge_block, recipe, task, solved, lower)
    voxels, ns = plan.roi.size, clock.seconds
    overlap_bytes = sum(path.stat().st_size for path in Path(recipe.scratch).rglob("*.npy"))
    return {
        "layout": str(layout),
        "input_bytes": _bytes_below(folder / "in.zarr") / voxels,
        "bytes_read": count["input bytes"] / voxels,
        "requests": count["input requests"] / plan.n_blocks,
        "decoded": count["decoded chunks"] * int(np.prod(layout.chunk)) / voxels,
        "decoded_planned": plan.decode_amplification,
        "bytes_written": count["output bytes"] / voxels,
        "writes": count["output requests"] / plan.n_blocks,
        "overlap_bytes": overlap_bytes / voxels,
        "decode_ns": 1e9 * ns["read_and_look"] / (plan.decode_amplification * voxels),
        "read_ns": 1e9 * ns["read_and_look"] / voxels,
        "prepare_ns": 1e9 * (ns["solve_block"] - ns["read_and_look"]) / voxels,
        "write_ns": 1e9 * ns["merge_block"] / voxels,
        "kept": {f"{workers}": _decoded_if_kept(plan, workers) for workers in (1, 2, 8)},
    }


def markdown(results: dict[str, Any]) -> str:
    """Return the results as tables."""
    return "\n\n".join((_traffic(results), _rates(results), _kept(results), _shares(results)))


def _traffic(results: dict[str, Any]) -> str:
    head = (
        "Input",
        "stored bytes",
        "bytes read",
        "voxels decoded (planned)",
        "reads per block",
        "bytes written",
        "of overlap slabs",
    )
    rows = [
        (
            row["layout"],
            *(f"{row[name]:.2f}" for name in ("input_bytes", "bytes_read")),
            f"{row['decoded']:.2f} ({row['decoded_planned']:.2f})",
            f"{row['requests']:.0f}",
            *(f"{row[name]:.2f}" for name in ("bytes_written", "overlap_bytes")),
        )
        for row in results["traffic"]
    ]
    return table(head, rows)


def _rates(results: dict[str, Any]) -> str:
    rates = ("decoding, Mvoxel/s", "merging, levels, encoding, Mvoxel/s")
    head = ("Input", *rates, "cores per GPU: reading", "preparing", "writing", "all")
    rows = []
    for row in results["traffic"]:
        cores = [GPU_VOXELS * row[f"{part}_ns"] * 1e-9 for part in ("read", "prepare", "write")]
        found = (f"{1e3 / row[name]:.0f}" for name in ("decode_ns", "write_ns"))
        rows.append((row["layout"], *found, *(f"{c:.1f}" for c in (*cores, sum(cores)))))
    return table(head, rows)


def _kept(results: dict[str, Any]) -> str:
    rows = [
        (row["layout"], workers, *(f"{n:.2f}" for n in decoded))
        for row in results["traffic"]
        for workers, decoded in row["kept"].items()
    ]
    return table(("Voxels decoded if a worker kept", "workers", *KEPT), rows)


def _shares(results: dict[str, Any]) -> str:
    names = {"read": "read", "solve": "compute", "blend": "blend", "write": "write", "wait": "computing nothing"}
    rows = [(m.upper(), *(f"{100 * part[name]:.1f} %" for name in names)) for m, part in results["shares"].items()]
    return table(("Share of the workers' time", *names.values()), rows)


class _Clock:
    """Adds up the processor time of calls, by name."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def timed(self, name: str, call, *arguments, **options):
        started = time.process_time()
        try:
            return call(*arguments, **options)
        finally:
            self.seconds[name] += time.process_time() - started

    def timing(self, module, name: str):
        """Time a function of a module."""
        return mock.patch.object(module, name, partial(self.timed, name, getattr(module, name)))


@contextmanager
def counting(recipe: Recipe) -> Iterator[Counter[str]]:
    """Count bytes and requests of the input's and the output's arrays, metadata aside, and the chunks that are decoded."""
    count: Counter[str] = Counter()
    names = {recipe.volume.location: "input", recipe.output: "output"}
    get, put, decode = LocalStore.get, LocalStore.set, BloscCodec._decode_single

    def add(store, key, buffer):
        if buffer is not None and "zarr.json" not in key:
            name = names[str(store.root)]
            count.update({f"{name} bytes": len(buffer), f"{name} requests": 1})

    async def counted_get(self, key, prototype=None, byte_range=None):
        buffer = await get(self, key, prototype, byte_range)
        add(self, key, buffer)
        return buffer

    async def counted_set(self, key, value):
        await put(self, key, value)
        add(self, key, value)

    def counted_decode(self, *arguments):
        count["decoded chunks"] += 1
        return decode(self, *arguments)

    with (
        mock.patch.object(LocalStore, "get", counted_get),
        mock.patch.object(LocalStore, "set", counted_set),
        mock.patch.object(BloscCodec, "_decode_single", counted_decode),
    ):
        yield count


@contextmanager
def _copying() -> Iterator[None]:
    """Copy blocks in place of restoring them."""
    with mock.patch.object(block, "restore", lambda photons, *_: photons[0]):
        yield


class _NoPsf:
    """A PSF that costs nothing."""

    def operator(self, window, settings) -> None:
        return None

    def operator_key(self, window) -> None:
        return None


def _recipes(folder: Path, size: Size, layout: Layout) -> tuple[Recipe, ...]:
    """Write a volume and start a job on it, without a PSF."""
    folder.mkdir()
    data = make.scene(*size.shape)
    make.volume(folder / "in.zarr", data, chunk=layout.chunk, shard=layout.shard)
    recipes = make.start_job(
        make_config(
            {
                "input": str(folder / "in.zarr"), "output": str(folder / "out.zarr"),
                "psf": [str(make.psf_tiff(folder / "psf.tif"))], "method": "rl", "iterations": 1, "background": 20,
                "block_shape": size.core, "halo": size.halo, "memory": "1TiB", "workers": 1, "device": "cpu",
            }
        )
    )  # fmt: skip
    return tuple(replace(recipe, psfs=dict.fromkeys(recipe.psfs, _NoPsf())) for recipe in recipes)


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "zarr.json")


def _decoded_if_kept(plan, workers: int) -> list[float]:
    """Return the voxels decoded per voxel written if workers that take blocks in turn kept the chunks that they used last."""
    _, middle, fast = (plan.grid.counts[axis] for axis in plan.axis_order)
    chunk = plan.input_chunk_shape
    window = max(len(_chunks(task.read, chunk)) for task in plan.tasks())
    found = []
    for room in (0, window, fast * window, middle * fast * window):
        kept: list[OrderedDict[Triple, None]] = [OrderedDict() for _ in range(workers)]
        decoded = 0
        for task in plan.tasks():
            mine = kept[task.index % workers]
            for place in _chunks(task.read, chunk):
                if place not in mine:
                    decoded += _voxels(plan, place)
                mine[place] = None
                mine.move_to_end(place)
            while len(mine) > room:
                mine.popitem(last=False)
        found.append(decoded / plan.roi.size)
    return found


def _chunks(box, chunk: Triple) -> list[Triple]:
    touched = box.coarsen(chunk)
    return list(product(*(range(a, b) for a, b in zip(touched.start, touched.stop, strict=True))))


def _voxels(plan, place: Triple) -> int:
    spans = zip(place, plan.input_chunk_shape, plan.zyx_shape, strict=True)
    return int(np.prod([min((p + 1) * c, n) - p * c for p, c, n in spans]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.io", description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = run(Path(folder), Size())
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "io.json").write_text(json.dumps(results, indent=1))
    print(markdown(results))


if __name__ == "__main__":
    main()
