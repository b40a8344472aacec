"""Deconvolution of arrays: the one function that a notebook and a worker share, and its public face."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from bigdeconv import intensity, models
from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import triple
from bigdeconv.physics.convolution import Blur
from bigdeconv.priors.tv import TotalVariation
from bigdeconv.priors.wcrr import Wcrr
from bigdeconv.solvers.richardson_lucy import Problem, solve

if TYPE_CHECKING:
    from pathlib import Path

    from bigdeconv.priors import Prior
    from bigdeconv.storage.weights import WcrrWeights

Method = Literal["garl", "rl", "rltv"]
DEFAULT_ITERATIONS: dict[str, int] = {"rl": 15, "rltv": 30, "garl": 50}
KAPPA_TV = 0.05
"""Strength of TV behind ``--tau auto``: ``τ = κ/N`` for N photons at the intensity scale."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers that decide a restoration, the same for every block."""

    method: str
    iterations: int
    tau: float
    """Strength of the prior, in normalised units."""
    sigma: float
    """Noise level of the learned prior, as a fraction of the intensity scale."""
    background: float
    """Photons."""
    intensity_scale: float
    """Photons."""
    voxel_zyx_um: tuple[float, float, float]
    saturation: float = math.inf
    """Photons from which on a datum means "at least"."""
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it."""
        return torch.float64 if self.dtype == "float64" else torch.float32


def restore(
    photons: np.ndarray, weights: np.ndarray | None, blur: Blur, prior: Prior | None, settings: Settings
) -> np.ndarray:
    """Restore one window.

    Parameters
    ----------
    photons, weights
        Views and the weights of their voxels (None: all 1), ``v z y x``.

    Returns
    -------
    numpy.ndarray
        The estimate on the window, ``z y x``, in photons.
    """
    dtype, device, scale = settings.torch_dtype, settings.device, settings.intensity_scale
    data = torch.from_numpy(np.ascontiguousarray(photons)).to(device, dtype, copy=True).div_(scale)
    problem = Problem(
        data=data,
        weights=None if weights is None else torch.from_numpy(np.ascontiguousarray(weights)).to(device, dtype),
        background=settings.background / scale,
        blur=blur,
        prior=prior,
        tau=settings.tau,
        saturation=settings.saturation / scale,
    )
    with torch.inference_mode():
        return solve(problem, settings.iterations).mul_(scale).cpu().numpy()


def make_blur(kernels: np.ndarray, window_shape: tuple[int, int, int], settings: Settings) -> Blur:
    """Return the forward model of PSFs ``v z y x`` for a data window."""
    tensor = torch.from_numpy(np.ascontiguousarray(kernels)).to(settings.device, settings.torch_dtype)
    return Blur(tensor, window_shape)


def make_prior(settings: Settings, model: WcrrWeights | None) -> Prior | None:
    """Return the prior of a method; None for RL and for a strength of 0."""
    if settings.tau == 0 or settings.method == "rl":
        return None
    if settings.method == "rltv":
        return TotalVariation(settings.voxel_zyx_um)
    assert model is not None
    return Wcrr(model, sigma=settings.sigma, dtype=settings.torch_dtype, device=settings.device)


def auto_tau(method: str, photons: float, sigma: float, kappa: float) -> float:
    """Return the strength that fits a photon level: ``κ/(N σ²)`` for the learned prior, ``κ_TV/N`` for TV, 0 for RL.

    Parameters
    ----------
    photons
        N, photons per view at the intensity scale.
    sigma
        Noise level of the learned prior, as a fraction of the intensity scale.
    """
    if method == "rl":
        return 0.0
    return KAPPA_TV / photons if method == "rltv" else kappa / (photons * sigma**2)


def deconvolve(
    y: np.ndarray,
    psf: np.ndarray,
    *,
    method: Method = "garl",
    iterations: int | None = None,
    background: float | Literal["auto"] = "auto",
    tau: float | Literal["auto"] = "auto",
    sigma: float | None = None,
    model: str | Path | WcrrWeights = models.DEFAULT,
    intensity_scale: float | Literal["auto"] = "auto",
    weights: np.ndarray | None = None,
    saturation: float | None = None,
    voxel_zyx_um: tuple[float, float, float] = (1.0, 1.0, 1.0),
    dtype: Literal["float32", "float64"] = "float32",
    device: str = "cpu",
) -> np.ndarray:
    """Deconvolve one volume that fits in memory.

    Parameters
    ----------
    y
        Data in photons (counts), ``z y x``, or ``v z y x`` for several views of one object; negative values count as 0.
    psf
        PSF of each view, as given: centre at ``shape // 2``, dimensions as ``y``.  `bigdeconv.prepare_psf` prepares one.
    method
        ``garl``, ``rltv`` or ``rl``.
    iterations
        Default 50 for garl, 30 for rltv, 15 for rl.
    background
        Photons that do not come from the object, in the units of ``y``.
    tau
        Strength of the prior, in units of the intensity scale; ``auto`` follows the photon level.
    sigma
        Noise level of the learned prior, as a fraction of the intensity scale; default: the model's own.
    model
        Name of a shipped model, path of a model file, or its weights.
    intensity_scale
        What counts as 1 inside the solver, in the units of ``y``.
    weights
        Weight of each datum in [0, 1], shaped like ``y``; data that are not finite get 0.
    saturation
        Value from which on a datum means "at least".
    voxel_zyx_um
        Voxel size in µm.
    dtype
        ``float64`` for checking.

    Returns
    -------
    numpy.ndarray
        The estimate, ``z y x``, in the units of ``y``.

    Raises
    ------
    InvalidInputError
        If shapes do not fit, or a value is not finite or out of range.

    References
    ----------
    Pham, "3D Deconvolution Microscopy with a Learned Regularizer" (2025), algorithm 1.
    """
    views, kernels = _as_views(y, psf)
    model_weights = models.resolve(model) if method == "garl" else None
    _check_numbers(method, iterations, weights, y)
    given = np.isfinite(views)
    photons = intensity.Camera().photons(views)
    mask = given if weights is None else given & (weights.reshape(views.shape) > 0)
    if background == "auto":
        background = intensity.estimate_background(list(photons), list(mask), [n // 2 for n in kernels.shape[1:]])
    if intensity_scale == "auto":
        intensity_scale = intensity.estimate_scale(list(photons), list(mask), background) or 1.0
    if sigma is None:
        sigma = model_weights.sigma_default if model_weights else 0.0
    settings = Settings(
        method=method,
        iterations=DEFAULT_ITERATIONS[method] if iterations is None else iterations,
        tau=auto_tau(method, intensity_scale, sigma, model_weights.kappa if model_weights else 0.0)
        if tau == "auto"
        else tau,
        sigma=sigma,
        background=background,
        intensity_scale=intensity_scale,
        voxel_zyx_um=voxel_zyx_um,
        saturation=math.inf if saturation is None else saturation,
        dtype=dtype,
        device=device,
    )
    datum_weights = None if weights is None and given.all() else _voxel_weights(views, given, weights)
    blur = make_blur(kernels, triple(views.shape[1:]), settings)
    return restore(photons, datum_weights, blur, make_prior(settings, model_weights), settings)


def _as_views(y: np.ndarray, psf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, psf = np.asarray(y), np.asarray(psf)
    if y.ndim not in (3, 4) or psf.ndim != y.ndim or (y.ndim == 4 and len(y) != len(psf)):
        raise InvalidInputError(
            f"y and psf: got shapes {y.shape} and {psf.shape}; give both as z y x, or both as v z y x with as many views."
        )
    if y.size == 0 or not np.isfinite(psf).all() or psf.sum() <= 0:
        raise InvalidInputError("psf: must be finite with a positive sum, and y must not be empty.")
    return (y, psf) if y.ndim == 4 else (y[None], psf[None])


def _check_numbers(method: str, iterations: int | None, weights: np.ndarray | None, y: np.ndarray) -> None:
    if method not in DEFAULT_ITERATIONS:
        raise InvalidInputError(f"method: got {method!r}; allowed are garl, rl and rltv.")
    if iterations is not None and iterations < 0:
        raise InvalidInputError(f"iterations: got {iterations}; give 0 or more.")
    if weights is not None and np.shape(weights) != np.shape(y):
        raise InvalidInputError(f"weights: got shape {np.shape(weights)}; it must be that of y, {np.shape(y)}.")


def _voxel_weights(views: np.ndarray, given: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    base = np.ones(views.shape, np.float64) if weights is None else np.asarray(weights, np.float64).reshape(views.shape)
    return np.where(given, base, 0.0)
