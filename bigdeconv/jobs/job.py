"""From settings to a job: the choices that are made before the first block.

`plan_job` reads metadata and plans; `calibrate_job` reads samples and chooses the numbers that all blocks share.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bigdeconv import models
from bigdeconv.calibration import block_cost, channel, halo, tuning
from bigdeconv.calibration.numbers import LEAST_BUDGET_SECONDS, UserOverrides, first_guess
from bigdeconv.calibration.samples import Samples, Sampling
from bigdeconv.config import DEFAULT_ITERATIONS, MAX_ITERATIONS
from bigdeconv.engine import machine
from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import fast_length, triple, zyx_text
from bigdeconv.jobs import channel_psfs, inputs, plan_request
from bigdeconv.jobs.facts import JobFacts, JobPlan
from bigdeconv.jobs.resources import find_resources
from bigdeconv.numerics.camera import Camera
from bigdeconv.numerics.priors.wcrr import compiled_filters_available
from bigdeconv.numerics.restoration import MU_MAX, ResolvedSettings, cpu_threads
from bigdeconv.planning.memory import Extents, driver_terms
from bigdeconv.planning.planner import CHUNK
from bigdeconv.storage.mask import blocks_outside

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from bigdeconv.calibration.channel import ChannelCalibration
    from bigdeconv.config import JobConfig
    from bigdeconv.jobs.inputs import Inputs
    from bigdeconv.numerics.priors.weights import WcrrWeights
    from bigdeconv.numerics.restoration import CalibratedSettings
    from bigdeconv.planning.blocks import Plan
    from bigdeconv.planning.memory import Terms
    from bigdeconv.planning.planner import PlanRequest
    from bigdeconv.planning.resources import Resources
    from bigdeconv.psf import PSF
    from bigdeconv.storage.omezarr import VolumeInfo

MAX_BLOCKS = 10**9
"""Of a job: the driver keeps two bytes for each."""
DECODING_LIMIT = 4.0
"""Voxels decoded per voxel written above which a plan warns: blocks of a few halos reach three, at a thousandth of the work."""
BUDGET_SHARE = 0.15
"""CPU time of the choices before the first block, as a share of the predicted run's."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A planned job and the numbers that its blocks share."""

    plan: JobPlan
    calibrations: dict[int, ChannelCalibration]
    """By channel."""
    sample_digests: dict[int, str]
    """Checksum of the samples, by channel."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for each thing that the user should know."""
        found = list(self.plan.warnings)
        for number, calibration in self.calibrations.items():
            found += [f"Channel {number}: {w}" for w in calibration.warnings]
        return tuple(found)


def tune_job(plan: JobPlan, on_step: Callable[[str], None]) -> list[tuning.Tuning]:
    """Try methods and settings side by side on parts of each channel; nothing is written.

    Parameters
    ----------
    plan : JobPlan
        Of the learned prior, whatever its settings say of the method.
    on_step : callable
        Called with each result, in words.
    """
    facts = plan.facts
    here = replace(facts.settings, device=machine.device_here(facts.settings.device))
    assert plan.model is not None
    found = []
    for number in facts.channels:
        sampling = _sampling(facts, number, plan.n_views)
        within = None if facts.config.roi is None else facts.largest_plan.roi
        with cpu_threads(facts.resources.threads):
            found.append(
                tuning.tune(
                    Samples.read(replace(sampling, within=within)),
                    plan.psfs[number],
                    facts.camera,
                    here,
                    plan.model,
                    _overrides(facts),
                    masks_defects=facts.config.masks_defects,
                    on_step=on_step,
                )
            )
    return found


class Chosen(NamedTuple):
    """Parts of a plan that the data have decided."""

    iterations: int
    psfs: dict[int, PSF]
    """By channel."""


