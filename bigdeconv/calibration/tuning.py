"""Side-by-side trials of methods and settings on windows of the data, for `bigdeconv tune`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.signal import fftconvolve

from bigdeconv.calibration import choices
from bigdeconv.calibration.channel import Limits, look_at
from bigdeconv.calibration.numbers import check_settings, first_guess, in_words
from bigdeconv.calibration.windows import brightest_window
from bigdeconv.config import MAX_ITERATIONS
from bigdeconv.geometry import Box, triple
from bigdeconv.numerics.restoration import make_prior, restore
from bigdeconv.numerics.thinning import excess
from bigdeconv.psf import scaled

if TYPE_CHECKING:
    from collections.abc import Callable

    from bigdeconv.calibration.numbers import Findings, UserOverrides
    from bigdeconv.calibration.samples import Samples
    from bigdeconv.numerics.camera import Camera
    from bigdeconv.numerics.priors.weights import WcrrWeights
    from bigdeconv.numerics.restoration import CalibratedSettings, ResolvedSettings
    from bigdeconv.psf import PSF

METHODS = ("rl", "rltv", "garl")


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A method with the settings at which it predicts best."""

    settings: CalibratedSettings
    nats: float
    """Loss on unseen photons above that of the best candidate."""
    error: float
    """Standard error of that."""
    curve: dict[int, float]
    """Loss above the best candidate's, by number of iterations."""
    estimate: np.ndarray
    """Restored window ``z y x``, in photons."""
    residual: np.ndarray
    """``(data - prediction)/√prediction`` of the first view, ``z y x``."""

    @property
    def text(self) -> str:
        """The settings in words."""
        return f"{self.settings.method}, {in_words(self.settings)}"


