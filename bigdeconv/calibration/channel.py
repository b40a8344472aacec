"""Calibration of a channel: camera, mask, background, scales, prior and iterations, chosen once for all its blocks.

A block with numbers of its own would be a visible tile, a time point with numbers of its own would flicker.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from bigdeconv import models
from bigdeconv.calibration.choices import Window
from bigdeconv.calibration.numbers import (
    LEAST_BUDGET_SECONDS,
    Decision,
    Findings,
    choose_camera,
    decide,
    signal_levels,
)
from bigdeconv.calibration.samples import SampleRegion
from bigdeconv.engine.recipe import ChannelNumbers
from bigdeconv.geometry import Box
from bigdeconv.numerics import NUMERICS_VERSION, estimation
from bigdeconv.numerics.camera import DataMask, invalid_voxels, prepare_views
from bigdeconv.numerics.restoration import CalibratedSettings, make_prior, restore
from bigdeconv.numerics.thinning import Place
from bigdeconv.psf import scaled
from bigdeconv.storage.cache import cached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bigdeconv.calibration.numbers import SignalLevels, UserOverrides
    from bigdeconv.calibration.samples import Samples
    from bigdeconv.geometry import Triple
    from bigdeconv.numerics.camera import Camera
    from bigdeconv.numerics.priors.weights import WcrrWeights
    from bigdeconv.numerics.restoration import ResolvedSettings
    from bigdeconv.psf import PSF
    from bigdeconv.storage.omezarr import VolumeInfo

HEADROOM = 4.0
"""Ratio of the largest stored integer to the brightest voxel of the calibration."""
UINT16_MAX = 65535
MAX_VARIATION = 2.0
"""Ratio of the brightest to the dimmest sampled time point above which a warning is given."""
VERSION = 2
"""Raised whenever the same samples give other choices than before, beside other numerics."""
N_RESTORED_REGIONS = 2
"""Sample regions that are restored to choose the output scale."""


@dataclass(frozen=True, slots=True)
class ChannelCalibration:
    """Result of the calibration of one channel."""

    numbers: ChannelNumbers
    psf: PSF
    """The PSF that is used: as given, or scaled."""
    findings: Findings
    warnings: tuple[str, ...]
    restored: np.ndarray | None = field(default=None, repr=False, compare=False)
    """The brightest of the sample regions that were restored, ``z y x`` in photons."""

    def on(self, device: Literal["cpu", "cuda"]) -> ChannelCalibration:
        """Return the same for workers with another device than the process that calibrated."""
        settings = replace(self.numbers.settings, device=device)
        return replace(self, numbers=replace(self.numbers, settings=settings))


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a calibration, and the listener to its steps."""

    budget_seconds: float = LEAST_BUDGET_SECONDS
    """CPU time for the choices."""
    default_iterations: int = 50
    """Number of iterations where neither the user nor the data choose it."""
    on_step: Callable[[str], None] = lambda _: None
    """Called with the result of each choice, in words."""


def calibrate(
    samples: Samples,
    psf: PSF,
    given: Camera,
    settings: ResolvedSettings,
    model: WcrrWeights | None,
    overrides: UserOverrides,
    halo: Triple,
    limits: Limits,
    *,
    masks_defects: bool = True,
) -> ChannelCalibration:
    """Choose the numbers of one channel from its samples.

    Parameters
    ----------
    samples : Samples
    psf : PSF
    given : Camera
        Camera of the settings.
    settings : ResolvedSettings
        With the upper bound of iterations where the data choose their number.
    model : WcrrWeights or None
        Learned prior.
    overrides : UserOverrides
        Numbers that are not to be chosen.
    halo : tuple of int, z y x
        Halo in voxels around a region that is restored to choose the output scale.
    limits : Limits
    masks_defects : bool
        Whether fill values and hot pixels are masked.
    """
    look = look_at(samples, psf, given, settings.method, overrides, limits, masks_defects=masks_defects)
    camera, levels = look.camera, look.levels
    calibrated, psf, findings = _decided(samples, look, psf, settings, model, overrides, limits)
    data_mask = replace(look.data_mask, background=calibrated.background, intensity_scale=calibrated.intensity_scale)
    ranked = look.ranked
    output_scale, restored = overrides.output_scale, None
    if output_scale is None:
        brightest = [samples.regions[i] for i in ranked[:N_RESTORED_REGIONS]]
        found = [_restored(region, samples, psf, camera, calibrated, model, data_mask, halo) for region in brightest]
        restored = max(found, key=np.max)
        output_scale = _with_headroom(float(restored.max()))
    elif camera != given:
        output_scale *= given.gain / camera.gain  # as in counts, which are what the user knows
    warnings = [
        *findings.warnings,
        *_warnings(samples, given, camera, data_mask.fill, calibrated.background, is_flat=levels.is_flat),
    ]
    numbers = ChannelNumbers(calibrated, data_mask, output_scale, camera)
    return ChannelCalibration(numbers, psf, findings, tuple(warnings), restored)