def plan_job(
    config: JobConfig,
    tczyx_shape: tuple[int, ...] | None = None,
    *,
    resources: Resources | None = None,
    chosen: Chosen | None = None,
) -> JobPlan:
    """Read metadata, PSFs and mask, calibrate halo and costs, and plan.  No voxel is read; only a cache is written.

    Parameters
    ----------
    config : JobConfig
    tczyx_shape : tuple of int, optional
        Extent of a volume that does not exist yet.  Then ``config.input`` is not read, ``config.dtype`` is the type of the input
        too, and a PSF may be left out.
    resources : Resources, optional
        The workers.  Default: those of this machine.
    chosen : Chosen, optional
        Iterations and PSFs.  Default: the upper bound of iterations, and the PSFs as given.

    Raises
    ------
    BigdeconvError
        If the input, a file or a setting cannot be used; the sentence says what to do.
    """
    found = inputs.find(config, tczyx_shape)
    psfs, warnings = channel_psfs.read(config, found)
    psfs = psfs if chosen is None else chosen.psfs
    model = models.resolve(config.model) if config.method == "garl" else None
    warnings += _model_warnings(config, found.first_volume, model)
    output_dtype = plan_request.output_dtype(config, found.first_volume)
    if config.keep_bits is not None and output_dtype != "float32":
        raise InvalidInputError(
            "keep-bits: rounds floating point only, the output is uint16; add --dtype float32 or drop it."
        )
    resources = resources or find_resources(config)
    settings = _resolved_settings(config, found.first_volume, model, resources)
    if chosen is not None:
        settings = replace(settings, iterations=chosen.iterations)
    request = plan_request.for_job(config, found, psfs, model, settings, resources)
    plans, notes = _plans(config, found, request, settings, psfs, model)
    warnings += notes
    outside, notes = _outside_mask(config, found, plans)
    warnings += notes
    facts = JobFacts(
        config=config,
        settings=settings,
        images=found.images,
        volumes=found.volumes,
        plans=plans,
        resources=resources,
        output_axes=tuple(a for a in "tczyx" if a in found.first_volume.axes and a != config.views_axis),
        output_dtype=output_dtype,
        blocks_outside=0 if outside is None else int(outside.sum()),
    )
    memory = _driver_memory(facts, request, found.n_views)
    given = json.dumps([psf.digest for _, psf in sorted(psfs.items())])
    psf_digest = hashlib.sha256(given.encode()).hexdigest()[:16]
    return JobPlan(facts, psfs, model, outside, request.costs, memory, tuple(warnings), psf_digest)


def calibrate_job(plan: JobPlan, on_step: Callable[[str], None] = lambda _: None) -> Job:
    """Read samples and choose, per channel, the numbers that all its blocks share; nothing is written.

    Where the data choose fewer iterations than were planned for, or another width of the PSF, the job is planned again.

    Parameters
    ----------
    plan : JobPlan
    on_step : callable
        Called with the result of each choice, in words.
    """
    facts = plan.facts
    here = replace(facts.settings, device=machine.device_here(facts.settings.device))
    limits = channel.Limits(_budget_seconds(plan), DEFAULT_ITERATIONS[facts.config.method], on_step)
    calibrations: dict[int, ChannelCalibration] = {}
    digests: dict[int, str] = {}
    for number in facts.channels:
        samples = Samples.read(_sampling(facts, number, plan.n_views))
        digests[number] = samples.digest
        # As many threads as a worker has: more make small windows crawl beside other work.
        with cpu_threads(facts.resources.threads):
            calibrations[number] = channel.calibrate(
                samples,
                plan.psfs[number],
                facts.camera,
                here,
                plan.model,
                _overrides(facts),
                facts.largest_plan.halo,
                limits,
                masks_defects=facts.config.masks_defects,
            ).on(facts.settings.device)
    machine.release_gpu_memory()
    return Job(_planned_again(plan, calibrations), calibrations, digests)


