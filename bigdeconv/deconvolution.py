"""Deconvolution of arrays: the one function that a notebook and a worker share, and its public face."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from bigdeconv import intensity, models, strength
from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import triple
from bigdeconv.physics.convolution import Blur
from bigdeconv.priors.tv import TotalVariation
from bigdeconv.priors.wcrr import Wcrr
from bigdeconv.solvers.richardson_lucy import Problem, solve

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from bigdeconv.priors import Prior
    from bigdeconv.priors.weights import WcrrWeights

Method = Literal["garl", "rl", "rltv"]
DEFAULT_ITERATIONS: dict[str, int] = {"rl": 15, "rltv": 30, "garl": 50}
KAPPA_TV = 0.3
"""κ of TV, see `likely_tau`."""

MU_MAX = 3.0
"""Cap on μ for the convergent update, whose steps shorten as μ grows; the reference update keeps the model's own.

Why 3: ``tests/benchmarks/curvature_cap.py``.
"""


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
    update: Literal["convergent", "reference"] = "convergent"
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    """``cpu``, ``cuda``, or ``auto`` for a GPU where the process that computes has one."""

    @property
    def torch_device(self) -> str:
        """The device as torch names it, in this process."""
        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self.device

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
        Views and the weights of their voxels (None: all 1), ``v z y x``.  The photons' memory is used for the solver's data.

    Returns
    -------
    numpy.ndarray
        The estimate on the window, ``z y x``, in photons.
    """
    problem = _problem(photons, weights, blur, prior, settings)
    with torch.inference_mode():
        return solve(problem, settings.iterations).mul_(settings.intensity_scale).cpu().numpy()


def _problem(
    photons: np.ndarray, weights: np.ndarray | None, blur: Blur, prior: Prior | None, settings: Settings
) -> Problem:
    dtype, device, scale = settings.torch_dtype, settings.torch_device, settings.intensity_scale
    return Problem(
        data=torch.from_numpy(np.ascontiguousarray(photons)).to(device, dtype).div_(scale),
        weights=None if weights is None else torch.from_numpy(np.ascontiguousarray(weights)).to(device, dtype),
        background=settings.background / scale,
        blur=blur,
        prior=prior,
        tau=settings.tau,
        # Lowered by more than float32 rounds, so that a voxel at the very level counts.
        saturation=settings.saturation / scale * (1 - 1e-6),
        update=settings.update,
    )


def make_blur(kernels: np.ndarray, window_shape: tuple[int, int, int], settings: Settings) -> Blur:
    """Return the forward model of PSFs ``v z y x`` for a data window."""
    tensor = torch.from_numpy(np.ascontiguousarray(kernels)).to(settings.torch_device, settings.torch_dtype)
    return Blur(tensor, window_shape)


