"""Background, intensity scale and τ of one channel: the sequence that a job and `bigdeconv.deconvolve` share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bigdeconv.geometry import Box, triple
from bigdeconv.numerics import estimation
from bigdeconv.numerics import tau as tau_selection
from bigdeconv.numerics.restoration import make_prior, make_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bigdeconv.numerics.camera import Camera
    from bigdeconv.numerics.priors.weights import WcrrWeights
    from bigdeconv.numerics.restoration import CalibratedSettings, ResolvedSettings
    from bigdeconv.psf import PSF


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


class SignalLevels(NamedTuple):
    """Background and intensity scale of a channel."""

    background: float
    """Photons."""
    intensity_scale: float
    """Photons."""
    is_flat: bool
    """Whether nothing rises above the background; the scale is then 1."""


def signal_levels(
    samples: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]], psf: PSF, camera: Camera, overrides: UserOverrides
) -> SignalLevels:
    """Estimate background and intensity scale, or convert those of the user to photons.

    Parameters
    ----------
    samples : callable
        Returns photons ``z y x`` and masks of valid voxels, pair by pair; called once for each number.
    psf : PSF
    camera : Camera
    overrides : UserOverrides
    """
    if overrides.background is None:
        background = estimation.estimate_background(samples(), psf.radius_zyx)
    else:
        background = camera.background(overrides.background)
    if overrides.intensity_scale is None:
        scale = estimation.estimate_scale(samples(), background)
    else:
        scale = overrides.intensity_scale * camera.gain
    return SignalLevels(background, scale if scale > 0 else 1.0, is_flat=scale <= 0)


def calibrated_settings(
    settings: ResolvedSettings,
    levels: SignalLevels,
    windows: Callable[[], Iterable[tuple[np.ndarray, np.ndarray | None]]],
    psf: PSF,
    model: WcrrWeights | None,
    *,
    tau: float | None,
    saturation: float = math.inf,
) -> CalibratedSettings:
    """Complete the settings of a channel with its signal levels and τ.

    Parameters
    ----------
    settings : ResolvedSettings
    levels : SignalLevels
    windows : callable
        Returns photons and voxel weights (None: all 1), both ``v z y x``, of parts of the volume; called if τ is chosen.
    psf : PSF
    model : WcrrWeights or None
    tau : float or None
        None to choose it by data thinning.
    saturation : float
        Photons from which on a voxel means "at least".
    """

    def with_tau(value: float) -> CalibratedSettings:
        return settings.calibrated(
            tau=value, background=levels.background, intensity_scale=levels.intensity_scale, saturation=saturation
        )

    if tau is not None:
        return with_tau(tau)
    initial = initial_tau(settings, levels.intensity_scale, model)
    return with_tau(_thinned_tau(windows(), psf, model, with_tau(initial)))


def initial_tau(settings: ResolvedSettings, photons: float, model: WcrrWeights | None) -> float:
    """Return the τ from which a choice by the data starts, see `bigdeconv.numerics.tau.initial_tau`."""
    return tau_selection.initial_tau(settings.method, photons, settings.sigma, model.kappa if model else 0.0)


def _thinned_tau(
    windows: Iterable[tuple[np.ndarray, np.ndarray | None]],
    psf: PSF,
    model: WcrrWeights | None,
    settings: CalibratedSettings,
) -> float:
    """Choose τ on the brightest part of each window; 0 for methods without a prior."""
    prior = make_prior(settings, model)
    if prior is None:
        return 0.0
    problems = []
    for photons, voxel_weights in windows:
        part = (slice(None), *tau_selection.window_of(photons))
        data = np.nan_to_num(photons[part])
        operator = psf.operator(Box.of_shape(triple(data.shape[1:])), settings)
        weights = None if voxel_weights is None else voxel_weights[part]
        problems.append(make_problem(data, weights, operator, prior, settings))
    return tau_selection.choose(problems, settings.intensity_scale, settings.iterations)
