"""Calibration of a channel: data mask, background, intensity scale, τ and output scale, chosen once for all its blocks.

A block with numbers of its own would be a visible tile, a time point with numbers of its own would flicker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from bigdeconv.calibration.numbers import calibrated_settings, signal_levels
from bigdeconv.calibration.samples import SampleRegion
from bigdeconv.engine.recipe import ChannelNumbers
from bigdeconv.geometry import Box
from bigdeconv.numerics import estimation
from bigdeconv.numerics.camera import DataMask, invalid_voxels, prepare_views
from bigdeconv.numerics.restoration import make_prior, restore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bigdeconv.calibration.numbers import UserOverrides
    from bigdeconv.calibration.samples import Samples
    from bigdeconv.geometry import Triple
    from bigdeconv.numerics.camera import Camera
    from bigdeconv.numerics.priors.weights import WcrrWeights
    from bigdeconv.numerics.restoration import CalibratedSettings, ResolvedSettings
    from bigdeconv.psf import PSF
    from bigdeconv.storage.omezarr import VolumeInfo

HEADROOM = 4.0
"""Ratio of the largest stored integer to the brightest voxel of the calibration."""
UINT16_MAX = 65535
MAX_VARIATION = 2.0
"""Ratio of the brightest to the dimmest sampled time point above which a warning is given."""
N_RESTORED_REGIONS = 2
"""Sample regions that are restored to choose the output scale."""


@dataclass(frozen=True, slots=True)
class ChannelCalibration:
    """Result of the calibration of one channel."""

    numbers: ChannelNumbers
    warnings: tuple[str, ...]

    def on(self, device: Literal["cpu", "cuda"]) -> ChannelCalibration:
        """Return the same for workers with another device than the process that calibrated."""
        settings = replace(self.numbers.settings, device=device)
        return replace(self, numbers=replace(self.numbers, settings=settings))


def calibrate(
    samples: Samples,
    psf: PSF,
    camera: Camera,
    settings: ResolvedSettings,
    model: WcrrWeights | None,
    overrides: UserOverrides,
    halo: Triple,
    *,
    masks_defects: bool = True,
) -> ChannelCalibration:
    """Choose the numbers of one channel from its samples.

    Parameters
    ----------
    samples : Samples
    psf : PSF
    camera : Camera
    settings : ResolvedSettings
    model : WcrrWeights or None
        Learned prior.
    overrides : UserOverrides
        Numbers that are not to be chosen.
    halo : tuple of int, z y x
        Halo in voxels around a region that is restored to choose the output scale.
    masks_defects : bool
        Whether fill values and hot pixels are masked.
    """
    volume = samples.sampling.volumes[0][0]
    fill = estimation.detect_fill((c for _, c in samples.views()), volume.fill_value) if masks_defects else None
    levels = signal_levels(lambda: _photons(samples, camera, fill), psf, camera, overrides)
    hot_ratio = psf.hot_ratio if masks_defects else None
    data_mask = DataMask(fill, hot_ratio, levels.background, levels.intensity_scale)
    ranked = _by_brightness(samples, camera, data_mask)
    # The brightest region, and one that a quarter of the regions exceed.
    for_tau = (ranked[i] for i in sorted({0, len(ranked) // 4}))
    calibrated = calibrated_settings(
        settings,
        levels,
        lambda: (prepare_views(samples.counts[i], camera, data_mask)[:2] for i in for_tau),
        psf,
        model,
        tau=overrides.tau,
        saturation=_saturation(volume, camera),
    )
    output_scale = overrides.output_scale
    if output_scale is None:
        brightest = [samples.regions[i] for i in ranked[:N_RESTORED_REGIONS]]
        restored = (_restored(region, samples, psf, camera, calibrated, model, data_mask, halo) for region in brightest)
        output_scale = _with_headroom(max(float(estimate.max()) for estimate in restored))
    warnings = _warnings(samples, camera, fill, levels.background, is_flat=levels.is_flat)
    return ChannelCalibration(ChannelNumbers(calibrated, data_mask, output_scale), tuple(warnings))


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


def _saturation(volume: VolumeInfo, camera: Camera) -> float:
    dtype = np.dtype(volume.dtype)
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        return math.inf
    return (float(np.iinfo(dtype).max) - camera.offset) * camera.gain + camera.read_noise**2


def _warnings(
    samples: Samples, camera: Camera, fill: float | None, background: float, *, is_flat: bool
) -> Iterable[str]:
    if is_flat:
        yield "The volume is constant or empty: nothing rises above the background."
    yield from _offset_warning(samples, camera, fill)
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
