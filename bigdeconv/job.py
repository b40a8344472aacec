"""From settings to a job: everything that is decided before the first block.

`inspect` reads metadata and plans; `prepare` also reads samples and decides what all blocks share.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import psutil

from bigdeconv import calibration, models, psf, trial
from bigdeconv.deconvolution import DEFAULT_ITERATIONS, MU_MAX, Settings, cuda_device_count, device_memory_bytes
from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import Box, triple, zyx_text
from bigdeconv.intensity import Camera
from bigdeconv.planner import CHUNK, Costs, Plan, PriorMemory, Request, make_plan
from bigdeconv.priors.filters import CHAIN_BYTES, work_bytes
from bigdeconv.storage import omezarr
from bigdeconv.storage.psf_files import read_psf

if TYPE_CHECKING:
    from bigdeconv.calibration import ChannelCalibration
    from bigdeconv.config import JobConfig
    from bigdeconv.priors.weights import WcrrWeights
    from bigdeconv.storage.omezarr import VolumeInfo

MEMORY_SHARE = 0.7
"""Part of the machine's memory that local workers may plan with."""
DEVICE_SHARE = 0.85
"""Part of a GPU's memory that blocks may take."""
LEAST_WORKER_BYTES = 3 * 2**30
REMOTE_WORKER_BYTES = 8 * 2**30
"""What a worker of a running cluster is taken to have unless --memory says more."""
WCRR_WINDOW_BYTES, TV_WINDOW_BYTES = 24, 40
"""Work of a step in the prior per voxel: the roots' terms, the gradient, and TV's differences and curvature."""
DECODING_LIMIT = 3.0
"""Voxels decoded per voxel written from which on a plan warns."""
NOMINAL_PSF_RADIUS = 16
"""Radius in voxels of the PSF that a volume which does not exist yet is planned with where none is given."""


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """What is known before any voxel is read."""

    config: JobConfig
    volume: VolumeInfo
    plan: Plan
    kernels: dict[int, np.ndarray]
    """PSFs ``v z y x`` by channel."""
    model: WcrrWeights | None
    workers: int
    threads: int
    cuda: bool
    costs: Costs
    """What was measured on this machine."""
    warnings: tuple[str, ...]

    @property
    def iterations(self) -> int:
        """Iterations of every block."""
        return _iterations(self.config)

    @property
    def seconds_per_block(self) -> float:
        """Predicted CPU time of a block, or a GPU's."""
        n_views = next(iter(self.kernels.values())).shape[0]
        return self.costs.total(self.plan, n_views, self.iterations) / self.plan.n_blocks

    @property
    def wall_seconds(self) -> float:
        """Predicted time of the whole job with the workers of this machine."""
        rounds = -(-self.plan.n_blocks // self.workers)
        return self.seconds_per_block * rounds / (1 if self.cuda else self.threads)

    @property
    def output_dtype(self) -> str:
        """What is stored, as numpy names it."""
        return _output_dtype(self.config, self.volume)

    @property
    def halo(self) -> tuple[int, int, int]:
        """Halo of the plan, z y x."""
        return self.plan.halo


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """An outline and the numbers that all blocks share."""

    outline: Outline
    settings: dict[int, Settings]
    calibrations: dict[int, ChannelCalibration]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know, one sentence each."""
        found = list(self.outline.warnings)
        for channel, result in self.calibrations.items():
            found += [f"Channel {channel}: {w}" for w in result.warnings]
        return tuple(found)


def inspect(config: JobConfig, tczyx_shape: tuple[int, ...] | None = None) -> Outline:
    """Read metadata and PSFs and make the plan; reads no voxel and writes nothing.

    Parameters
    ----------
    tczyx_shape
        Extent of a volume that does not exist yet.  Then nothing is read from ``config.input``, ``config.dtype`` is the type of
        what is read too, and a PSF may be left out.

    Raises
    ------
    BigdeconvError
        If anything does not fit; the sentence says what to do.
    """
    volume = _describe(config, tczyx_shape)
    view_axis = config.views_axis
    if view_axis in {"z", "y", "x"}:
        raise InvalidInputError(
            f"views-axis: got {view_axis!r}, an axis of space; give the axis along which the views lie."
        )
    if view_axis is not None and volume.axis_index(view_axis) is None:
        raise InvalidInputError(f"views-axis: the volume has no axis {view_axis!r}; it has {', '.join(volume.axes)}.")
    _check_axes(volume, view_axis)
    timepoints = (0,) if view_axis == "t" else _select("timepoints", config.timepoints, volume.n_timepoints)
    channels = (0,) if view_axis == "c" else _select("channels", config.channels, volume.n_channels)
    n_views = volume.extent(view_axis) if view_axis else 1
    if tczyx_shape is not None and not config.psf:
        kernels, warnings = _nominal_psfs(volume, channels)
    else:
        kernels, warnings = _read_psfs(config, volume, channels, n_views)
    model = models.resolve(config.model) if config.method == "garl" else None
    if model is not None and model.card.get("name") == "standin":
        warnings.append(
            "The learned prior is the hand-set stand-in, not trained weights; leave --model out for the trained one."
        )
    if model is not None and config.update == "convergent" and model.log_mu > math.log(10 * MU_MAX):
        warnings.append(
            f"The model's μ of {math.exp(model.log_mu):.0f} is capped at {MU_MAX:.0f}; --update reference keeps it, and chatters."
        )
    if model is not None:
        sigma = model.sigma_default if config.sigma is None else config.sigma
        warnings.extend(models.outside_training(model, volume.voxel_zyx_um, sigma))
    if config.keep_bits is not None and _output_dtype(config, volume) != "float32":
        raise InvalidInputError(
            "keep-bits: rounds floating point only, the output is uint16; add --dtype float32 or drop it."
        )
    workers, threads, cuda = _local_workers(config)
    costs = _costs(config, model, n_views, threads, cuda=cuda)
    request = Request(
        zyx_shape=volume.zyx_shape,
        psf_shape=triple(max(k.shape[a] for k in kernels.values()) for a in (1, 2, 3)),
        voxel_zyx_um=volume.voxel_zyx_um,
        roi=_roi(config, volume),
        timepoints=timepoints,
        channels=channels,
        n_views=n_views,
        input_itemsize=np.dtype(volume.dtype).itemsize,
        output_itemsize=np.dtype(_output_dtype(config, volume)).itemsize,
        prior=_prior_memory(config.method, model, cuda=cuda),
        budget_bytes=_budget(config, workers),
        device_budget_bytes=int(DEVICE_SHARE * device_memory_bytes()) if cuda else None,
        n_workers=workers,
        costs=costs,
        iterations=_iterations(config),
        input_chunk_shape=_space(volume, volume.chunk_shape),
        block_shape=_explicit(config.block_shape),
        halo=_explicit(config.halo),
        blend=_explicit(config.blend),
        chunk_shape=_explicit(config.chunks),
        shard_shape=_explicit(config.shards),
        n_levels=None if config.levels == "auto" else config.levels,
        sharded=config.ome_version == "0.5",
    )
    plan = make_plan(request)
    warnings += _reading_warning(plan)
    return Outline(config, volume, plan, kernels, model, workers, threads, cuda, costs, tuple(warnings))


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


def _costs(config: JobConfig, model: WcrrWeights | None, n_views: int, threads: int, *, cuda: bool) -> Costs:
    weights = "" if model is None else models.digest(model)
    subject = trial.Subject(config.method, config.update, n_views, weights, "cuda" if cuda else "cpu", threads)
    return trial.measure(subject, model)


def _reading_warning(plan: Plan) -> list[str]:
    """Say which chunks of the input would help where reading decodes much that is not needed."""
    now = plan.decode_amplification
    if now <= DECODING_LIMIT:
        return []
    better = triple(min(CHUNK, n) for n in plan.zyx_shape)
    then = replace(plan, input_chunk_shape=better).decode_amplification
    if then > 0.9 * now:
        return [f"Reading decodes {now:.1f} voxels per voxel written; larger blocks (more --memory) would help."]
    return [
        f"Reading decodes {now:.1f} voxels per voxel written, for the input has chunks of {zyx_text(plan.input_chunk_shape)}; "
        f"with {zyx_text(better)} it would be {then:.1f}."
    ]


def prepare(outline: Outline) -> Job:
    """Read samples of the volume and decide, per channel, what all its blocks share; writes nothing."""
    config = outline.config
    sigma = config.sigma if config.sigma is not None else (outline.model.sigma_default if outline.model else 0.0)
    settings: dict[int, Settings] = {}
    calibrations: dict[int, ChannelCalibration] = {}
    for channel in outline.plan.channels:
        draft = Settings(
            method=config.method,
            iterations=outline.iterations,
            tau=0.0 if config.tau == "auto" else config.tau,
            sigma=sigma,
            background=0.0,
            intensity_scale=1.0,
            voxel_zyx_um=outline.volume.voxel_zyx_um,
            update=config.update,
            device=config.device,
        )
        sampling = calibration.Sampling(
            info=outline.volume,
            channel=channel,
            timepoints=outline.plan.timepoints,
            view_axis=config.views_axis,
            camera=camera(config),
            kernels=outline.kernels[channel],
        )
        calibrations[channel], settings[channel] = calibration.calibrate(
            sampling,
            draft,
            outline.model,
            background=_number(config.background),
            intensity_scale=_number(config.intensity_scale),
            output_scale=_number(config.output_scale),
            masked=config.mask == "auto",
            halo=outline.halo,
            auto_tau=config.tau == "auto",
            integer_output=outline.output_dtype == "uint16",
        )
    return Job(outline, settings, calibrations)


def plan_summary(outline: Outline) -> dict[str, Any]:
    """Return a plan as `bigdeconv plan --json` prints it."""
    plan = outline.plan
    return {
        "n_blocks": plan.n_blocks,
        "block_shape": plan.core_shape,
        "halo": plan.halo,
        "blend": plan.blend,
        "fft_shape": plan.fft_shape,
        "chunk_shape": plan.levels[0].chunk_shape,
        "shard_shape": plan.levels[0].shard_shape,
        "levels": [level.shape for level in plan.levels],
        "peak_bytes_per_worker": plan.peak_bytes_per_worker,
        "memory": dict(plan.memory),
        "peak_bytes_per_device": plan.peak_bytes_per_device,
        "device_memory": dict(plan.device_memory),
        "rim_bytes": plan.rim_bytes if plan.overlaps else 0,
        "read_amplification": round(plan.read_amplification, 3),
        "compute_amplification": round(plan.compute_amplification, 3),
        "decode_amplification": round(plan.decode_amplification, 3),
        "cpu_seconds_per_block": round(outline.seconds_per_block, 2),
        "estimated_seconds": round(outline.wall_seconds, 1),
        "predicted_seam_error": float(f"{plan.seam_error(outline.iterations):.2g}"),
        "workers": outline.workers,
        "threads_per_worker": outline.threads,
        "volume_shape": plan.zyx_shape,
        "output_shape": plan.roi.shape,
        "timepoints": len(plan.timepoints),
        "channels": len(plan.channels),
        "views": next(iter(outline.kernels.values())).shape[0],
        "psf_shape": plan.psf_shape,
        "method": outline.config.method,
        "iterations": outline.iterations,
        "warnings": list(outline.warnings),
    }


# --- inputs -----------------------------------------------------------------------------------------------------------


def _describe(config: JobConfig, tczyx_shape: tuple[int, ...] | None) -> VolumeInfo:
    voxel_um = _triple_or_none(config.voxel_um)
    if tczyx_shape is None:
        return omezarr.describe(config.input, level=config.level, voxel_zyx_um=voxel_um)
    dtype = "uint16" if config.dtype == "auto" else config.dtype
    return omezarr.imagine(tczyx_shape, dtype=dtype, voxel_zyx_um=voxel_um or (1.0, 1.0, 1.0))


def _check_axes(volume: VolumeInfo, view_axis: str | None) -> None:
    strange = [a for a in volume.axes if a not in {"t", "c", "z", "y", "x", view_axis}]
    if strange:
        raise InvalidInputError(
            f"input: axis {strange[0]!r} is none of t, c, z, y, x; if several views of one object lie along it, say "
            f"--views-axis {strange[0]}."
        )


def _select(name: str, wanted: tuple[int, ...] | None, available: int) -> tuple[int, ...]:
    if wanted is None:
        return tuple(range(available))
    if max(wanted) >= available:
        raise InvalidInputError(f"{name}: got {max(wanted)}; the volume has {available}, counted from 0.")
    return tuple(dict.fromkeys(wanted))


def _roi(config: JobConfig, volume: VolumeInfo) -> Box | None:
    if config.roi is None:
        return None
    shape = volume.zyx_shape
    start = triple(a or 0 for a, _ in config.roi)
    stop = triple(n if b is None else b for (_, b), n in zip(config.roi, shape, strict=True))
    box = Box(start, stop)
    if box.size == 0 or not Box.of_shape(shape).contains(box):
        raise InvalidInputError(f"roi: got {start} to {stop}; it must be a box inside the volume of {shape}.")
    return box


def _read_psfs(
    config: JobConfig, volume: VolumeInfo, channels: tuple[int, ...], n_views: int
) -> tuple[dict[int, np.ndarray], list[str]]:
    """Read and prepare the PSFs of every channel, ``v z y x``."""
    if not config.psf:
        raise InvalidInputError("psf: is missing; give --psf FILE (TIFF or npy), one voxel of value 1 for none.")
    entries = [_parse_psf(entry) for entry in config.psf]
    _refuse_unused(entries, channels, n_views)
    prepared: dict[tuple[str, ...], psf.PreparedPSF] = {}
    kernels: dict[int, np.ndarray] = {}
    warnings: list[str] = []
    for channel in channels:
        files = _files_of_channel(entries, channel, n_views)
        if files not in prepared:
            prepared[files] = _prepare_psf(files, config, volume, n_views)
            warnings += prepared[files].notes
        kernels[channel] = prepared[files].kernels
    return kernels, warnings


def _nominal_psfs(volume: VolumeInfo, channels: tuple[int, ...]) -> tuple[dict[int, np.ndarray], list[str]]:
    """Return a Gaussian of four standard deviations' radius for every channel; it ends where a thin volume does."""
    radius = [min(NOMINAL_PSF_RADIUS, (n - 1) // 2) for n in volume.zyx_shape]
    kernel = psf.gaussian([r / 4 for r in radius])[None]
    box = ",".join(str(n) for n in kernel.shape[1:])
    return dict.fromkeys(channels, kernel), [f"No --psf is given: the plan is for a PSF box of {box} voxels."]


def _refuse_unused(entries: list[tuple[int | None, int | None, str]], channels: tuple[int, ...], n_views: int) -> None:
    for channel, view, file in entries:
        if (channel is not None and channel not in channels) or (view is not None and view >= n_views):
            raise InvalidInputError(
                f"psf: {file!r} is for {_place(channel, view)}, which the job does not have; drop it."
            )
    places = [(channel, view) for channel, view, _ in entries]
    if len(set(places)) < len(places):
        raise InvalidInputError(
            "psf: two files are given for the same channel and view; give one, or say C0=FILE, V0=FILE."
        )


def _place(channel: int | None, view: int | None) -> str:
    named = (("channel", channel), ("view", view))
    return ", ".join(f"{name} {number}" for name, number in named if number is not None)


def _parse_psf(entry: str) -> tuple[int | None, int | None, str]:
    """Split ``C1.V3=FILE`` into channel, view and file; what is not said is None."""
    match = re.fullmatch(r"(?:C(\d+))?\.?(?:V(\d+))?=(.+)", entry)
    if match is None:
        return None, None, entry
    channel, view = (None if g is None else int(g) for g in match.groups()[:2])
    return channel, view, match[3]


def _files_of_channel(entries: list[tuple[int | None, int | None, str]], channel: int, n_views: int) -> tuple[str, ...]:
    mine = [e for e in entries if e[0] in (None, channel)]
    # What names the channel goes before what is for all.
    mine.sort(key=lambda e: e[0] is None)
    whole = [file for _, view, file in mine if view is None]
    by_view = {view: file for _, view, file in reversed(mine) if view is not None}
    if by_view:
        missing = [v for v in range(n_views) if v not in by_view]
        if missing:
            raise InvalidInputError(f"psf: view {missing[0]} of channel {channel} has none; give V{missing[0]}=FILE.")
        return tuple(by_view[v] for v in range(n_views))
    if not whole:
        raise InvalidInputError(f"psf: channel {channel} has none; give C{channel}=FILE, or FILE for all channels.")
    return (whole[0],)


def _prepare_psf(files: tuple[str, ...], config: JobConfig, volume: VolumeInfo, n_views: int) -> psf.PreparedPSF:
    arrays = [read_psf(file) for file in files]
    if len({a.shape for a in arrays}) > 1:
        raise InvalidInputError(
            f"psf: the files of one channel's views have shapes {[a.shape for a in arrays]}; give one shape."
        )
    array = arrays[0] if len(arrays) == 1 else np.stack(arrays)
    prepared = psf.prepare(
        array,
        voxel_zyx_um=volume.voxel_zyx_um,
        psf_voxel_zyx_um=config.psf_voxel_um,
        volume_zyx_shape=volume.zyx_shape,
        name=f"psf {Path(files[0]).name}",
    )
    if len(prepared.kernels) != n_views:
        raise InvalidInputError(
            f"psf: {Path(files[0]).name!r} holds {len(prepared.kernels)} views, the data {n_views}; say the axis of the views "
            "with --views-axis, and give a PSF for each."
        )
    return prepared


def _output_dtype(config: JobConfig, volume: VolumeInfo) -> str:
    if config.dtype != "auto":
        return config.dtype
    return "uint16" if np.dtype(volume.dtype).kind in "iu" else "float32"


def _iterations(config: JobConfig) -> int:
    return config.iterations if config.iterations is not None else DEFAULT_ITERATIONS[config.method]


def _space(volume: VolumeInfo, extents: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the extents on z, y and x of a tuple in stored order, 1 where an axis is not stored."""
    return triple(1 if (i := volume.axis_index(name)) is None else extents[i] for name in "zyx")


def camera(config: JobConfig) -> Camera:
    """Return the camera that the settings describe."""
    return Camera(config.camera_offset, config.gain, config.read_noise)


def _number(value: float | Literal["auto"]) -> float | None:
    return None if value == "auto" else value


def _explicit(value: Any) -> Any:
    return None if value is None or value == "auto" else triple(value)


def _triple_or_none(value: Any) -> tuple[float, float, float] | None:
    if value is None:
        return None
    z, y, x = value
    return z, y, x


# --- the machine ------------------------------------------------------------------------------------------------------


def _local_workers(config: JobConfig) -> tuple[int, int, bool]:
    """Return processes, threads for each, and whether each gets a GPU."""
    cores = len(os.sched_getaffinity(0))
    gpus = 0 if config.device == "cpu" else cuda_device_count()
    if config.device == "cuda" and gpus == 0 and config.scheduler is None:
        raise InvalidInputError("device: got cuda, but torch finds no CUDA device here; use --device cpu or auto.")
    if gpus:
        count = min(config.workers or gpus, gpus)
        return count, max(cores // count, 1), True
    memory = LEAST_WORKER_BYTES if config.memory == "auto" else config.memory
    count = config.workers or max(min(cores, int(MEMORY_SHARE * _machine_bytes() // memory)), 1)
    return count, max(cores // count, 1), False


def _budget(config: JobConfig, workers: int) -> int:
    if config.memory != "auto":
        return config.memory
    if config.scheduler is not None:
        return REMOTE_WORKER_BYTES
    return int(MEMORY_SHARE * _machine_bytes() / workers)


def _machine_bytes() -> int:
    """Return the memory of this machine, or what a batch system's control group allows of it."""
    total: int = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        return min(total, int(limit.read_text()))
    except (OSError, ValueError):
        return total
