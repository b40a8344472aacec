"""The parts of the benchmark, one after the other, and their results as tables."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigdeconv import psf
from bigdeconv.geometry import fast_length
from tests.benchmarks import contestants, convergence, io, prior
from tests.benchmarks.measure import machine, random_volume, rates, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Triple = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Size:
    """Sizes of all parts; the defaults take ten minutes of one core."""

    shape: Triple = (128, 224, 224)
    """Data of the contest.  With FFTs below 32 MiB malloc keeps freed memory, and the peak is no measure of the need."""
    psf: int = 33
    names: Sequence[str] = (*contestants.OURS, *contestants.PEERS)
    iterations: tuple[int, int] = (1, 5)
    rounds: int = 2
    prior_shape: Triple = (60, 96, 250)
    matrix_edge: int = 1024
    traffic: io.Size = field(default_factory=io.Size)
    priors: Sequence[str] = ("tv", "compact")
    phantom_shape: Triple = (18, 40, 40)
    strengths: Sequence[float] = convergence.STRENGTHS
    phantoms: Sequence[str] = tuple(convergence.scenes.PHANTOMS)
    marks: Sequence[int] = (1, 2, 5, 10, 20, 50)


SMALL = Size(
    shape=(32, 48, 48),
    psf=5,
    names=("rl", "plain torch loop, RL", "sdeconv, RL"),
    iterations=(1, 2),
    rounds=1,
    prior_shape=(9, 12, 16),
    matrix_edge=32,
    traffic=io.SMALL,
    phantom_shape=(8, 12, 12),
    strengths=(1.0,),
    phantoms=("balls",),
    marks=(1, 2),
)
"""Enough to see that everything runs."""


def run(
    output: Path,
    size: Size,
    *,
    threads: int = 1,
    peers_python: str = sys.executable,
    scheduler: str | None = None,
) -> dict[str, Any]:
    """Measure everything; the contestants' estimates stay in a folder."""
    torch.set_num_threads(threads)
    psf_zyx = psf.gaussian((size.psf / 8,) * 3, truncate=(size.psf // 2) / (size.psf / 8))
    fft_shape = tuple(fast_length(n + k - 1) for n, k in zip(size.shape, psf_zyx.shape, strict=True))
    contest = contestants.run(
        size.names,
        random_volume(size.shape).numpy(),
        psf_zyx,
        output,
        iterations=size.iterations,
        rounds=size.rounds,
        threads=threads,
        peers_python=peers_python,
    )
    with torch.inference_mode():
        results = {
            "machine": machine() | {"threads": threads},
            "rates": rates(fft_shape, size.matrix_edge),
            "data_shape": size.shape,
            "psf_shape": psf_zyx.shape,
            "fft_shape": fft_shape,
            "contest": contest,
            "prior": prior.table(size.prior_shape, size.rounds),
            "convergence": [
                asdict(row)
                for row in convergence.table(
                    size.priors, size.phantom_shape, phantoms=size.phantoms, strengths=size.strengths
                )
            ],
            "curves": [convergence.curves(name, size.phantom_shape, size.marks) for name in size.priors],
        }
    with tempfile.TemporaryDirectory() as folder:
        results["io"] = io.run(Path(folder), size.traffic, scheduler=scheduler)
    return results


def markdown(results: dict[str, Any]) -> str:
    """Return the results as the README shows them."""
    parts = (
        _machine(results),
        _contest(results),
        _prior(results),
        io.markdown(results["io"]),
        _convergence(results),
        _curves(results),
    )
    return "\n\n".join(parts) + "\n"


def _machine(results: dict[str, Any]) -> str:
    m, r = results["machine"], results["rates"]
    return (
        f"{m['processor']}, {m['instructions']}, {m['threads']} of {m['cores']} cores, torch {m['torch']}. "
        f"Real transforms of {_shape(results['fft_shape'])} there and back: {r['fft_pair_ns_per_voxel']:.1f} ns per voxel "
        f"({r['fft_gflops']:.0f} Gflop/s); matrix products: {r['product_gflops']:.0f} Gflop/s; "
        f"copies: {r['copy_gb_per_s']:.0f} GB/s."
    )


def _contest(results: dict[str, Any]) -> str:
    voxels, fft_bytes = np.prod(results["data_shape"]), 4 * np.prod(results["fft_shape"])
    base = results["contest"]["plain torch loop, RL"]["cpu_seconds"]
    rows = [
        (name, *["not installed"] + [""] * 3)
        if cost is None
        else (
            name,
            f"{cost['cpu_seconds'] / voxels * 1e9:.0f}",
            f"{cost['seconds'] / voxels * 1e9:.0f}",
            f"{cost['cpu_seconds'] / base:.2f}",
            f"{cost['peak_bytes'] / fft_bytes:.1f}",
        )
        for name, cost in results["contest"].items()
    ]
    title = f"One iteration on data of {_shape(results['data_shape'])} with a PSF of {_shape(results['psf_shape'])}"
    head = (title, "CPU ns per voxel", "ns per voxel", "of the loop", "peak memory, FFT volumes")
    transforms = 2 * results["rates"]["fft_pair_ns_per_voxel"] * fft_bytes / 4 / voxels
    return f"{table(head, rows)}\n\nTwo pairs of whole transforms alone: {transforms:.0f} ns per voxel."


def _prior(results: dict[str, Any]) -> str:
    rate = results["rates"]["product_gflops"]
    rows = [
        (
            row["model"],
            row["way"],
            f"{row['cpu_ns_per_voxel']:.0f}",
            f"{row['times_faster']:.1f}",
            f"{row['product_flop_per_voxel'] / rate:.0f}" if row["product_flop_per_voxel"] else "",
        )
        for row in results["prior"]
    ]
    return table(
        ("Gradient of the prior", "way", "CPU ns per voxel", "times faster", "of which products, at best"), rows
    )


def _convergence(results: dict[str, Any]) -> str:
    rows = []
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in results["convergence"]:
        groups.setdefault((row["prior"], row["strength"]), []).append(row)
    for (name, strength), group in groups.items():
        level = [row["level_with_reference"] for row in group]
        rows.append(
            (
                name,
                f"{strength:g}",
                f"{max(row['rise_without_momentum'] for row in group):.0e}",
                f"{max(row['rise'] for row in group):.0e} ({max(row['longest_rise'] for row in group)})",
                f"> {convergence.MAX_ITERATIONS}" if None in level else str(max(level)),
                f"{max(row['float32_apart'] for row in group):.0e}",
                *(
                    _span(row["rsnr_db"][i] - row["rsnr_reference_db"][i] for row in group)
                    for i in range(len(convergence.MARKS))
                ),
                _span(row["rsnr_db"][convergence.AT_ITERATIONS] - row["rsnr_own_mu_db"] for row in group),
            )
        )
    head = ("Prior", "τ over initial", "rise, no momentum", "rise (iterations)", "level with reference at")
    gains = (f"RSNR gain at {k}, dB" for k in convergence.MARKS)
    return table((*head, "float32 to float64", *gains, "to its own μ, dB"), rows)


def _curves(results: dict[str, Any]) -> str:
    tables = []
    for curve in results["curves"]:
        ways = [name for name in curve if name not in {"prior", "least"}]
        start = curve[ways[0]][0]["objective"] - curve["least"]
        rows = [
            (
                points[0]["iterations"],
                *(f"{(p['objective'] - curve['least']) / start:.1e} ({p['cpu_seconds']:.2f} s)" for p in points),
            )
            for points in zip(*(curve[way] for way in ways), strict=True)
        ]
        tables.append(table((f"Objective above the least, {curve['prior']}", *ways), rows))
    return "\n\n".join(tables)


def _span(values: Iterable[float]) -> str:
    found = list(values)
    return f"{min(found):+.2f} to {max(found):+.2f}"


def _shape(shape: Sequence[int]) -> str:
    return "×".join(str(n) for n in shape)
