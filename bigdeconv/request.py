"""What the planner is asked: settings, volumes and PSFs as integers, with the costs that were measured on this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdeconv import inputs, machine, models, trial
from bigdeconv.deconvolution import DEFAULT_ITERATIONS, device_memory_bytes
from bigdeconv.geometry import triple
from bigdeconv.planner import Costs, PriorMemory, Request
from bigdeconv.priors.filters import CHAIN_BYTES, work_bytes

if TYPE_CHECKING:
    from bigdeconv.config import JobConfig
    from bigdeconv.priors.weights import WcrrWeights
    from bigdeconv.storage.omezarr import VolumeInfo

WCRR_WINDOW_BYTES, TV_WINDOW_BYTES = 28, 44
"""Work of the steps in the prior per voxel: what goes from one to the next, the roots' terms, the gradient, and TV's differences
and curvature."""


def for_job(
    config: JobConfig,
    volumes: tuple[VolumeInfo, ...],
    channels: tuple[int, ...],
    kernels: dict[int, np.ndarray],
    model: WcrrWeights | None,
    *,
    workers: int,
    costs: Costs,
    cuda: bool,
) -> Request:
    """Return what the plans of all volumes are made from; `for_volume` completes it."""
    volume, kernel = volumes[0], next(iter(kernels.values()))
    return Request(
        zyx_shape=volume.zyx_shape,
        psf_shape=triple(max(k.shape[a] for k in kernels.values()) for a in (1, 2, 3)),
        voxel_zyx_um=volume.voxel_zyx_um,
        channels=channels,
        n_views=len(kernel),
        input_itemsize=np.dtype(volume.dtype).itemsize,
        output_itemsize=np.dtype(output_dtype(config, volume)).itemsize,
        prior=_prior_memory(config.method, model, cuda=cuda),
        budget_bytes=machine.budget_bytes(config, workers),
        device_budget_bytes=int(machine.DEVICE_SHARE * device_memory_bytes()) if cuda else None,
        n_workers=max(workers // len(volumes), 1),
        costs=costs,
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


def layout(volume: VolumeInfo) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what of a volume its plan depends on; the rest is common to all volumes of a job."""
    return volume.shape, volume.chunk_shape


def for_volume(volume: VolumeInfo, request: Request, config: JobConfig) -> Request:
    """Complete a request with what is a volume's own."""
    moving = config.views_axis != "t"
    return replace(
        request,
        zyx_shape=volume.zyx_shape,
        input_chunk_shape=_space(volume, volume.chunk_shape),
        roi=inputs.roi(config, volume),
        timepoints=inputs.select("timepoints", config.timepoints, volume.n_timepoints) if moving else (0,),
    )


def _prior_memory(method: str, model: WcrrWeights | None, *, cuda: bool) -> PriorMemory | None:
    if method == "rl":
        return None
    if model is None:
        return PriorMemory(TV_WINDOW_BYTES)
    if cuda:
        return PriorMemory(
            WCRR_WINDOW_BYTES, 4 * CHAIN_BYTES
        )  # the response, its ψ', what comes back, the library's work
    tiles, per_row_voxel = work_bytes(model.layers)
    return PriorMemory(WCRR_WINDOW_BYTES, tiles, per_row_voxel)


def measure_costs(config: JobConfig, model: WcrrWeights | None, n_views: int, threads: int, *, cuda: bool) -> Costs:
    """Return what a block of such a job costs on this machine."""
    weights = "" if model is None else models.digest(model)
    subject = trial.Subject(config.method, config.update, n_views, weights, "cuda" if cuda else "cpu", threads)
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