def _planned_again(plan: JobPlan, calibrations: dict[int, ChannelCalibration]) -> JobPlan:
    """Return the plan for the iterations and PSFs that were chosen: its halo follows them."""
    facts = plan.facts
    iterations = max(calibration.numbers.settings.iterations for calibration in calibrations.values())
    psfs = {number: calibration.psf for number, calibration in calibrations.items()}
    same_psfs = all(psfs[number].digest == plan.psfs[number].digest for number in psfs)
    if iterations == facts.settings.iterations and same_psfs:
        return replace(plan, psfs=psfs)
    again = plan_job(facts.config, resources=facts.resources, chosen=Chosen(iterations, psfs))
    return replace(again, psf_digest=plan.psf_digest)


def _budget_seconds(plan: JobPlan) -> float:
    """Return the CPU time that the choices of a channel may take: a fair share beside the run itself."""
    of_run = BUDGET_SHARE * plan.seconds_per_block * plan.facts.n_blocks / len(plan.facts.channels)
    return max(LEAST_BUDGET_SECONDS, 3 * plan.seconds_per_block, of_run)


def sample_digests(facts: JobFacts, n_views: int) -> dict[int, str]:
    """Return the checksum of each channel's samples: enough to identify a run, without choosing its numbers again."""
    return {n: Samples.read(_sampling(facts, n, n_views)).digest for n in facts.channels}


def locations_read(facts: JobFacts) -> list[str]:
    """Return every path and URL that a job reads."""
    config = facts.config
    mask = [] if config.mask_labels is None else [config.mask_labels]
    model = [config.model] if Path(config.model).exists() else []
    return [*facts.images.locations, *channel_psfs.files(config), *mask, *model]


def _resolved_settings(
    config: JobConfig, volume: VolumeInfo, model: WcrrWeights | None, resources: Resources
) -> ResolvedSettings:
    iterations = MAX_ITERATIONS[config.method] if config.iterations is None else config.iterations
    default_sigma = model.sigma_default if model else 0.0
    return ResolvedSettings(
        method=config.method,
        iterations=iterations,
        voxel_zyx_um=volume.voxel_zyx_um,
        sigma=default_sigma if config.sigma is None else config.sigma,
        update=config.update,
        device=resources.device,
    )


def _plans(
    config: JobConfig,
    found: Inputs,
    request: PlanRequest,
    settings: ResolvedSettings,
    psfs: dict[int, PSF],
    model: WcrrWeights | None,
) -> tuple[tuple[Plan, ...], list[str]]:
    """Return a plan for each volume, and warnings; volumes of one layout share a plan."""
    nominal = _nominal_settings(config, settings, model)
    # For a hypothetical PSF no halo is calibrated.
    measured = () if channel_psfs.are_nominal(config, found) else tuple(psfs.values())
    made: dict[tuple[tuple[int, ...], tuple[int, ...]], Plan] = {}
    warnings: list[str] = []
    for volume in found.volumes:
        layout = volume.shape, volume.chunk_shape
        if layout in made:
            continue
        own = plan_request.for_volume(volume, request, config)
        plan = made[layout] = halo.make_plan(own, nominal, measured, model)
        warnings += [*halo.warnings(plan, own), *_decoding_warning(plan)]
    plans = tuple(made[volume.shape, volume.chunk_shape] for volume in found.volumes)
    if (n_blocks := sum(plan.n_blocks for plan in plans)) > MAX_BLOCKS:
        raise InvalidInputError(
            f"input: it would take {n_blocks} blocks; expected at most {MAX_BLOCKS}. Take larger blocks (--block-shape, "
            "--memory), or a part at a time (--roi, --timepoints)."
        )
    return plans, list(dict.fromkeys(warnings))


def _nominal_settings(config: JobConfig, settings: ResolvedSettings, model: WcrrWeights | None) -> CalibratedSettings:
    """Return the settings with which the halo is calibrated, before any voxel is read."""
    if config.intensity_scale is None:
        photons, background = halo.PHOTONS, halo.PHOTONS * halo.BACKGROUND_SHARE
    else:
        photons = config.intensity_scale * (config.gain or 1.0)
        background = photons * halo.BACKGROUND_SHARE
        if config.background is not None:
            camera = Camera(config.camera_offset, config.gain or 1.0, config.read_noise)
            background = camera.background(config.background)
    tau = first_guess(settings, photons, model) if config.tau is None else config.tau
    return settings.calibrated(tau=tau, background=background, intensity_scale=photons)