class FirstLook(NamedTuple):
    """Findings in the samples of a channel before anything is restored."""

    camera: Camera
    findings: Findings
    levels: SignalLevels
    data_mask: DataMask
    ranked: list[int]
    """Numbers of the sample regions, the brightest first."""
    saturation: float
    """Photons."""

    def windows(self, samples: Samples) -> Iterator[Window]:
        """Yield the brightest region, and one that a quarter of the regions exceed."""
        for i in sorted({0, len(self.ranked) // 4}):
            yield _window(samples, self.ranked[i], self.camera, self.data_mask)


def look_at(
    samples: Samples,
    psf: PSF,
    given: Camera,
    method: str,
    overrides: UserOverrides,
    limits: Limits,
    *,
    masks_defects: bool,
) -> FirstLook:
    """Choose the camera, and estimate fill value, background and intensity scale; parameters as in `calibrate`."""
    volume = samples.sampling.volumes[0][0]
    fill = estimation.detect_fill((c for _, c in samples.views()), volume.fill_value) if masks_defects else None
    camera, findings = choose_camera(lambda: _counts(samples, fill), given, overrides, method, _ceiling(volume))
    if findings.gain_interval is not None:
        low, high = findings.gain_interval
        taken = "counts are taken as photons" if camera == given else f"dark level {camera.offset:.4g} counts"
        limits.on_step(f"gain {camera.gain:.3g} photons per count ({low:.3g} to {high:.3g}): {taken}")
    levels = signal_levels(lambda: _photons(samples, camera, fill), psf, camera, overrides, offset=given.offset)
    hot_ratio = psf.hot_ratio if masks_defects else None
    data_mask = DataMask(fill, hot_ratio, levels.background, levels.intensity_scale)
    ranked = _by_brightness(samples, camera, data_mask)
    return FirstLook(camera, findings, levels, data_mask, ranked, _saturation(volume, camera))


def _decided(
    samples: Samples,
    look: FirstLook,
    psf: PSF,
    settings: ResolvedSettings,
    model: WcrrWeights | None,
    overrides: UserOverrides,
    limits: Limits,
) -> Decision:
    """Return what the data decide, from the cache where the same was asked before."""
    asked = (
        *(NUMERICS_VERSION, VERSION, samples.digest, psf.digest, look.camera, look.levels, look.saturation),
        *(settings, "" if model is None else models.digest(model), overrides),
        *(limits.budget_seconds, limits.default_iterations),
    )
    steps: list[str] = []

    def compute() -> dict[str, Any]:
        found = decide(
            settings,
            look.levels,
            lambda: look.windows(samples),
            psf,
            model,
            overrides,
            look.findings,
            saturation=look.saturation,
            budget_seconds=limits.budget_seconds,
            default_iterations=limits.default_iterations,
            on_step=steps.append,
        )
        return {"settings": asdict(found.settings), "findings": asdict(found.findings), "steps": steps}

    def parse(values: dict[str, Any]) -> Decision:
        for step in values["steps"]:
            limits.on_step(step)
        findings = TypeAdapter(Findings).validate_python(values["findings"])
        calibrated = TypeAdapter(CalibratedSettings).validate_python(values["settings"])
        used = psf if overrides.psf_scale is not None else scaled(psf, findings.psf_scale)
        return Decision(calibrated, used, findings)

    name = f"choices-{hashlib.sha256(repr(asked).encode()).hexdigest()[:24]}"
    # A busy machine makes some choices too slow: the next run tries again.
    return cached(name, compute, parse, keep=lambda values: not values["findings"]["not_chosen"])


def _window(samples: Samples, number: int, camera: Camera, data_mask: DataMask) -> Window:
    """Return a sample region as photons, with its place in the job."""
    region = samples.regions[number]
    photons, weights, _ = prepare_views(samples.counts[number], camera, data_mask)
    return Window(photons, weights, Place(region.timepoint, samples.sampling.channel, region.box.start))


def _counts(samples: Samples, fill: float | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the counts ``z y x`` of every view of every region, and the mask of its valid voxels."""
    for _, counts in samples.views():
        yield counts, _valid(counts, counts, fill)


def _photons(samples: Samples, camera: Camera, fill: float | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the photons ``z y x`` of every view of every region, and the mask of its valid voxels."""
    for _, counts in samples.views():
        photons = camera.photons(counts)
        yield photons, _valid(counts, photons, fill)


def _valid(counts: np.ndarray, photons: np.ndarray, fill: float | None) -> np.ndarray:
    not_finite, is_fill, hot = invalid_voxels(counts, photons, DataMask(fill=fill))
    return np.asarray(~(not_finite | is_fill | hot))


def _by_brightness(samples: Samples, camera: Camera, data_mask: DataMask) -> list[int]:
    """Return the numbers of the regions, the brightest first."""

    def brightness(counts: np.ndarray) -> float:
        photons, weights, _ = prepare_views(counts, camera, data_mask)
        return float(np.percentile(photons if weights is None else photons * weights, 99.9))

    values = [brightness(counts) for counts in samples.counts]
    return sorted(range(len(values)), key=lambda i: -values[i])


def _restored(
    region: SampleRegion,
    samples: Samples,
    psf: PSF,
    camera: Camera,
    settings: CalibratedSettings,
    model: WcrrWeights | None,
    data_mask: DataMask,
    halo: Triple,
) -> np.ndarray:
    """Restore a region with its halo; return the estimate ``z y x`` on the region, in photons."""
    volume, timepoint, box = region
    window = box.grow(halo).intersect(Box.of_shape(volume.zyx_shape))
    counts = samples.sampling.read(SampleRegion(volume, timepoint, window))
    photons, weights, _ = prepare_views(counts, camera, data_mask)
    estimate = restore(photons, weights, psf.operator(window, settings), make_prior(settings, model), settings)
    return estimate[box.relative_to(window.start).slices]


def _with_headroom(brightest: float) -> float:
    """Return the largest power of two at which `HEADROOM` times the brightest voxel fits in uint16."""
    if brightest <= 0 or not math.isfinite(brightest):
        return 1.0
    return 2.0 ** math.floor(math.log2(UINT16_MAX / (HEADROOM * brightest)))


def _ceiling(volume: VolumeInfo) -> float:
    """Return the counts from which on a voxel is saturated; infinite for wide types."""
    dtype = np.dtype(volume.dtype)
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" and dtype.itemsize <= 2 else math.inf


def _saturation(volume: VolumeInfo, camera: Camera) -> float:
    """Return the photons from which on a voxel is saturated."""
    return (_ceiling(volume) - camera.offset) * camera.gain + camera.read_noise**2


def _warnings(
    samples: Samples, given: Camera, camera: Camera, fill: float | None, background: float, *, is_flat: bool
) -> Iterable[str]:
    if is_flat:
        yield "The volume is constant or empty: nothing rises above the background."
    yield from _offset_warning(samples, given, fill)
    yield from _variation_warning(samples, camera, fill, background)


def _offset_warning(samples: Samples, camera: Camera, fill: float | None) -> Iterable[str]:
    total = below = 0
    for _, counts in samples.views():
        total += counts.size
        below += int(np.count_nonzero((counts < camera.offset) & _valid(counts, camera.photons(counts), fill)))
    if below > 0.01 * total:
        yield f"{100 * below / total:.1f} % of the sampled voxels lie below the camera offset; check --camera-offset."


def _variation_warning(samples: Samples, camera: Camera, fill: float | None, background: float) -> Iterable[str]:
    """Compare the foreground of each volume's sampled time points; report the volume that varies most."""
    found: list[tuple[float, str]] = []
    locations = list(dict.fromkeys(region.volume.location for region in samples.regions))
    for location in locations:
        levels = _levels_over_time(samples, location, camera, fill, background)
        (dimmest, low), (brightest, high) = (pick(levels.items(), key=lambda item: item[1]) for pick in (min, max))
        if high <= MAX_VARIATION * low:
            continue
        factor = f"{high / low:.1f}-fold" if low else "from nothing"
        where = f" in {location}" if len(locations) > 1 else ""
        sentence = (
            f"The foreground varies {factor} over time{where} (99.9th percentile above background: "
            f"{low / camera.gain:.4g} counts at time point {dimmest}, {high / camera.gain:.4g} at {brightest}), and one "
            "intensity scale serves all time points: a prior smooths the dim ones more. If that matters, run them separately "
            "with --timepoints."
        )
        found.append((high / low if low else math.inf, sentence))
    if found:
        yield max(found)[1]


def _levels_over_time(
    samples: Samples, location: str, camera: Camera, fill: float | None, background: float
) -> dict[int, float]:
    """Return the foreground of each sampled time point of a volume, over the regions that all of them have."""
    mine = [region for region in samples.regions if region.volume.location == location]
    times = sorted({region.timepoint for region in mine})
    everywhere = set.intersection(*({r.box for r in mine if r.timepoint == time} for time in times))

    def photons_at(time: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for region, counts in samples.views():
            if region.volume.location == location and region.timepoint == time and region.box in everywhere:
                photons = camera.photons(counts)
                yield photons, _valid(counts, photons, fill)

    return {time: estimation.estimate_scale(photons_at(time), background) for time in times}
