"""Requests to the planner: settings, volumes and PSFs as integers, with the costs measured on this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from bigdeconv import models
from bigdeconv.calibration import block_cost
from bigdeconv.engine import machine
from bigdeconv.geometry import triple
from bigdeconv.jobs import inputs
from bigdeconv.numerics.priors.filters import fused_bytes, is_fusible
from bigdeconv.numerics.priors.wcrr import compiled_filters_available, fused_filters_available
from bigdeconv.planning.memory import Contents, PriorMemory
from bigdeconv.planning.planner import PlanRequest
from bigdeconv.planning.tuned import COMPILER_BYTES, MAX_TILES, RESPONSE_BYTES

if TYPE_CHECKING:
    from bigdeconv.config import JobConfig
    from bigdeconv.geometry import Triple
    from bigdeconv.jobs.inputs import Inputs
    from bigdeconv.numerics.priors.weights import WcrrWeights
    from bigdeconv.numerics.restoration import ResolvedSettings
    from bigdeconv.planning.resources import Resources
    from bigdeconv.psf import PSF
    from bigdeconv.storage.omezarr import VolumeInfo


def for_job(
    config: JobConfig,
    found: Inputs,
    psfs: dict[int, PSF],
    model: WcrrWeights | None,
    settings: ResolvedSettings,
    resources: Resources,
) -> PlanRequest:
    """Return the part of a request that all volumes of a job share; `for_volume` completes it.

    Costs are measured here, or taken from the cache.
    """
    volume = found.first_volume
    subject = block_cost.Subject(
        settings.method,
        settings.update,
        found.n_views,
        "" if model is None else models.digest(model),
        machine.device_here(settings.device),
        resources.threads,
    )
    threads = None if config.scheduler else resources.threads
    return PlanRequest(
        zyx_shape=volume.zyx_shape,
        psf_shape=triple(max(psf.support_zyx[axis] for psf in psfs.values()) for axis in range(3)),
        voxel_zyx_um=volume.voxel_zyx_um,
        channels=found.channels,
        contents=Contents(
            n_views=found.n_views,
            input_itemsize=np.dtype(volume.dtype).itemsize,
            output_itemsize=np.dtype(output_dtype(config, volume)).itemsize,
            prior=prior_memory(settings, model, threads=threads),
            threads=resources.threads,
            process_bytes=machine.process_bytes(),
        ),
        resources=replace(resources, workers=max(resources.workers // len(found.volumes), 1)),
        costs=block_cost.measure(subject, model),
        iterations=settings.iterations,
        block_shape=_triple(config.block_shape),
        halo=_triple(config.halo),
        seam_tolerance=config.seam_tolerance,
        blend=_triple(config.blend),
        chunk_shape=_triple(config.chunks),
        shard_shape=_triple(config.shards),
        n_levels=config.levels,
        sharded=config.ome_version == "0.5",
    )


def for_volume(volume: VolumeInfo, request: PlanRequest, config: JobConfig) -> PlanRequest:
    """Complete a request with what depends on the volume: its shape, chunks, region and time points."""
    has_time = config.views_axis != "t"
    return replace(
        request,
        zyx_shape=volume.zyx_shape,
        input_chunk_shape=_spatial(volume, volume.chunk_shape),
        roi=inputs.roi(config, volume),
        timepoints=inputs.select("timepoints", config.timepoints, volume.n_timepoints) if has_time else (0,),
    )


def prior_memory(settings: ResolvedSettings, model: WcrrWeights | None, *, threads: int | None) -> PriorMemory | None:
    """Return what a prior keeps between its iterations, and the learned prior's gradient; the rest comes in slabs.

    The learned prior also keeps its last point and gradient between iterations on the data.

    A GPU, without slabs, also holds the terms of the roots, and TV's differences and curvature, of the whole window.

    Parameters
    ----------
    settings : ResolvedSettings
    model : WcrrWeights or None
    threads : int or None
        Cores of a worker; None where they are not known, as on a running cluster.
    """
    if settings.method == "rl":
        return None
    if settings.device == "cuda":
        return PriorMemory(44) if model is None else _learned_on_gpu(model)
    if model is None:
        return PriorMemory(8, slabs=16)
    if not compiled_filters_available():
        return PriorMemory(20, slabs=8, fixed_bytes=4 * RESPONSE_BYTES)
    # It comes with Numba, which no other method needs.
    from bigdeconv.numerics.priors.overlap_save import work_bytes

    tiles = min(threads or MAX_TILES, MAX_TILES)
    return PriorMemory(20, slabs=8, fixed_bytes=tiles * work_bytes(model.layers), process_bytes=COMPILER_BYTES)


def _learned_on_gpu(model: WcrrWeights) -> PriorMemory:
    """Return the memory of the learned prior on a GPU: with fused kernels, without them, or of either where that is not known."""
    # Beside the points the response, its ψ', what comes back, and the library's work.
    sequential = PriorMemory(36, fixed_bytes=4 * RESPONSE_BYTES)
    shapes = [layer.shape for layer in model.layers]
    if not is_fusible(shapes) or (torch.cuda.is_available() and not fused_filters_available(model)):
        return sequential
    fused = replace(sequential, window_bytes=36 + fused_bytes(shapes))
    return replace(fused, fixed_bytes=0) if torch.cuda.is_available() else fused


def output_dtype(config: JobConfig, volume: VolumeInfo) -> str:
    """Return the dtype of the output, as numpy names it."""
    if config.dtype is not None:
        return config.dtype
    return "uint16" if np.dtype(volume.dtype).kind in "iu" else "float32"


def _spatial(volume: VolumeInfo, extents: tuple[int, ...]) -> Triple:
    """Return the extents on z, y and x of a tuple in stored order, 1 on an axis that is not stored."""
    return triple(1 if (i := volume.axis_index(name)) is None else extents[i] for name in "zyx")


def _triple(values: tuple[int, ...] | None) -> Triple | None:
    return None if values is None else triple(values)
