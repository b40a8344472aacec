"""Numbers of one channel that the data decide: the sequence that a job and `bigdeconv.deconvolve` share."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from bigdeconv.calibration import choices
from bigdeconv.calibration.windows import brightest_window
from bigdeconv.numerics import estimation
from bigdeconv.numerics.camera import Camera
from bigdeconv.numerics.photon_transfer import estimate_camera
from bigdeconv.numerics.strength import initial_tau
from bigdeconv.psf.scaling import scaled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np

    from bigdeconv.numerics.priors.weights import WcrrWeights
    from bigdeconv.numerics.restoration import CalibratedSettings, ResolvedSettings
    from bigdeconv.psf import PSF

LEAST_BUDGET_SECONDS = 60.0
"""CPU time that the choices of a channel may take in any case."""
FALLBACK_ITERATIONS = 20
"""Largest number of iterations where the PSF is wider than the data allow."""
FALLBACK_STRENGTH = 0.3
"""τ there, as a share of the first guess: a weaker prior follows the data's artefacts, a stronger one slows points down."""
OF_ALL_PHOTONS = 1.5
"""Ratio of the iterations for all photons to those for a half of them, where the PSF is trusted: with one that is a little too
wide, every further iteration does harm that the data do not show."""
WIDTHS_OF_SEARCH = 8
"""Widths of the PSF that a search compares."""
CHECK_STRENGTH = 0.5
"""τ of TV in the check of the PSF's width, as a share of the first guess."""


class UserOverrides(NamedTuple):
    """Numbers that the user sets; None for those that the data decide."""

    background: float | None = None
    """Counts above the camera offset."""
    intensity_scale: float | None = None
    """Counts."""
    tau: float | None = None
    """In units of the intensity scale."""
    output_scale: float | None = None
    """Factor from photons to stored values."""
    sigma: float | None = None
    """Fraction of the intensity scale."""
    iterations: int | None = None
    gain: float | None = None
    """Photons per count."""
    psf_scale: tuple[float, float, float] | None = (1.0, 1.0, 1.0)
    """Width of the PSF, z y x, as a multiple of the given one; it has been applied to the PSF."""

    def leave_choices(self, method: str) -> bool:
        """Tell whether anything that depends on the noise is left to the data."""
        return None in (self.background, self.iterations, self.psf_scale) or (method != "rl" and self.tau is None)