def make_prior(settings: Settings, model: WcrrWeights | None) -> Prior | None:
    """Return the prior of a method; None for RL and for a strength of 0."""
    if settings.tau == 0 or settings.method == "rl":
        return None
    if settings.method == "rltv":
        return TotalVariation(settings.voxel_zyx_um)
    assert model is not None
    return Wcrr(
        model,
        sigma=settings.sigma,
        dtype=settings.torch_dtype,
        device=settings.torch_device,
        mu_max=MU_MAX if settings.update == "convergent" else math.inf,
    )


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Compute on so many CPU threads, and on as many as before from then on."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cuda_device_count() -> int:
    """Return how many CUDA devices this process sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_memory_bytes() -> int:
    """Return the memory of the first CUDA device."""
    return int(torch.cuda.get_device_properties(0).total_memory)


def choose_tau(
    views: Iterable[tuple[np.ndarray, np.ndarray | None]],
    kernels: np.ndarray,
    model: WcrrWeights | None,
    settings: Settings,
) -> float:
    """Return the strength of the prior with which data predict themselves best (`bigdeconv.strength`); 0 for RL.

    Parameters
    ----------
    views
        Photons and the weights of their voxels (None: all 1), both ``v z y x``, of one or more parts of a volume; a window of
        each is tried.
    kernels
        PSFs, ``v z y x``.
    settings
        All but ``tau``.
    """
    first = likely_tau(settings.method, settings.intensity_scale, settings.sigma, model.kappa if model else 0.0)
    settings = replace(settings, tau=first)
    prior = make_prior(settings, model)
    if prior is None:
        return 0.0
    problems = []
    for photons, weights in views:
        window = (slice(None), *strength.window_of(photons))
        data = np.nan_to_num(photons[window])
        blur = make_blur(kernels, triple(data.shape[1:]), settings)
        problems.append(_problem(data, None if weights is None else weights[window], blur, prior, settings))
    return strength.choose(problems, settings.intensity_scale, settings.iterations)


def likely_tau(method: str, photons: float, sigma: float, kappa: float) -> float:
    """Return a strength to begin with: ``κ/(N σ²)`` for the learned prior, ``κ_TV/N`` for TV, 0 for RL.

    Parameters
    ----------
    photons
        N, photons per view at the intensity scale.
    sigma
        Noise level of the learned prior, as a fraction of the intensity scale.
    kappa
        κ of the learned prior's model.
    """
    if method == "rl":
        return 0.0
    return (KAPPA_TV if method == "rltv" else kappa / sigma**2) / photons


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
    update: Literal["convergent", "reference"] = "convergent",
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
        Strength of the prior, in units of the intensity scale; ``auto`` finds the one with which a half of the photons best
        predicts the other half.
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
    update
        ``convergent``, whose steps can only lower the objective but for the momentum, or the report's ``reference``.
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
    _check_names(method, update, dtype, iterations)
    views, kernels = _as_views(y, psf)
    model_weights = models.resolve(model) if method == "garl" else None
    if weights is not None:
        weights = _checked_weights(np.asarray(weights), np.shape(y))
    _check_numbers(
        {"iterations": iterations, "background": background, "tau": tau},
        {"sigma": sigma, "intensity_scale": intensity_scale, **dict(zip(("z", "y", "x"), voxel_zyx_um, strict=True))},
    )
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
        tau=0.0 if tau == "auto" else tau,
        sigma=sigma,
        background=background,
        intensity_scale=intensity_scale,
        voxel_zyx_um=voxel_zyx_um,
        saturation=math.inf if saturation is None else saturation,
        update=update,
        dtype=dtype,
        device=device,
    )
    datum_weights = None if weights is None and given.all() else _voxel_weights(views, given, weights)
    if tau == "auto":
        settings = replace(settings, tau=choose_tau([(photons, datum_weights)], kernels, model_weights, settings))
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


def _check_names(method: str, update: str, dtype: str, iterations: object) -> None:
    if method not in DEFAULT_ITERATIONS:
        raise InvalidInputError(f"method: got {method!r}; allowed are garl, rl and rltv.")
    if update not in {"convergent", "reference"}:
        raise InvalidInputError(f"update: got {update!r}; allowed are convergent and reference.")
    if dtype not in {"float32", "float64"}:
        raise InvalidInputError(f"dtype: got {dtype!r}; allowed are float32 and float64.")
    if not (iterations is None or isinstance(iterations, int | np.integer)):
        raise InvalidInputError(f"iterations: got {iterations!r}; give a whole number.")


def _check_numbers(non_negative: dict[str, object], positive: dict[str, object]) -> None:
    """Check what is neither ``auto`` nor left out; the axes' names stand for their voxel sizes."""
    for values, least in ((non_negative, "0 or more"), (positive, "more than 0")):
        for name, value in values.items():
            if value is None or value == "auto":
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
            "weights: got values outside [0, 1] or not finite; give 0 for no datum and 1 for a full one."
        )
    return weights


def _voxel_weights(views: np.ndarray, given: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    base = np.ones(views.shape, np.float64) if weights is None else np.asarray(weights, np.float64).reshape(views.shape)
    return np.where(given, base, 0.0)
