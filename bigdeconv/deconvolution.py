"""Deconvolution of arrays that fit in memory: the numerics of a run for a notebook."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np
import torch

from bigdeconv import models
from bigdeconv.calibration.choices import Window
from bigdeconv.calibration.numbers import UserOverrides, choose_camera, decide, signal_levels
from bigdeconv.config import DEFAULT_ITERATIONS, MAX_ITERATIONS
from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import Box, triple
from bigdeconv.numerics.camera import Camera
from bigdeconv.numerics.priors.wcrr import fused_filters_problem
from bigdeconv.numerics.restoration import ResolvedSettings, make_prior, restore
from bigdeconv.numerics.thinning import Place
from bigdeconv.psf import PSF, scaled

if TYPE_CHECKING:
    from pathlib import Path

    from bigdeconv.calibration.numbers import Findings
    from bigdeconv.numerics.priors.weights import WcrrWeights
    from bigdeconv.numerics.restoration import CalibratedSettings

    Automatic = float | Literal["auto"] | None

Method = Literal["garl", "rl", "rltv"]


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """An estimate and the numbers that it was made with."""

    estimate: np.ndarray
    """``z y x``, in the units of the data."""
    settings: CalibratedSettings
    """All numbers of the restoration, in photons."""
    camera: Camera
    """Camera model that was set or that the noise tells."""
    findings: Findings
    """Findings beside the numbers: intervals, the check of the PSF, warnings."""


@overload
def deconvolve(y: np.ndarray, psf: np.ndarray | PSF, *, return_choices: Literal[True], **settings: Any) -> Result: ...


@overload
def deconvolve(
    y: np.ndarray, psf: np.ndarray | PSF, *, return_choices: Literal[False] = False, **settings: Any
) -> np.ndarray: ...


# mypy wants every setting in each overload; they stand once, here.
def deconvolve(  # type: ignore[misc]
    y: np.ndarray,
    psf: np.ndarray | PSF,
    *,
    method: Method = "garl",
    iterations: int | Literal["auto"] | None = "auto",
    background: Automatic = "auto",
    tau: Automatic = "auto",
    sigma: Automatic = "auto",
    model: str | Path | WcrrWeights = models.DEFAULT,
    intensity_scale: Automatic = "auto",
    gain: Automatic = "auto",
    psf_scale: tuple[float, float, float] | Literal["auto"] = (1.0, 1.0, 1.0),
    weights: np.ndarray | None = None,
    saturation: float | None = None,
    voxel_zyx_um: tuple[float, float, float] | None = None,
    update: Literal["convergent", "reference"] = "convergent",
    dtype: Literal["float32", "float64"] = "float32",
    device: Literal["auto", "cpu", "cuda"] = "cpu",
    return_choices: bool = False,
) -> np.ndarray | Result:
    """Deconvolve one volume that fits in memory.

    Parameters
    ----------
    y : ndarray, ``z y x`` or ``v z y x``
        Data in counts, one or several views of one object; negative values count as 0.
    psf : ndarray or PSF, ``z y x`` or ``v z y x``
        PSF of each view, used as given: centre at ``shape // 2``, dimensions as ``y``.  `bigdeconv.prepare_psf` makes one
        from a measurement.
    method : {"garl", "rltv", "rl"}
        Learned prior, total variation, or no prior.
    iterations : int or "auto"
        ``"auto"`` chooses it together with τ, at most 80 for garl, 50 for rltv and rl.
    background : float or "auto"
        Light that does not come from the object, in the units of ``y``.
    tau : float or "auto"
        Strength of the prior, in units of the intensity scale; ``"auto"`` chooses it by cross-validation on thinned photons.
    sigma : float or "auto"
        Noise level of the learned prior, as a fraction of the intensity scale; ``"auto"`` takes that of the model, or two or
        four times as much.
    model : str, Path or WcrrWeights
        Learned prior: a shipped name, a model file, or its weights.
    intensity_scale : float or "auto"
        Value of ``y`` above background that stands for 1 inside the solver.
    gain : float or "auto"
        Photons per unit of ``y``; ``"auto"`` takes 1, or gain and offset from the noise where that excludes 1.
    psf_scale : tuple of float or "auto"
        Width of the PSF, z y x, as a multiple of the given one; ``"auto"`` lets the data choose it.
    weights : ndarray, optional
        Weight of each voxel of ``y`` in [0, 1]; values of ``y`` that are not finite get 0.
    saturation : float, optional
        Value of ``y`` from which on a voxel means "at least".
    voxel_zyx_um : tuple of float, optional
        Voxel size in µm.  Default: that of the PSF where it has one, else cubes.
    update : {"convergent", "reference"}
        Update rule: majorise-minimise steps with bounded momentum, or algorithm 1 of Pham (2025).
    dtype : {"float32", "float64"}
        Precision; ``"float64"`` is meant for checks.
    device : {"cpu", "cuda", "auto"}
        ``"auto"`` for a GPU where there is one.
    return_choices : bool
        Whether the numbers that the data decided are returned too.

    Returns
    -------
    ndarray, ``z y x``, or Result
        The estimate, in the units of ``y``; with ``return_choices`` a `Result`, which holds it.

    Warns
    -----
    UserWarning
        If the data are sharper than the PSF allows, the search for τ ends at its bound, or the noise is correlated.

    Raises
    ------
    InvalidInputError
        If shapes do not fit, or a value is not finite or out of range.

    References
    ----------
    Pham, "3D Deconvolution Microscopy with a Learned Regularizer" (2025), algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import bigdeconv
    >>> psf = np.ones((3, 3, 3)) / 27
    >>> counts = np.random.default_rng(0).poisson(20.0, (8, 16, 16))
    >>> bigdeconv.deconvolve(counts, psf, method="rl", iterations=5, background=2.0).shape
    (8, 16, 16)
    """
    _check_names(method, update, dtype, device, iterations)
    if voxel_zyx_um is None:
        voxel_zyx_um = psf.voxel_zyx_um if isinstance(psf, PSF) else (1.0, 1.0, 1.0)
    views, prepared = _as_views(y, psf, voxel_zyx_um)
    learned = models.resolve(model) if method == "garl" else None
    if weights is not None:
        weights = _checked_weights(np.asarray(weights), np.shape(y))
    overrides = UserOverrides(
        background=_number(background),
        intensity_scale=_number(intensity_scale),
        tau=_number(tau),
        sigma=_number(sigma),
        iterations=None if iterations in ("auto", None) else int(iterations),
        gain=_number(gain),
        psf_scale=None if psf_scale == "auto" else psf_scale,
    )
    _check_numbers(
        {"iterations": overrides.iterations, "background": overrides.background, "tau": overrides.tau},
        {
            **{name: getattr(overrides, name) for name in ("sigma", "intensity_scale", "gain")},
            **dict(zip("zyx", voxel_zyx_um, strict=True)),
        },
    )
    settings = ResolvedSettings(
        method=method,
        iterations=MAX_ITERATIONS[method] if overrides.iterations is None else overrides.iterations,
        voxel_zyx_um=voxel_zyx_um,
        sigma=(learned.sigma_default if learned else 0.0) if overrides.sigma is None else overrides.sigma,
        update=update,
        dtype=dtype,
        device=_resolved_device(device),
    )
    ceiling = math.inf if saturation is None else saturation
    finite = np.isfinite(views)
    valid = finite if weights is None else finite & (weights.reshape(views.shape) > 0)
    counts = np.where(finite, views, 0)
    given = Camera(gain=overrides.gain or 1.0)
    camera, findings = choose_camera(lambda: zip(counts, valid, strict=True), given, overrides, method, ceiling)
    photons = camera.photons(views)
    prepared = scaled(prepared, overrides.psf_scale or (1.0, 1.0, 1.0))
    levels = signal_levels(lambda: zip(photons, valid, strict=True), prepared, camera, overrides)
    voxel_weights = None if weights is None and finite.all() else _voxel_weights(views, finite, weights)
    decision = decide(
        settings,
        levels,
        lambda: [Window(photons, voxel_weights, Place())],
        prepared,
        learned,
        overrides,
        findings,
        saturation=math.inf if saturation is None else (saturation - camera.offset) * camera.gain,
        default_iterations=DEFAULT_ITERATIONS[method],
    )
    operator = decision.psf.operator(Box.of_shape(triple(views.shape[1:])), decision.settings)
    prior = make_prior(decision.settings, learned)
    estimate = restore(photons, voxel_weights, operator, prior, decision.settings)
    estimate /= camera.gain
    if learned is not None and settings.device == "cuda" and (problem := fused_filters_problem()):
        warnings.warn(f"The fast kernels of the learned prior cannot be used on this GPU: {problem}.", stacklevel=2)
    for sentence in decision.findings.warnings:
        warnings.warn(sentence, stacklevel=2)
    return Result(estimate, decision.settings, camera, decision.findings) if return_choices else estimate


def _number(value: Automatic) -> float | None:
    return None if value in ("auto", None) else cast("float", value)


def _resolved_device(device: str) -> Literal["cpu", "cuda"]:
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise InvalidInputError("device: got 'cuda', but torch finds no CUDA device here; use 'cpu' or 'auto'.")
    return "cuda" if device != "cpu" and has_gpu else "cpu"


def _as_views(y: np.ndarray, psf: np.ndarray | PSF, voxel_zyx_um: tuple[float, float, float]) -> tuple[np.ndarray, PSF]:
    """Return data and PSF with an axis of views."""
    y = np.asarray(y)
    if isinstance(psf, PSF):
        psf = psf.views if y.ndim == 4 or psf.n_views > 1 else psf.views[0]
    psf = np.asarray(psf)
    if y.ndim not in (3, 4) or psf.ndim != y.ndim or (y.ndim == 4 and len(y) != len(psf)):
        raise InvalidInputError(
            f"y and psf: got shapes {y.shape} and {psf.shape}; give both as z y x, or both as v z y x with as many views."
        )
    if y.size == 0 or not np.isfinite(psf).all() or psf.sum() <= 0:
        raise InvalidInputError("psf: must be finite with a positive sum, and y must not be empty.")
    views, psf_views = (y, psf) if y.ndim == 4 else (y[None], psf[None])
    return views, PSF(psf_views, voxel_zyx_um)


def _check_names(method: str, update: str, dtype: str, device: str, iterations: object) -> None:
    choices: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
        ("method", method, ("garl", "rl", "rltv")),
        ("update", update, ("convergent", "reference")),
        ("dtype", dtype, ("float32", "float64")),
        ("device", device, ("cpu", "cuda", "auto")),
    )
    for name, value, expected in choices:
        if value not in expected:
            raise InvalidInputError(f"{name}: got {value!r}; expected {', '.join(expected[:-1])} or {expected[-1]}.")
    if not (iterations in (None, "auto") or isinstance(iterations, int | np.integer)):
        raise InvalidInputError(f"iterations: got {iterations!r}; give a whole number or 'auto'.")


def _check_numbers(non_negative: dict[str, object], positive: dict[str, object]) -> None:
    """Check the numbers that are given; the names of axes stand for their voxel sizes."""
    for values, least in ((non_negative, "0 or more"), (positive, "more than 0")):
        for name, value in values.items():
            if value is None:
                continue
            number = float(value)  # type: ignore[arg-type]
            if not math.isfinite(number) or number < 0 or (number == 0 and values is positive):
                argument = f"voxel_zyx_um ({name})" if name in {"z", "y", "x"} else name
                raise InvalidInputError(f"{argument}: got {value!r}; give a finite number, {least}.")


def _checked_weights(weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if weights.shape != shape:
        raise InvalidInputError(f"weights: got shape {weights.shape}; it must be that of y, {shape}.")
    if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.max() <= 1):
        raise InvalidInputError(
            "weights: got values outside [0, 1] or not finite; give 0 for a voxel without data and 1 for a valid one."
        )
    return weights


def _voxel_weights(views: np.ndarray, given: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    base = np.ones(views.shape, np.float64) if weights is None else np.asarray(weights, np.float64).reshape(views.shape)
    return np.where(given, base, 0.0)