@dataclass(frozen=True, slots=True)
class Findings:
    """Findings in the data beside the numbers that they decided."""

    gain_interval: tuple[float, float] | None = None
    """95 % interval of the photons per count; None where the gain is set or the noise does not tell it."""
    noise_correlation: float = 0.0
    """Departure of the noise from white; 0 for white noise or where it was not estimated."""
    background_interval: tuple[float, float] | None = None
    """Backgrounds in photons that the data allow; None where the background is set or was not compared."""
    psf_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Width of the PSF that is used, z y x, as a multiple of the given one."""
    narrower_psf_nats: float | None = None
    """Gain of a PSF 0.8 times as wide in the prediction of unseen photons; None where that was not compared."""
    narrower_psf_error: float = 0.0
    """Standard error of that."""
    fell_back: bool = False
    """Whether τ is held and the iterations are few because the PSF is wider than the data allow."""
    not_chosen: tuple[str, ...] = ()
    """Choices that kept their defaults for lack of time."""
    warnings: tuple[str, ...] = ()


class SignalLevels(NamedTuple):
    """Background and intensity scale of a channel."""

    background: float
    """Photons."""
    intensity_scale: float
    """Photons."""
    is_flat: bool
    """Whether nothing rises above the background; the scale is then 1."""


class CameraChoice(NamedTuple):
    """The camera model of a channel, and what the noise said of it."""

    camera: Camera
    findings: Findings


def choose_camera(
    samples: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]],
    given: Camera,
    overrides: UserOverrides,
    method: str,
    ceiling: float,
) -> CameraChoice:
    """Return the camera model: as given, or with gain and dark level from the noise where the gain is not set.

    Counts are taken as photons where the interval of the gain holds 1, and where the noise does not tell the gain.

    Parameters
    ----------
    samples : callable
        Returns counts ``z y x`` and masks of valid voxels, pair by pair.
    given : Camera
        Camera of the settings.
    overrides : UserOverrides
    method : str
    ceiling : float
        Counts from which on voxels are saturated.
    """
    if overrides.gain is not None or not overrides.leave_choices(method):
        return CameraChoice(given, Findings())
    found = estimate_camera(samples(), ceiling=ceiling)
    if found.is_correlated:
        sentence = (
            f"Neighbouring voxels share their noise (correlation {found.correlation:.2f}): the data were resampled, fused, "
            "filtered, or simulated without noise. Their photons cannot be told apart, so the choices are rough, and τ is not "
            "chosen below its first guess; give unprocessed data, or --gain and --tau."
        )
        return CameraChoice(given, Findings(noise_correlation=found.correlation, warnings=(sentence,)))
    if not found.is_known:
        return CameraChoice(given, Findings())
    findings = Findings(gain_interval=found.gain_interval)
    if found.is_photon_counting:
        return CameraChoice(given, findings)
    if given.offset or given.read_noise or overrides.background is not None:
        # A background that the user counts from somewhere leaves no room for a dark level.
        return CameraChoice(replace(given, gain=found.gain), findings)
    return CameraChoice(Camera(offset=found.dark, gain=found.gain), findings)


def signal_levels(
    samples: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]],
    psf: PSF,
    camera: Camera,
    overrides: UserOverrides,
    *,
    offset: float = 0.0,
) -> SignalLevels:
    """Estimate background and intensity scale, or convert those of the user to photons.

    Parameters
    ----------
    samples : callable
        Returns photons ``z y x`` and masks of valid voxels, pair by pair; called once for each number.
    psf : PSF
    camera : Camera
    overrides : UserOverrides
    offset : float
        Camera offset of the settings, above which the user counts the background.
    """
    if overrides.background is None:
        background = estimation.estimate_background(samples(), psf.radius_zyx)
    else:
        background = max(camera.background(overrides.background + offset - camera.offset), 0.0)
    return _levels(samples, camera, overrides, background)


def _levels(
    samples: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]],
    camera: Camera,
    overrides: UserOverrides,
    background: float,
) -> SignalLevels:
    if overrides.intensity_scale is None:
        scale = estimation.estimate_scale(samples(), background)
    else:
        scale = overrides.intensity_scale * camera.gain
    return SignalLevels(background, scale if scale > 0 else 1.0, is_flat=scale <= 0)


class Decision(NamedTuple):
    """The numbers of a channel."""

    settings: CalibratedSettings
    psf: PSF
    findings: Findings


def decide(
    settings: ResolvedSettings,
    levels: SignalLevels,
    windows: Callable[[], Iterable[choices.Window]],
    psf: PSF,
    model: WcrrWeights | None,
    overrides: UserOverrides,
    findings: Findings,
    *,
    saturation: float = math.inf,
    budget_seconds: float = LEAST_BUDGET_SECONDS,
    default_iterations: int,
    on_step: Callable[[str], None] = lambda _: None,
) -> Decision:
    """Choose what the user left to the data, by the held-out likelihood of some windows.

    Parameters
    ----------
    settings : ResolvedSettings
        Its iterations are the upper bound where the data choose them.
    levels : SignalLevels
        First estimates.
    windows : callable
        Returns parts of the volume; called if anything is to be chosen.
    psf : PSF
    model : WcrrWeights or None
    overrides : UserOverrides
    findings : Findings
        Of the camera.
    saturation : float
        Photons from which on a voxel means "at least".
    budget_seconds : float
        CPU time that may be taken; what does not fit keeps its default, in the order σ, iterations, PSF, background, τ.
    default_iterations : int
        Number of iterations where it is not chosen.
    on_step : callable
        Called with the result of each choice, in words.
    """
    has_prior = settings.method != "rl"

    def with_levels(levels: SignalLevels) -> tuple[float, CalibratedSettings]:
        # Where nothing rises above the background there is nothing for a prior to smooth.
        first = 0.0 if levels.is_flat else first_guess(settings, levels.intensity_scale, model)
        return first, settings.calibrated(
            tau=first if overrides.tau is None else overrides.tau,
            background=levels.background,
            intensity_scale=levels.intensity_scale,
            saturation=saturation,
        )

    first_tau, calibrated = with_levels(levels)
    if overrides.psf_scale is not None:
        findings = replace(findings, psf_scale=overrides.psf_scale)
    bench = choices.Bench(tuple(map(brightest_window, windows())), model) if not levels.is_flat else None
    if bench is None or not _holds_photons(bench):
        return Decision(_with_default_iterations(calibrated, overrides, default_iterations), psf, findings)
    wanted = _wanted(bench, psf, calibrated, overrides, budget_seconds)
    if wanted.dropped and len(bench.windows) > 1:
        bench = choices.Bench(bench.windows[:1], model)
        wanted = _wanted(bench, psf, calibrated, overrides, budget_seconds)
    findings = replace(findings, not_chosen=wanted.dropped)
    if wanted.dropped:
        on_step(f"no time for {', '.join(wanted.dropped)}: defaults are used (`bigdeconv tune` takes the time)")

    if wanted.background:
        chosen = choices.choose_background(bench, psf, calibrated)
        if overrides.intensity_scale is None:
            rise = levels.background - chosen.background
            levels = levels._replace(intensity_scale=levels.intensity_scale + rise)
        first_tau, calibrated = with_levels(levels._replace(background=chosen.background))
        findings = replace(findings, background_interval=chosen.interval)
        low, high = chosen.interval
        on_step(f"background {chosen.background:.4g} photons ({low:.4g} to {high:.4g})")
    checked, is_trusted = check_settings(calibrated), False
    if overrides.psf_scale is None:
        width = choices.choose_width(bench, psf, checked)
        factors = (width.factor,) * 3
        psf, findings = scaled(psf, factors), replace(findings, psf_scale=factors)
        if not width.is_told:
            findings = _warned(
                findings, f"The data hardly tell the width of the PSF: {width.factor:g} times the given one is used."
            )
        on_step(f"PSF {width.factor:g} times as wide as given")
    elif wanted.width:
        check = choices.check_width(bench, psf, checked)
        findings = replace(findings, narrower_psf_nats=check.nats, narrower_psf_error=check.standard_error)
        on_step(f"PSF {'wider than the data allow' if check.is_too_wide else 'not wider than the data allow'}")
        is_trusted = check.is_trusted
        if check.is_too_wide:
            return _fallback(calibrated, psf, findings, overrides, first_tau, check)
    if not (wanted.prior or wanted.iterations):
        return Decision(_with_default_iterations(calibrated, overrides, default_iterations), psf, findings)
    free = choices.Free(
        tau=has_prior and overrides.tau is None and wanted.prior,
        sigma=settings.method == "garl" and overrides.sigma is None and overrides.tau is None and wanted.sigma,
        iterations=wanted.iterations,
    )
    if not free.iterations:
        calibrated = _with_default_iterations(calibrated, overrides, default_iterations)
    found = choices.choose_prior(bench, psf, calibrated, free=free)
    tau = max(found.tau, first_tau) if findings.noise_correlation and free.tau else found.tau
    iterations = found.iterations
    if free.iterations and is_trusted:
        iterations = min(round(OF_ALL_PHOTONS * iterations), settings.iterations)
    calibrated = replace(calibrated, tau=tau if has_prior else 0.0, sigma=found.sigma, iterations=iterations)
    if found.at_bound:
        findings = _warned(
            findings,
            f"The search for τ ended at its bound, {calibrated.tau:.3g}: the data hardly limit it, or the PSF, the gain or the "
            "background do not fit them. Look at a part of the result (--roi) before you trust it, or set --tau.",
        )
    on_step(in_words(calibrated))
    return Decision(calibrated, psf, findings)


def first_guess(settings: ResolvedSettings, photons: float, model: WcrrWeights | None) -> float:
    """Return the τ from which a choice by the data starts, see `bigdeconv.numerics.strength.initial_tau`."""
    return initial_tau(settings.method, photons, settings.sigma, model.kappa if model else 0.0)


def chosen_tau(
    settings: ResolvedSettings,
    levels: SignalLevels,
    windows: Iterable[choices.Window],
    psf: PSF,
    model: WcrrWeights | None,
) -> float:
    """Choose τ alone, for the iterations of the settings and the levels as they are; 0 for methods without a prior.

    Parameters
    ----------
    settings : ResolvedSettings
    levels : SignalLevels
    windows : iterable of Window
        Parts of the volume; the brightest place of each is used.
    psf : PSF
    model : WcrrWeights or None
    """
    first = settings.calibrated(
        tau=first_guess(settings, levels.intensity_scale, model),
        background=levels.background,
        intensity_scale=levels.intensity_scale,
    )
    if first.tau == 0:
        return 0.0
    bench = choices.Bench(tuple(map(brightest_window, windows)), model)
    free = choices.Free(tau=True, sigma=False, iterations=False)
    return choices.choose_prior(bench, psf, first, free=free).tau


class _Wanted(NamedTuple):
    background: bool
    width: bool
    prior: bool
    sigma: bool
    iterations: bool
    dropped: tuple[str, ...]


def _wanted(
    bench: choices.Bench, psf: PSF, settings: CalibratedSettings, overrides: UserOverrides, budget_seconds: float
) -> _Wanted:
    """Return the choices to make: those that the user leaves to the data and that the time allows."""
    has_prior = settings.method != "rl"
    plain = replace(settings, method="rl", tau=0.0)
    needed = {
        "tau": has_prior and overrides.tau is None,
        "background": overrides.background is None,
        "PSF width": overrides.leave_choices(settings.method),
        "iterations": overrides.iterations is None,
        "sigma": settings.method == "garl" and overrides.sigma is None and overrides.tau is None,
    }
    if not any(needed.values()):
        return _Wanted(background=False, width=False, prior=False, sigma=False, iterations=False, dropped=())
    of_plain = bench.seconds_per_iteration(psf, plain)
    of_method = bench.seconds_per_iteration(psf, settings) if has_prior and needed["tau"] else of_plain
    trials = 4 if needed["tau"] else 1
    seconds = {
        "tau": trials * choices.LONGEST_CHECK * of_method,
        "background": 10 * choices.LONGEST_CHECK * of_plain,
        # An iteration with TV costs two without, and some widths need more iterations than the others.
        "PSF width": (WIDTHS_OF_SEARCH if overrides.psf_scale is None else 2)
        * 2
        * choices.LONGEST_CHECK
        * 2
        * of_plain,
        "iterations": settings.iterations * of_method,
        "sigma": 2 * settings.iterations * of_method,
    }
    left, kept, dropped = budget_seconds, dict[str, bool](), list[str]()
    for name, is_needed in needed.items():
        kept[name] = is_needed and seconds[name] <= left
        left -= seconds[name] if kept[name] else 0.0
        if is_needed and not kept[name]:
            dropped.append(name)
    return _Wanted(
        background=kept["background"],
        width=kept["PSF width"],
        prior=kept["tau"],
        sigma=kept["sigma"],
        iterations=kept["iterations"],
        dropped=tuple(dropped),
    )


def _holds_photons(bench: choices.Bench) -> bool:
    return bool(bench.windows) and any(float(window.photons.sum()) >= 1 for window in bench.windows)


def _with_default_iterations(
    settings: CalibratedSettings, overrides: UserOverrides, default_iterations: int
) -> CalibratedSettings:
    iterations = overrides.iterations
    return replace(settings, iterations=default_iterations if iterations is None else iterations)


def check_settings(settings: CalibratedSettings) -> CalibratedSettings:
    """Return the settings of TV with which widths of the PSF are compared, whatever the method.

    The background is a little lower: too high a one cuts the tails off, and a narrower PSF would win.
    """
    tau = CHECK_STRENGTH * initial_tau("rltv", settings.intensity_scale, 0.0, 0.0)
    background = (1 - choices.CAUTION) * settings.background
    return replace(settings, method="rltv", sigma=0.0, tau=tau, background=background)


def _fallback(
    settings: CalibratedSettings,
    psf: PSF,
    findings: Findings,
    overrides: UserOverrides,
    first_tau: float,
    check: choices.WidthCheck,
) -> Decision:
    """Hold τ and stop early: with too wide a PSF the iteration hollows objects out, and the data do not warn of it."""
    iterations = min(FALLBACK_ITERATIONS, settings.iterations) if overrides.iterations is None else overrides.iterations
    tau = FALLBACK_STRENGTH * first_tau if overrides.tau is None else overrides.tau
    settings = replace(settings, tau=tau, iterations=iterations)
    sentence = (
        f"The data are sharper than the PSF allows: a PSF {check.factor:g} times as wide predicts unseen photons better by "
        f"{check.nats:.0f} nats ({check.nats / max(check.standard_error, 1e-9):.0f} standard errors). With too wide a PSF cells "
        f"become hollow chains of bright voxels; so this run stops at {in_words(settings)}. Check the voxel size of the PSF, "
        "or let the data set its width: add --psf-scale auto."
    )
    return Decision(settings, psf, replace(_warned(findings, sentence), fell_back=True))


def _warned(findings: Findings, sentence: str) -> Findings:
    return replace(findings, warnings=(*findings.warnings, sentence))


def in_words(settings: CalibratedSettings) -> str:
    """Return iterations, τ and σ in words."""
    sigma = f", σ {settings.sigma:.3g}" if settings.method == "garl" else ""
    strength = "" if settings.method == "rl" else f", τ {settings.tau:.3g}{sigma}"
    return f"{settings.iterations} iterations{strength}"