def _outside_mask(config: JobConfig, found: Inputs, plans: tuple[Plan, ...]) -> tuple[np.ndarray | None, list[str]]:
    if config.mask_labels is None:
        return None, []
    return blocks_outside(config.mask_labels, found.volumes, plans, config.views_axis)


def _sampling(facts: JobFacts, number: int, n_views: int) -> Sampling:
    volumes = tuple((volume, plan.timepoints) for volume, plan in zip(facts.volumes, facts.plans, strict=True))
    return Sampling(volumes, number, facts.config.views_axis, n_views)


def _overrides(facts: JobFacts) -> UserOverrides:
    config, output_scale = facts.config, facts.config.output_scale
    if output_scale is None and facts.output_dtype != "uint16":
        output_scale = 1.0  # floating point needs no room to grow
    return UserOverrides(
        background=config.background,
        intensity_scale=config.intensity_scale,
        tau=config.tau,
        output_scale=output_scale,
        sigma=config.sigma,
        iterations=config.iterations,
        gain=config.gain,
        psf_scale=None if config.psf_scale is None else (config.psf_scale[0], config.psf_scale[1], config.psf_scale[2]),
    )


def _driver_memory(facts: JobFacts, request: PlanRequest, n_views: int) -> Terms:
    """Return the peak memory of the driver while it plans and calibrates."""
    boxes = [region.box for region in _sampling(facts, facts.channels[0], n_views).regions()]
    halo_zyx = facts.largest_plan.halo
    shape = [max(volume.zyx_shape[a] for volume in facts.volumes) for a in range(3)]
    widest = [max(box.shape[a] for box in boxes) for a in range(3)]
    read = triple(min(w + 2 * h, n) for w, h, n in zip(widest, halo_zyx, shape, strict=True))
    fft = triple(fast_length(n + p - 1) for n, p in zip(read, request.psf_shape, strict=True))
    sampled = n_views * sum(box.size for box in boxes)
    return driver_terms(request.contents, sampled, Extents(read, fft, read), block_cost.largest_window())


def _model_warnings(config: JobConfig, volume: VolumeInfo, model: WcrrWeights | None) -> list[str]:
    """Return what is unusual about a learned prior, one sentence each."""
    if model is None:
        return []
    found = []
    if not compiled_filters_available():
        found.append(
            "Numba is not installed: the learned prior is computed by plain convolutions, several times slower on a CPU; "
            "pip install numba."
        )
    if model.card.get("name") == "finite-differences":
        found.append(
            "The learned prior is hand-set finite differences, not trained; leave --model out for a trained one."
        )
    if config.update == "convergent" and model.log_mu > math.log(10 * MU_MAX):
        found.append(
            f"The model's μ of {math.exp(model.log_mu):.0f} is capped at {MU_MAX:.0f}; --update reference keeps it uncapped."
        )
    sigma = model.sigma_default if config.sigma is None else config.sigma
    return [*found, *models.outside_training(model, volume.voxel_zyx_um, sigma)]


def _decoding_warning(plan: Plan) -> list[str]:
    """Return advice on chunks or blocks where reading decodes many voxels that are not needed."""
    now = plan.decode_amplification
    if now <= DECODING_LIMIT:
        return []
    better = triple(min(CHUNK, n) for n in plan.zyx_shape)
    then = replace(plan, input_chunk_shape=better).decode_amplification
    if then > now / 2:
        return [
            f"Reading decodes {now:.1f} voxels per voxel written: halos, and the rest of the input's chunks. Larger "
            "blocks (--block-shape, or more --memory) or a larger region help, where they are possible."
        ]
    return [
        f"Reading decodes {now:.1f} voxels per voxel written, because the input has chunks of "
        f"{zyx_text(plan.input_chunk_shape)}; with {zyx_text(better)} it would be {then:.1f}."
    ]
