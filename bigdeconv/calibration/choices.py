"""Choices that the data make before the first block, all by one held-out likelihood (`bigdeconv.numerics.thinning`).

The photons of some windows are split in two; either half is restored, and the setting under which the halves predict each other
best is taken: background, width of the PSF, strength of the prior and number of iterations.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bigdeconv.geometry import Box, triple
from bigdeconv.numerics import thinning
from bigdeconv.numerics.restoration import make_prior, make_problem
from bigdeconv.psf.scaling import scaled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bigdeconv.numerics.priors.weights import WcrrWeights
    from bigdeconv.numerics.restoration import CalibratedSettings
    from bigdeconv.psf import PSF

READOUTS = (5, 10, 15, 20, 30, 50, 80, 120)
"""Numbers of iterations at which a restoration is compared with the unseen photons."""
BACKGROUND_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
"""Backgrounds that are tried first, as shares of the first estimate, which tends to be too high."""
MAX_BACKGROUND_SHARE = 3.0
REFINEMENTS = 2
"""Times that the step between backgrounds is halved around the best."""
TAU_STEP = 3.0
"""Ratio of consecutive candidates for τ."""
MAX_TAU_STEPS = 4
"""Largest number of such ratios between the first τ and a candidate."""
SIGMA_STEP = 2.0
"""Ratio of consecutive candidates for σ."""
MAX_SIGMA_STEPS = 2
"""Largest number of such ratios between the first σ and a candidate."""
LEVEL = 1.0
"""Standard errors within which two losses count as equal where τ, σ and iterations are chosen (the one-standard-error rule)."""
HIGHER, LOWER = 3.0, 8.0
"""Standard errors up to which a higher and a lower background belong to the interval: a haze that the estimate imitates makes the
loss of a lower one rise without being wrong."""
CAUTION = 0.05
"""Largest share of the best background that is given away, as far as the data tell no difference: too high a value removes dim
structure and its flux."""
NARROWER = 0.8
"""Width with which the PSF is compared, as a multiple of the given one."""
WIDTH_STEPS = (1.25, 1.12)
"""Ratios of consecutive widths, coarse and fine, where the data choose it."""
MAX_WIDTH_STEPS = 3
"""Largest number of coarse ratios between the given width and a candidate."""
MEASUREMENTS = 3
"""Measurements of the CPU time of an iteration."""
LONGEST_CHECK = 50
"""Largest number of iterations that background and width of the PSF are judged by."""
SETTLED = (50, 100, 200)
"""Numbers of iterations that follow where the width of the PSF is judged and the last number was the best: stopped too early, the
narrower PSF, which needs fewer, would always win."""
SIGNIFICANCE = 3.0
"""Standard errors by which a narrower PSF must predict better for a warning."""
TRUST = 4.0
"""Standard errors by which a narrower PSF must predict worse for the given one to be trusted."""


class Window(NamedTuple):
    """A part of the volume on which settings are tried."""

    photons: np.ndarray
    """``v z y x``."""
    voxel_weights: np.ndarray | None
    """``v z y x``; None where all are 1."""
    place: thinning.Place


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """The windows of a channel, on which the halves of the photons are restored with any setting."""

    windows: tuple[Window, ...]
    model: WcrrWeights | None
    _curves: dict[object, np.ndarray] = field(default_factory=dict)

    def curve(self, psf: PSF, settings: CalibratedSettings, readouts: Sequence[int]) -> np.ndarray:
        """Return the losses of a setting, ``readout tile``, over all windows and halves; ``settings.iterations`` is not used.

        A half has twice the relative noise variance of all photons; τ is raised for it in proportion to the noise.
        """
        key = (psf.digest, replace(settings, iterations=0), tuple(readouts))
        if key not in self._curves:
            found = [thinning.losses(trial, readouts) for trial in self._trials(psf, settings)]
            self._curves[key] = np.concatenate(found, axis=1)
        return self._curves[key]

    def best(self, psf: PSF, settings: CalibratedSettings, *, settled: bool = False) -> np.ndarray:
        """Return the tiles of a setting at its best of the numbers of iterations up to `LONGEST_CHECK`.

        Parameters
        ----------
        psf : PSF
        settings : CalibratedSettings
        settled : bool
            Whether to go on where the last of them is the best: bright data through a wide PSF need more.
        """
        curve = self.curve(psf, settings, [n for n in READOUTS if n <= LONGEST_CHECK])
        best = int(curve.sum(axis=1).argmin())
        if settled and best == len(curve) - 1:
            curve = self.curve(psf, settings, SETTLED)
            best = int(curve.sum(axis=1).argmin())
        return np.asarray(curve[best])

    def seconds_per_iteration(self, psf: PSF, settings: CalibratedSettings) -> float:
        """Measure the CPU time of an iteration over all windows and halves: the least of some, for other work slows it down."""
        trial = next(iter(self._trials(psf, settings)))
        thinning.losses(trial, [1])  # compiles, and fills the caches

        def seconds() -> float:
            started = time.process_time()
            thinning.losses(trial, [2])
            return time.process_time() - started

        # The start costs about as much as an iteration.
        return min(seconds() for _ in range(MEASUREMENTS)) / 3 * 2 * len(self.windows)

    def _trials(self, psf: PSF, settings: CalibratedSettings) -> Iterable[thinning.Trial]:
        halved = replace(settings, tau=math.sqrt(2) * settings.tau)
        prior = make_prior(halved, self.model)
        for photons, voxel_weights, place in self.windows:
            operator = psf.operator(Box.of_shape(triple(photons.shape[1:])), halved)
            problem = make_problem(photons.copy(), voxel_weights, operator, prior, halved)
            yield from thinning.split(problem, settings.intensity_scale, place)


class Free(NamedTuple):
    """Decisions of the data about a restoration."""

    tau: bool
    sigma: bool
    iterations: bool


class BackgroundChoice(NamedTuple):
    """A background, and those that the data cannot tell from it."""

    background: float
    """Photons."""
    interval: tuple[float, float]
    """Photons."""


def choose_background(bench: Bench, psf: PSF, settings: CalibratedSettings) -> BackgroundChoice:
    """Choose the background with which Richardson-Lucy, stopped at its best, predicts the unseen photons best.

    Too high a value denies photons that are there, at a steep loss; too low a value lets the estimate imitate a constant, at a
    small one.

    Parameters
    ----------
    bench : Bench
    psf : PSF
    settings : CalibratedSettings
        Its background is the first estimate.
    """
    first = settings.background
    plain = replace(settings, method="rl", tau=0.0)
    tried: dict[float, np.ndarray] = {}

    def loss(share: float) -> float:
        if share not in tried:
            tried[share] = bench.best(psf, replace(plain, background=share * first))
        return float(tried[share].sum())

    best = min(BACKGROUND_SHARES, key=loss)
    step = BACKGROUND_SHARES[1]
    while best == max(tried) and best < MAX_BACKGROUND_SHARE:
        best = min((best, best + step), key=loss)
    for _ in range(REFINEMENTS):
        step /= 2
        best = min((best, max(best - step, 0.0), best + step), key=loss)
    return BackgroundChoice((best - _caution(tried, best, step)) * first, _interval(tried, best, first))


def _caution(tried: dict[float, np.ndarray], best: float, step: float) -> float:
    """Return how far below the best background the loss has risen by `LEVEL` standard errors, at most by `CAUTION`."""
    lower = tried[max(best - step, 0.0)]
    difference, error = thinning.excess(lower, tried[best])
    # Near the best the excess grows with the square of the distance, and its standard error with the distance.
    distance = step * LEVEL * error / difference if difference > 0 else math.inf
    return min(CAUTION * best, distance)


def _interval(tried: dict[float, np.ndarray], best: float, first: float) -> tuple[float, float]:
    """Return the first backgrounds on both sides that the data exclude, or the last that were tried."""

    def excluded(share: float, standard_errors: float) -> bool:
        return not _is_level(tried[share], tried[best], standard_errors=standard_errors)

    low = max((share for share in tried if share < best and excluded(share, LOWER)), default=0.0)
    high = min((share for share in tried if share > best and excluded(share, HIGHER)), default=max(tried))
    return low * first, high * first


def _is_level(tiles: np.ndarray, best: np.ndarray, *, standard_errors: float) -> bool:
    difference, error = thinning.excess(tiles, best)
    return difference <= standard_errors * error


class WidthCheck(NamedTuple):
    """Comparison of a narrower PSF with the given one."""

    factor: float
    """Width that was compared, as a multiple of the given one."""
    nats: float
    """Gain in the prediction of unseen photons."""
    standard_error: float

    @property
    def is_too_wide(self) -> bool:
        """Whether the data are sharper than the PSF allows."""
        return self.nats > SIGNIFICANCE * self.standard_error

    @property
    def is_trusted(self) -> bool:
        """Whether the data clearly exclude the narrower PSF."""
        return self.nats < -TRUST * self.standard_error


def check_width(bench: Bench, psf: PSF, settings: CalibratedSettings) -> WidthCheck:
    """Compare the PSF with a narrower one.

    With too wide a PSF an estimate hollows objects out into chains of bright voxels, and predicts the data well; with too narrow
    a one it is only less sharp than it could be.

    Parameters
    ----------
    bench : Bench
    psf : PSF
    settings : CalibratedSettings
        Of a restoration with TV, which does not follow the noise as Richardson-Lucy does: that alone favours a narrow PSF.
    """
    given, narrower = (bench.best(scaled(psf, (factor,) * 3), settings, settled=True) for factor in (1.0, NARROWER))
    return WidthCheck(NARROWER, *thinning.excess(given, narrower))


class WidthChoice(NamedTuple):
    """The width of a PSF that predicts best."""

    factor: float
    """Multiple of the given width, the same on all axes."""
    nats: dict[float, float]
    """Loss above the least, by width."""
    is_told: bool
    """Whether widths that differ by a quarter predict significantly worse."""


def choose_width(bench: Bench, psf: PSF, settings: CalibratedSettings) -> WidthChoice:
    """Choose the width of the PSF, the same factor on all axes.

    Axial and lateral widths apart are told badly: a prior trades one for the other.

    Parameters
    ----------
    bench : Bench
    psf : PSF
    settings : CalibratedSettings
        As for `check_width`.
    """
    tried: dict[float, np.ndarray] = {}
    coarse, fine = WIDTH_STEPS

    def loss(factor: float) -> float:
        if factor not in tried:
            tried[factor] = bench.best(scaled(psf, (factor,) * 3), settings, settled=True)
        return float(tried[factor].sum())

    def vertex(factor: float, step: float) -> float:
        return factor * float(step ** _vertex([loss(factor / step), loss(factor), loss(factor * step)]))

    k = 0
    direction = 1 if loss(coarse) < loss(1.0) else -1
    while abs(k) < MAX_WIDTH_STEPS and loss(coarse ** (k + direction)) < loss(coarse**k):
        k += direction
    best = min((coarse**k, vertex(coarse**k, coarse)), key=loss)
    best = min((best, vertex(best, fine)), key=loss)
    least = tried[best]
    is_told = abs(k) < MAX_WIDTH_STEPS and not any(
        _is_level(tried[coarse ** (k + i)], least, standard_errors=SIGNIFICANCE) for i in (-1, 1)
    )
    nats = {factor: float((tiles - least).sum()) for factor, tiles in tried.items()}
    return WidthChoice(float(f"{best:.2g}"), nats, is_told)


class PriorChoice(NamedTuple):
    """Strength and noise level of the prior, and number of iterations."""

    tau: float
    sigma: float
    iterations: int
    at_bound: bool
    """Whether the search for τ ended at its bound without a minimum."""


def choose_prior(bench: Bench, psf: PSF, settings: CalibratedSettings, *, free: Free) -> PriorChoice:
    """Choose τ, σ and the number of iterations together.

    Parameters
    ----------
    bench : Bench
    psf : PSF
    settings : CalibratedSettings
        Its τ is the first of the candidates, which are a factor of `TAU_STEP` apart; its σ is the first as well, and larger
        ones are a factor of `SIGMA_STEP` apart, with τ in proportion to 1/σ².  Its iterations are their upper bound.
    free : Free
        What is to be chosen; the rest is as in ``settings``.

    Notes
    -----
    Of the settings that predict equally well the one with the most iterations is taken: a half of the photons is restored less
    well than all of them, and is best stopped earlier.
    """
    readouts = [n for n in READOUTS if n <= settings.iterations] if free.iterations else [settings.iterations]
    tried: dict[tuple[int, int], np.ndarray] = {}

    def loss(steps: int, widenings: int = 0) -> float:
        key = steps, widenings
        if key not in tried:
            setting = replace(settings, tau=tau_of(steps, widenings), sigma=settings.sigma * SIGMA_STEP**widenings)
            tried[key] = bench.curve(psf, setting, readouts)
        return float(tried[key].sum(axis=1).min())

    def tau_of(steps: float, widenings: int) -> float:
        return float(settings.tau * TAU_STEP**steps / SIGMA_STEP ** (2 * widenings))

    k = m = 0
    loss(k)
    if free.tau:
        step = 1 if loss(1) < loss(0) else -1
        while abs(k) < MAX_TAU_STEPS and loss(k + step) < loss(k):
            k += step
    while free.sigma and m < MAX_SIGMA_STEPS and loss(k, m + 1) < loss(k, m):
        m += 1
    best = tried[k, m][int(tried[k, m].sum(axis=1).argmin())]
    level = [
        (i, -float(tiles.sum()), key)
        for key, curve in tried.items()
        for i, tiles in enumerate(curve)
        if _is_level(tiles, best, standard_errors=LEVEL)
    ]
    longest, _, (steps, widenings) = max(level)
    around = [tried.get((steps + i, widenings)) for i in (-1, 0, 1)]
    vertex = _vertex([None if curve is None else float(curve[longest].sum()) for curve in around])
    return PriorChoice(
        # Three digits: more than the data tell, and no rounding of sums shows in them.
        tau=float(f"{tau_of(steps + vertex, widenings):.3g}"),
        sigma=settings.sigma * SIGMA_STEP**widenings,
        iterations=readouts[longest],
        at_bound=abs(k) == MAX_TAU_STEPS,
    )


def _vertex(losses: Sequence[float | None]) -> float:
    """Return where a parabola through three equally spaced values has its vertex, from -0.5 to 0.5; 0 without three."""
    below, least, above = losses
    if below is None or least is None or above is None:
        return 0.0
    bend = below - 2 * least + above
    return min(max((below - above) / (2 * bend), -0.5), 0.5) if bend > 0 else 0.0