@dataclass(frozen=True, slots=True, eq=False)
class Tuning:
    """Result of the trials of one channel."""

    channel: int
    window: np.ndarray
    """Measured window ``z y x``, in photons: the first view."""
    window_start_zyx: tuple[int, int, int]
    camera: Camera
    findings: Findings
    psf_scale: float
    """Width of the PSF that predicts best, as a multiple of the given one."""
    psf_scale_is_told: bool
    """Whether the data tell that width within 15 %."""
    width_nats: dict[float, float]
    """Loss above the least, by width of the PSF."""
    candidates: tuple[Candidate, ...]
    """The best first."""

    @property
    def best(self) -> Candidate:
        """The candidate that predicts best."""
        return self.candidates[0]

    @property
    def values(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return {
            "channel": self.channel,
            "window_start": self.window_start_zyx,
            "window_shape": self.window.shape,
            "gain": self.camera.gain,
            "offset": self.camera.offset,
            "background_photons": self.best.settings.background,
            "background_interval_photons": self.findings.background_interval,
            "psf_scale": self.psf_scale,
            "psf_scale_is_told": self.psf_scale_is_told,
            "psf_widths": [{"scale": width, "nats": nats} for width, nats in sorted(self.width_nats.items())],
            "candidates": [
                {
                    "method": c.settings.method,
                    "iterations": c.settings.iterations,
                    "tau": c.settings.tau,
                    "sigma": c.settings.sigma,
                    "nats": c.nats,
                    "standard_error": c.error,
                    "nats_by_iterations": c.curve,
                }
                for c in self.candidates
            ],
        }


def tune(
    samples: Samples,
    psf: PSF,
    given: Camera,
    settings: ResolvedSettings,
    model: WcrrWeights,
    overrides: UserOverrides,
    *,
    masks_defects: bool,
    on_step: Callable[[str], None],
) -> Tuning:
    """Try all methods and settings on a channel; parameters as in `bigdeconv.calibration.channel.calibrate`."""
    look = look_at(samples, psf, given, "garl", overrides, Limits(on_step=on_step), masks_defects=masks_defects)
    bench = choices.Bench(tuple(map(brightest_window, look.windows(samples))), model)
    first = settings.calibrated(
        tau=first_guess(settings, look.levels.intensity_scale, model),
        background=look.levels.background,
        intensity_scale=look.levels.intensity_scale,
        saturation=look.saturation,
    )
    findings = look.findings
    if overrides.background is None:
        chosen = choices.choose_background(bench, psf, first)
        first = replace(first, background=chosen.background)
        findings = replace(findings, background_interval=chosen.interval)
        on_step(f"background {chosen.background:.4g} photons ({chosen.interval[0]:.4g} to {chosen.interval[1]:.4g})")
    widths = choices.choose_width(bench, psf, check_settings(first))
    told = "" if widths.is_told else "; the data hardly tell it"
    on_step(f"PSF {widths.factor:g} times as wide as given predicts best{told}")
    used = psf if overrides.psf_scale is not None else scaled(psf, (widths.factor,) * 3)
    found = []
    for method in METHODS:
        found.append(_tried(bench, used, replace(first, method=method), model, overrides))
        on_step(f"{method}: {in_words(found[-1][0])}")
    order = sorted(range(len(found)), key=lambda i: float(found[i][1].sum()))
    best = found[order[0]][1]
    shown = bench.windows[0]
    candidates = tuple(_candidate(bench, used, *found[i], best, model) for i in order)
    return Tuning(
        channel=samples.sampling.channel,
        window=shown.photons[0],
        window_start_zyx=shown.place.start_zyx,
        camera=look.camera,
        findings=findings,
        psf_scale=widths.factor,
        psf_scale_is_told=widths.is_told,
        width_nats=widths.nats,
        candidates=candidates,
    )


def _tried(
    bench: choices.Bench, psf: PSF, settings: CalibratedSettings, model: WcrrWeights, overrides: UserOverrides
) -> tuple[CalibratedSettings, np.ndarray]:
    """Return the best settings of a method, and the tiles of its loss."""
    method = settings.method
    tau = first_guess(settings, settings.intensity_scale, model if method == "garl" else None)
    sigma = settings.sigma if method == "garl" else 0.0
    iterations = MAX_ITERATIONS[method] if overrides.iterations is None else overrides.iterations
    start = replace(settings, tau=tau, sigma=sigma, iterations=iterations)
    free = choices.Free(tau=method != "rl", sigma=method == "garl", iterations=overrides.iterations is None)
    chosen = choices.choose_prior(bench, psf, start, free=free)
    used = replace(start, tau=chosen.tau, sigma=chosen.sigma, iterations=chosen.iterations)
    return used, bench.curve(psf, used, [chosen.iterations])[0]


def _candidate(
    bench: choices.Bench,
    psf: PSF,
    settings: CalibratedSettings,
    tiles: np.ndarray,
    best: np.ndarray,
    model: WcrrWeights,
) -> Candidate:
    nats, error = excess(tiles, best)
    readouts = [n for n in choices.READOUTS if n <= MAX_ITERATIONS[settings.method]]
    curve = bench.curve(psf, settings, readouts).sum(axis=1) - best.sum()
    photons, voxel_weights, _ = bench.windows[0]
    operator = psf.operator(Box.of_shape(triple(photons.shape[1:])), settings)
    prior = make_prior(settings, model)
    estimate = restore(photons.copy(), voxel_weights, operator, prior, settings)
    return Candidate(
        settings=settings,
        nats=nats,
        error=error,
        curve={n: float(v) for n, v in zip(readouts, curve, strict=True)},
        estimate=estimate,
        residual=_residual(photons[0], estimate, psf, settings),
    )


def _residual(photons: np.ndarray, estimate: np.ndarray, psf: PSF, settings: CalibratedSettings) -> np.ndarray:
    """Return the residual over the noise; at the faces the light from outside the window is missing from the prediction."""
    predicted = np.maximum(fftconvolve(estimate, psf.views[0], mode="same") + settings.background, 1e-6)
    return np.asarray((photons - predicted) / np.sqrt(predicted))
