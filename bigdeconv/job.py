"""From settings to a job: everything that is decided before the first block.

`inspect` reads metadata and plans; `prepare` also reads samples and decides what all blocks share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigdeconv import calibration, channel_psfs, halo, inputs, machine, models, probes, request
from bigdeconv.deconvolution import MU_MAX, Settings, cpu_threads, likely_tau
from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import ceil_div, triple, zyx_text
from bigdeconv.intensity import Camera
from bigdeconv.planner import CHUNK
from bigdeconv.storage.mask import blocks_outside

if TYPE_CHECKING:
    import numpy as np

    from bigdeconv.blocks import Plan
    from bigdeconv.calibration import ChannelCalibration
    from bigdeconv.config import JobConfig
    from bigdeconv.costs import Costs
    from bigdeconv.inputs import Inputs
    from bigdeconv.planner import Request
    from bigdeconv.priors.weights import WcrrWeights
    from bigdeconv.storage.collection import Collection
    from bigdeconv.storage.omezarr import VolumeInfo

DECODING_LIMIT = 3.0
"""Voxels decoded per voxel written from which on a plan warns."""


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
        return request.iterations(self.config)

    @property
    def seconds_per_block(self) -> float:
        """Predicted CPU time of a block, or a GPU's."""
        n_views = next(iter(self.kernels.values())).shape[0]
        return sum(self.costs.total(plan, n_views, self.iterations) for plan in self.plans) / self.n_blocks

    @property
    def wall_seconds(self) -> float:
        """Predicted time of blocks and probes with the workers of this machine; blocks outside the mask take none."""
        blocks = self.n_blocks - self.blocks_outside
        probed = probes.available(self.plans, self.config.seam_probes)
        rounds = ceil_div(blocks, self.workers) + ceil_div(probed, self.workers)
        return self.seconds_per_block * rounds / (1 if self.cuda else self.threads)

    @property
    def output_dtype(self) -> str:
        """What is stored, as numpy names it."""
        return request.output_dtype(self.config, self.volume)


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
    found = inputs.find(config, tczyx_shape)
    kernels, warnings = channel_psfs.read(config, found)
    model = models.resolve(config.model) if config.method == "garl" else None
    warnings += _model_notes(config, found.volume, model)
    if config.keep_bits is not None and request.output_dtype(config, found.volume) != "float32":
        raise InvalidInputError(
            "keep-bits: rounds floating point only, the output is uint16; add --dtype float32 or drop it."
        )
    shares = machine.share_out(config)
    asked = request.for_job(config, found, kernels, model, shares)
    plans, notes = _plans(config, found, asked, kernels, model)
    warnings += notes
    outside, notes = _outside_mask(config, found, plans)
    warnings += notes
    return Outline(
        config=config,
        images=found.images,
        volumes=found.volumes,
        plans=plans,
        kernels=kernels,
        model=model,
        outside=outside,
        workers=shares.workers,
        threads=shares.threads,
        cuda=shares.cuda,
        costs=asked.costs,
        warnings=tuple(warnings),
    )


def _plans(
    config: JobConfig, found: Inputs, asked: Request, kernels: dict[int, np.ndarray], model: WcrrWeights | None
) -> tuple[tuple[Plan, ...], list[str]]:
    """Return a plan for each volume, and what the user should know of them; volumes of one layout share a plan."""
    nominal = _nominal_settings(config, found.volume.voxel_zyx_um, model)
    made: dict[tuple[tuple[int, ...], tuple[int, ...]], Plan] = {}
    notes: list[str] = []
    for volume in found.volumes:
        layout = volume.shape, volume.chunk_shape
        if layout in made:
            continue
        own = request.for_volume(volume, asked, config)
        # To a PSF that nobody has measured no halo is calibrated.
        measured = () if channel_psfs.are_nominal(config, found) else kernels.values()
        plan = made[layout] = halo.make_plan(own, nominal, measured, model)
        notes += [*halo.warnings(plan, own), *_reading_warning(plan)]
    return tuple(made[volume.shape, volume.chunk_shape] for volume in found.volumes), list(dict.fromkeys(notes))


def _outside_mask(config: JobConfig, found: Inputs, plans: tuple[Plan, ...]) -> tuple[np.ndarray | None, list[str]]:
    if config.mask in {"auto", "none"}:
        return None, []
    return blocks_outside(config.mask, found.volumes, plans, config.views_axis)


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
    given = _given_numbers(outline)
    for channel in outline.plan.channels:
        sampling = calibration.Sampling(
            volumes=tuple((v, plan.timepoints) for v, plan in zip(outline.volumes, outline.plans, strict=True)),
            channel=channel,
            view_axis=config.views_axis,
            camera=camera(config),
            kernels=outline.kernels[channel],
            masked=config.mask != "none",
        )
        # As a worker computes: more threads than that make small windows crawl beside other work.
        with cpu_threads(outline.threads):
            calibrations[channel], settings[channel] = calibration.calibrate(
                sampling, draft, outline.model, given, outline.plan.halo
            )
    return Job(outline, settings, calibrations)


def _given_numbers(outline: Outline) -> calibration.Given:
    config = outline.config
    # What is stored as it is needs no room to grow.
    scale = 1.0 if config.output_scale == "auto" and outline.output_dtype != "uint16" else config.output_scale
    return calibration.Given(
        *(None if n == "auto" else n for n in (config.background, config.intensity_scale, config.tau, scale))
    )


def _draft_settings(config: JobConfig, voxel_zyx_um: tuple[float, float, float], model: WcrrWeights | None) -> Settings:
    """Return what the settings say of the iteration; what the data decide is still missing."""
    return Settings(
        method=config.method,
        iterations=request.iterations(config),
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
    return [*outline.images.locations, *channel_psfs.files(config), *mask, *model]


def camera(config: JobConfig) -> Camera:
    """Return the camera that the settings describe."""
    return Camera(config.camera_offset, config.gain, config.read_noise)
