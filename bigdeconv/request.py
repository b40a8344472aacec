"""What the planner is asked: settings, volumes and PSFs as integers, with the costs that were measured on this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdeconv import inputs, models, trial
from bigdeconv.deconvolution import DEFAULT_ITERATIONS
from bigdeconv.geometry import triple
from bigdeconv.memory import Contents, PriorMemory
from bigdeconv.planner import Request
from bigdeconv.priors.filters import CHAIN_BYTES

if TYPE_CHECKING:
    from bigdeconv.config import JobConfig
    from bigdeconv.costs import Costs
    from bigdeconv.inputs import Inputs
    from bigdeconv.machine import Shares
    from bigdeconv.priors.weights import WcrrWeights
    from bigdeconv.storage.omezarr import VolumeInfo


def for_job(
    config: JobConfig, found: Inputs, kernels: dict[int, np.ndarray], model: WcrrWeights | None, shares: Shares
) -> Request:
    """Return what the plans of all volumes are made from, costs measured here among it; `for_volume` completes it."""
    volume = found.volume
    return Request(
        zyx_shape=volume.zyx_shape,
        psf_shape=triple(max(k.shape[a] for k in kernels.values()) for a in (1, 2, 3)),
        voxel_zyx_um=volume.voxel_zyx_um,
        channels=found.channels,
        contents=Contents(
            n_views=found.n_views,
            input_itemsize=np.dtype(volume.dtype).itemsize,
            output_itemsize=np.dtype(output_dtype(config, volume)).itemsize,
            prior=_prior_memory(
                config.method, model, cuda=shares.cuda, threads=None if config.scheduler else shares.threads
            ),
            threads=shares.threads,
        ),
        budget_bytes=shares.budget_bytes,
        device_budget_bytes=shares.device_budget_bytes,
        n_workers=max(shares.workers // len(found.volumes), 1),
        costs=_costs(config, model, found.n_views, shares),
        iterations=iterations(config),
        block_shape=_explicit(config.block_shape),
        halo=_explicit(config.halo),
        seam_tolerance=config.seam_tolerance,
        blend=_explicit(config.blend),
        chunk_shape=_explicit(config.chunks),
        shard_shape=_explicit(config.shards),
        n_levels=None if config.levels == "auto" else config.levels,
        sharded=config.ome_version == "0.5",
    )


def for_volume(volume: VolumeInfo, request: Request, config: JobConfig) -> Request:
    """Complete a request with what is a volume's own: its shape and that of its chunks decide all of it."""
    moving = config.views_axis != "t"
    return replace(
        request,
        zyx_shape=volume.zyx_shape,
        input_chunk_shape=_space(volume, volume.chunk_shape),
        roi=inputs.roi(config, volume),
        timepoints=inputs.select("timepoints", config.timepoints, volume.n_timepoints) if moving else (0,),
    )


def _prior_memory(method: str, model: WcrrWeights | None, *, cuda: bool, threads: int | None) -> PriorMemory | None:
    """Return what goes from one step in the prior to the next and the learned prior's gradient; all else comes in slabs.

    A GPU, without slabs, also has the terms of the roots, and TV's differences and curvature, of the whole window.  How many
    cores the workers of a running cluster have is not known: ``threads`` is None.
    """
    if method == "rl":
        return None
    if cuda:
        # Beside them the response, its ψ', what comes back, and the library's work.
        return PriorMemory(44) if model is None else PriorMemory(28, fixed_bytes=4 * CHAIN_BYTES)
    if model is None:
        return PriorMemory(8, slabs=16)
    # They come with Numba, which no other method has use for.
    from bigdeconv.priors.segments import COMPILER_BYTES, MOST_TILES, work_bytes

    tiles = min(threads or MOST_TILES, MOST_TILES)
    return PriorMemory(12, slabs=6, fixed_bytes=tiles * work_bytes(model.layers), process_bytes=COMPILER_BYTES)


def _costs(config: JobConfig, model: WcrrWeights | None, n_views: int, shares: Shares) -> Costs:
    weights, device = "" if model is None else models.digest(model), "cuda" if shares.cuda else "cpu"
    subject = trial.Subject(config.method, config.update, n_views, weights, device, shares.threads)
    return trial.measure(subject, model)


def iterations(config: JobConfig) -> int:
    """Return the iterations of every block."""
    return config.iterations if config.iterations is not None else DEFAULT_ITERATIONS[config.method]


def output_dtype(config: JobConfig, volume: VolumeInfo) -> str:
    """Return what is stored, as numpy names it."""
    if config.dtype != "auto":
        return config.dtype
    return "uint16" if np.dtype(volume.dtype).kind in "iu" else "float32"


def _space(volume: VolumeInfo, extents: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the extents on z, y and x of a tuple in stored order, 1 where an axis is not stored."""
    return triple(1 if (i := volume.axis_index(name)) is None else extents[i] for name in "zyx")


def _explicit(value: Any) -> Any:
    return None if value is None or value == "auto" else triple(value)
