"""From settings to a job: everything that is decided before the first block.

`inspect` reads metadata and plans; `prepare` also reads samples and decides what all blocks share.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import psutil

from bigdeconv import calibration, halo, models, psf, trial
from bigdeconv.deconvolution import (
    DEFAULT_ITERATIONS,
    MU_MAX,
    Settings,
    cuda_device_count,
    device_memory_bytes,
    likely_tau,
)
from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import Box, triple, zyx_text
from bigdeconv.intensity import Camera
from bigdeconv.planner import CHUNK, Costs, Plan, PriorMemory, Request, make_plan
from bigdeconv.priors.filters import CHAIN_BYTES, work_bytes
from bigdeconv.storage import omezarr
from bigdeconv.storage.collection import Collection, find_images
from bigdeconv.storage.mask import open_mask
from bigdeconv.storage.psf_files import read_psf

if TYPE_CHECKING:
    from bigdeconv.calibration import ChannelCalibration
    from bigdeconv.config import JobConfig
    from bigdeconv.priors.weights import WcrrWeights
    from bigdeconv.storage.mask import Mask
    from bigdeconv.storage.omezarr import VolumeInfo

MEMORY_SHARE = 0.7
"""Part of the machine's memory that local workers may plan with."""
DEVICE_SHARE = 0.85
"""Part of a GPU's memory that blocks may take."""
LEAST_WORKER_BYTES = 3 * 2**30
REMOTE_WORKER_BYTES = 8 * 2**30
"""What a worker of a running cluster is taken to have unless --memory says more."""
WCRR_WINDOW_BYTES, TV_WINDOW_BYTES = 28, 44
"""Work of the steps in the prior per voxel: what goes from one to the next, the roots' terms, the gradient, and TV's differences
and curvature."""
DECODING_LIMIT = 3.0
"""Voxels decoded per voxel written from which on a plan warns."""
NOMINAL_PSF_RADIUS = 16
"""Radius in voxels of the PSF that a volume which does not exist yet is planned with where none is given."""


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """What is known before any voxel is read."""

    config: JobConfig
    images: Collection
    volumes: tuple[VolumeInfo, ...]
    """Described alike but for their shapes."""
    plans: tuple[Plan, ...]
    """One for each volume."""
    kernels: dict[int, np.ndarray]
    """PSFs ``v z y x`` by channel."""
    model: WcrrWeights | None
    outside: np.ndarray | None
    """Whether a block lies outside the mask, by its index through all volumes; None without a mask."""
    workers: int
    threads: int
    cuda: bool
    costs: Costs
    """What was measured on this machine."""
    warnings: tuple[str, ...]

    @property
    def volume(self) -> VolumeInfo:
        """The first volume; the others have its axes, dtype, voxel size and channels."""
        return self.volumes[0]

    @property
    def plan(self) -> Plan:
        """The plan that needs the most memory."""
        return max(self.plans, key=lambda plan: plan.peak_bytes_per_worker)

    @property
    def n_blocks(self) -> int:
        """Blocks of all volumes."""
        return sum(plan.n_blocks for plan in self.plans)

    @property
    def blocks_outside(self) -> int:
        """Blocks outside the mask."""
        return 0 if self.outside is None else int(self.outside.sum())

    @property
    def iterations(self) -> int:
        """Iterations of every block."""
        return _iterations(self.config)

    @property
    def seconds_per_block(self) -> float:
        """Predicted CPU time of a block, or a GPU's."""
        n_views = next(iter(self.kernels.values())).shape[0]
        return sum(self.costs.total(plan, n_views, self.iterations) for plan in self.plans) / self.n_blocks

    @property
    def wall_seconds(self) -> float:
        """Predicted time of the whole job with the workers of this machine; blocks outside the mask take none."""
        rounds = -(-(self.n_blocks - self.blocks_outside) // self.workers)
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
    """Read metadata, PSFs and a mask, calibrate halo and costs, and plan; reads no voxel of the volume, writes only a cache.

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
    images, volumes = _volumes(config, tczyx_shape)
    volume = volumes[0]
    view_axis = config.views_axis
    if view_axis in {"z", "y", "x"}:
        raise InvalidInputError(
            f"views-axis: got {view_axis!r}, an axis of space; give the axis along which the views lie."
        )
    if view_axis is not None and volume.axis_index(view_axis) is None:
        raise InvalidInputError(f"views-axis: the volume has no axis {view_axis!r}; it has {', '.join(volume.axes)}.")
    _check_axes(volume, view_axis)
    channels = (0,) if view_axis == "c" else _select("channels", config.channels, volume.n_channels)
    n_views = volume.extent(view_axis) if view_axis else 1
    nominal_psf = tczyx_shape is not None and not config.psf
    if nominal_psf:
        kernels, warnings = _nominal_psfs(volume, channels, n_views)
    else:
        kernels, warnings = _read_psfs(config, volumes, channels, n_views)
    model = models.resolve(config.model) if config.method == "garl" else None
    warnings += _model_notes(config, volume, model)
    if config.keep_bits is not None and _output_dtype(config, volume) != "float32":
        raise InvalidInputError(
            "keep-bits: rounds floating point only, the output is uint16; add --dtype float32 or drop it."
        )
    workers, threads, cuda = _local_workers(config)
    costs = _costs(config, model, n_views, threads, cuda=cuda)
    common = _request(config, volumes, channels, kernels, model, workers=workers, costs=costs, cuda=cuda)
    nominal = _nominal_settings(config, volume.voxel_zyx_um, model)

    def plan_one(volume: VolumeInfo) -> tuple[Plan, list[str]]:
        own = _request_for(volume, common, config)
        # To a PSF that nobody has measured no halo is calibrated.
        plan = make_plan(own) if nominal_psf else halo.make_plan(own, nominal, kernels.values(), model)
        return plan, [*halo.warnings(plan, own), *_reading_warning(plan)]

    # Volumes of one layout share a plan.
    made = {layout: plan_one(volume) for layout, volume in {_layout(v): v for v in volumes}.items()}
    warnings += dict.fromkeys(sentence for _, sentences in made.values() for sentence in sentences)
    plans = tuple(made[_layout(volume)][0] for volume in volumes)
    outside, notes = _outside_mask(config, volumes, plans)
    warnings += notes
    return Outline(
        config, images, volumes, plans, kernels, model, outside, workers, threads, cuda, costs, tuple(warnings)
    )


def _model_notes(config: JobConfig, volume: VolumeInfo, model: WcrrWeights | None) -> list[str]:
    """Say what is odd about a learned prior."""
    if model is None:
        return []
    notes = []
    if model.card.get("name") == "standin":
        notes.append(
            "The learned prior is the hand-set stand-in, not trained weights; leave --model out for the trained one."
        )
    if config.update == "convergent" and model.log_mu > math.log(10 * MU_MAX):
        notes.append(
            f"The model's μ of {math.exp(model.log_mu):.0f} is capped at {MU_MAX:.0f}; --update reference keeps it, and chatters."
        )
    sigma = model.sigma_default if config.sigma is None else config.sigma
    return [*notes, *models.outside_training(model, volume.voxel_zyx_um, sigma)]


def _request(
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
    """Return what the plans of all volumes are made from; `_request_for` completes it."""
    volume, kernel = volumes[0], next(iter(kernels.values()))
    return Request(
        zyx_shape=volume.zyx_shape,
        psf_shape=triple(max(k.shape[a] for k in kernels.values()) for a in (1, 2, 3)),
        voxel_zyx_um=volume.voxel_zyx_um,
        channels=channels,
        n_views=len(kernel),
        input_itemsize=np.dtype(volume.dtype).itemsize,
        output_itemsize=np.dtype(_output_dtype(config, volume)).itemsize,
        prior=_prior_memory(config.method, model, cuda=cuda),
        budget_bytes=_budget(config, workers),
        device_budget_bytes=int(DEVICE_SHARE * device_memory_bytes()) if cuda else None,
        n_workers=max(workers // len(volumes), 1),
        costs=costs,
        iterations=_iterations(config),
        block_shape=_explicit(config.block_shape),
        halo=_explicit(config.halo),
        seam_tolerance=config.seam_tolerance,
        blend=_explicit(config.blend),
        chunk_shape=_explicit(config.chunks),
        shard_shape=_explicit(config.shards),
        n_levels=None if config.levels == "auto" else config.levels,
        sharded=config.ome_version == "0.5",
    )


def _layout(volume: VolumeInfo) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what of a volume its plan depends on; the rest is common to all volumes of a job."""
    return volume.shape, volume.chunk_shape


def _request_for(volume: VolumeInfo, request: Request, config: JobConfig) -> Request:
    """Complete a request with what is a volume's own."""
    moving = config.views_axis != "t"
    return replace(
        request,
        zyx_shape=volume.zyx_shape,
        input_chunk_shape=_space(volume, volume.chunk_shape),
        roi=_roi(config, volume),
        timepoints=_select("timepoints", config.timepoints, volume.n_timepoints) if moving else (0,),
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
    return PriorMemory(WCRR_WINDOW_BYTES, work_bytes(model.layers))


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
    if then > now / 2:
        return [
            f"Reading decodes {now:.1f} voxels per voxel written, most of them halo; larger blocks (--block-shape, or more "
            "--memory) would help."
        ]
    return [
        f"Reading decodes {now:.1f} voxels per voxel written, for the input has chunks of {zyx_text(plan.input_chunk_shape)}; "
        f"with {zyx_text(better)} it would be {then:.1f}."
    ]


def prepare(outline: Outline) -> Job:
    """Read samples of the volume and decide, per channel, what all its blocks share; writes nothing."""
    config = outline.config
    settings: dict[int, Settings] = {}
    calibrations: dict[int, ChannelCalibration] = {}
    draft = _draft_settings(config, outline.volume.voxel_zyx_um, outline.model)
    for channel in outline.plan.channels:
        sampling = calibration.Sampling(
            volumes=tuple((v, plan.timepoints) for v, plan in zip(outline.volumes, outline.plans, strict=True)),
            channel=channel,
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
            masked=config.mask != "none",
            halo=outline.halo,
            auto_tau=config.tau == "auto",
            integer_output=outline.output_dtype == "uint16",
        )
    return Job(outline, settings, calibrations)


def _draft_settings(config: JobConfig, voxel_zyx_um: tuple[float, float, float], model: WcrrWeights | None) -> Settings:
    """Return what the settings say of the iteration; what the data decide is still missing."""
    return Settings(
        method=config.method,
        iterations=_iterations(config),
        tau=0.0 if config.tau == "auto" else config.tau,
        sigma=config.sigma if config.sigma is not None else (model.sigma_default if model else 0.0),
        background=0.0,
        intensity_scale=1.0,
        voxel_zyx_um=voxel_zyx_um,
        update=config.update,
        device=config.device,
    )


def _nominal_settings(
    config: JobConfig, voxel_zyx_um: tuple[float, float, float], model: WcrrWeights | None
) -> Settings:
    """Return the settings with which the halo is calibrated before any voxel is read."""
    draft = _draft_settings(config, voxel_zyx_um, model)
    if config.intensity_scale == "auto":
        photons, background = halo.PHOTONS, halo.PHOTONS * halo.BACKGROUND_SHARE
    else:
        photons = config.intensity_scale * config.gain
        background = photons * halo.BACKGROUND_SHARE
        if config.background != "auto":
            background = camera(config).background(config.background)
    kappa = model.kappa if model else 0.0
    tau = likely_tau(config.method, photons, draft.sigma, kappa) if config.tau == "auto" else draft.tau
    return replace(draft, tau=tau, intensity_scale=photons, background=background)


def _iterations(config: JobConfig) -> int:
    return config.iterations if config.iterations is not None else DEFAULT_ITERATIONS[config.method]


def plan_summary(outline: Outline) -> dict[str, Any]:
    """Return a plan as `bigdeconv plan --json` prints it."""
    plan = outline.plan
    return {
        "volumes": len(outline.volumes),
        "n_blocks": outline.n_blocks,
        "blocks_skipped": outline.blocks_outside,
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
        "predicted_seam_error": _rounded(plan.predicted_seam_error),
        "predicted_seam_errors": [_rounded(e) for e in plan.seam_errors],
        "seam_tolerance": outline.config.seam_tolerance,
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


def _rounded(error: float | None) -> float | None:
    return None if error is None else float(f"{error:.2g}")


def locations_read(outline: Outline) -> list[str]:
    """Return every path or URL that a job reads."""
    config = outline.config
    mask = [] if config.mask in {"auto", "none"} else [config.mask]
    model = [config.model] if Path(config.model).exists() else []
    return [*outline.images.locations, *(_parse_psf(entry)[2] for entry in config.psf), *mask, *model]


# --- inputs -----------------------------------------------------------------------------------------------------------


def _volumes(config: JobConfig, tczyx_shape: tuple[int, ...] | None) -> tuple[Collection, tuple[VolumeInfo, ...]]:
    """Find and describe the volumes of a job, or imagine one."""
    if tczyx_shape is None:
        images = find_images(config.input)
        return images, _describe(config, images)
    if config.mask not in {"auto", "none"}:
        raise InvalidInputError("mask, shape: a volume that does not exist yet has no labels; drop --mask.")
    dtype = "uint16" if config.dtype == "auto" else config.dtype
    voxel_um = _triple_or_none(config.voxel_um) or (1.0, 1.0, 1.0)
    return Collection(("",)), (omezarr.imagine(tczyx_shape, dtype=dtype, voxel_zyx_um=voxel_um),)


def _describe(config: JobConfig, images: Collection) -> tuple[VolumeInfo, ...]:
    voxel_um = _triple_or_none(config.voxel_um)
    volumes = tuple(omezarr.describe(where, level=config.level, voxel_zyx_um=voxel_um) for where in images.locations)
    for other in volumes[1:]:
        _require_alike(volumes[0], other, config.views_axis)
    return volumes


def _require_alike(first: VolumeInfo, other: VolumeInfo, view_axis: str | None) -> None:
    """Refuse volumes that one background, scale and PSF cannot serve; their shapes may differ."""

    def traits(volume: VolumeInfo) -> dict[str, Any]:
        return {
            "axes": ",".join(volume.axes),
            "dtype": np.dtype(volume.dtype).newbyteorder("=").name,
            "channels": volume.n_channels,
            "views": volume.extent(view_axis) if view_axis else 1,
            # What is stored in decimals may differ in the last one.
            "voxel size (z,y,x µm)": ",".join(f"{v:.5g}" for v in volume.voxel_zyx_um),
        }

    for (name, wanted), got in zip(traits(first).items(), traits(other).values(), strict=True):
        if got != wanted:
            raise InvalidInputError(
                f"input: {other.location} has {name} {got}, but {first.location} has {wanted}; volumes of one job share all but "
                "their extent: run those that differ apart."
            )


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


def _outside_mask(
    config: JobConfig, volumes: tuple[VolumeInfo, ...], plans: tuple[Plan, ...]
) -> tuple[np.ndarray | None, list[str]]:
    """Find the blocks that have no foreground within reach, and say what is odd about the mask."""
    if config.mask in {"auto", "none"}:
        return None, []
    found, notes = [], list[str]()
    for volume, plan in zip(volumes, plans, strict=True):
        mask = open_mask(config.mask, volume, config.views_axis)
        found.append(_outside_one(mask, plan))
        if not mask.covers(volume.zyx_shape):
            notes.append(
                "The mask reaches over a part of the volume only; what it does not reach counts as outside of it."
            )
    outside = np.concatenate(found)
    if outside.all():
        notes.append("The mask has no foreground near any block: nothing is computed and the output is empty.")
    return outside, list(dict.fromkeys(notes))


def _outside_one(mask: Mask, plan: Plan) -> np.ndarray:
    spans = [plan.reach(axis) for axis in range(3)]
    # One time point or channel of the mask may serve all of the volume's.
    served = [
        (min(t, mask.info.n_timepoints - 1), min(c, mask.info.n_channels - 1))
        for t, c in product(plan.timepoints, plan.channels)
    ]
    occupied = {key: mask.occupied(spans, timepoint=key[0], channel=key[1]) for key in dict.fromkeys(served)}
    return np.concatenate([~occupied[key].transpose(plan.axis_order).ravel() for key in served])


def _read_psfs(
    config: JobConfig, volumes: tuple[VolumeInfo, ...], channels: tuple[int, ...], n_views: int
) -> tuple[dict[int, np.ndarray], list[str]]:
    """Read and prepare the PSFs of every channel, ``v z y x``; none may be wider than the narrowest volume."""
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
            prepared[files] = _prepare_psf(files, config, volumes, n_views)
            warnings += prepared[files].notes
        kernels[channel] = prepared[files].kernels
    return kernels, warnings


def _nominal_psfs(
    volume: VolumeInfo, channels: tuple[int, ...], n_views: int
) -> tuple[dict[int, np.ndarray], list[str]]:
    """Return a Gaussian of four standard deviations' radius for all channels and views; it ends where a thin volume does."""
    radius = [min(NOMINAL_PSF_RADIUS, (n - 1) // 2) for n in volume.zyx_shape]
    kernel = psf.gaussian([r / 4 for r in radius])
    box = ",".join(str(n) for n in kernel.shape)
    kernels = dict.fromkeys(channels, np.stack([kernel] * n_views))
    return kernels, [f"No --psf is given: the plan is for a PSF box of {box} voxels."]


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


def _prepare_psf(
    files: tuple[str, ...], config: JobConfig, volumes: tuple[VolumeInfo, ...], n_views: int
) -> psf.PreparedPSF:
    arrays = [read_psf(file) for file in files]
    if len({a.shape for a in arrays}) > 1:
        raise InvalidInputError(
            f"psf: the files of one channel's views have shapes {[a.shape for a in arrays]}; give one shape."
        )
    array = arrays[0] if len(arrays) == 1 else np.stack(arrays)
    prepared = psf.prepare(
        array,
        voxel_zyx_um=volumes[0].voxel_zyx_um,
        psf_voxel_zyx_um=config.psf_voxel_um,
        volume_zyx_shape=triple(min(extents) for extents in zip(*(v.zyx_shape for v in volumes), strict=True)),
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
