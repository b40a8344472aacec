"""Restoration of one data window: settings, prior and solver put together, arrays in and an array out."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from bigdeconv.numerics.priors.tv import TotalVariation
from bigdeconv.numerics.priors.wcrr import Wcrr
from bigdeconv.numerics.richardson_lucy import Problem, solve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bigdeconv.numerics.convolution import Blur
    from bigdeconv.numerics.priors.protocol import Prior
    from bigdeconv.numerics.priors.weights import WcrrWeights

MU_MAX = 3.0
"""Cap on μ for the convergent update, whose steps shorten as μ grows; the reference update keeps the model's own value.

Why 3: ``tests/benchmarks/curvature_cap.py``.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedSettings:
    """Settings of the iteration that do not depend on the data; every default is filled in.

    Examples
    --------
    >>> settings = ResolvedSettings(method="rl", iterations=15, voxel_zyx_um=(0.2, 0.1, 0.1))
    >>> settings.calibrated(tau=0.0, background=2.0, intensity_scale=100.0).background
    2.0
    """

    method: str
    iterations: int
    voxel_zyx_um: tuple[float, float, float]
    sigma: float = 0.0
    """Noise level of the learned prior, as a fraction of the intensity scale; 0 for methods without one."""
    update: Literal["convergent", "reference"] = "convergent"
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def calibrated(
        self, *, tau: float, background: float, intensity_scale: float, saturation: float = math.inf
    ) -> CalibratedSettings:
        """Add the numbers that depend on the data; see `CalibratedSettings`."""
        own = {name: getattr(self, name) for name in ResolvedSettings.__dataclass_fields__}
        return CalibratedSettings(
            **own, tau=tau, background=background, intensity_scale=intensity_scale, saturation=saturation
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedSettings(ResolvedSettings):
    """All numbers that decide a restoration; the same for every block of a channel."""

    tau: float
    """Strength of the prior, in units of the intensity scale; 0 for no prior."""
    background: float
    """Photons."""
    intensity_scale: float
    """Photons that stand for 1 inside the solver."""
    saturation: float = math.inf
    """Photons from which on a voxel means "at least"."""


def restore(
    photons: np.ndarray,
    voxel_weights: np.ndarray | None,
    operator: Blur,
    prior: Prior | None,
    settings: CalibratedSettings,
) -> np.ndarray:
    """Restore one data window.

    Parameters
    ----------
    photons : ndarray, ``v z y x``
        Data; their memory is reused by the solver.
    voxel_weights : ndarray or None, ``v z y x``
        Weight of each voxel in [0, 1]; None where all are 1.
    operator : Blur
        Forward model of the window.
    prior : Prior or None
    settings : CalibratedSettings

    Returns
    -------
    ndarray, ``z y x``
        The estimate on the window, in photons.
    """
    problem = make_problem(photons, voxel_weights, operator, prior, settings)
    with torch.inference_mode():
        return solve(problem, settings.iterations).mul_(settings.intensity_scale).cpu().numpy()


def make_problem(
    photons: np.ndarray,
    voxel_weights: np.ndarray | None,
    operator: Blur,
    prior: Prior | None,
    settings: CalibratedSettings,
) -> Problem:
    """Return the normalised problem of a data window; parameters as in `restore`."""
    dtype, device, scale = settings.torch_dtype, settings.device, settings.intensity_scale
    weights = voxel_weights
    return Problem(
        data=torch.from_numpy(np.ascontiguousarray(photons)).to(device, dtype).div_(scale),
        weights=None if weights is None else torch.from_numpy(np.ascontiguousarray(weights)).to(device, dtype),
        background=settings.background / scale,
        blur=operator,
        prior=prior,
        tau=settings.tau,
        # Lowered by more than float32 rounds, so that a voxel at the very level counts.
        saturation=settings.saturation / scale * (1 - 1e-6),
        update=settings.update,
    )


def make_prior(settings: CalibratedSettings, model: WcrrWeights | None) -> Prior | None:
    """Return the prior of a method; None for RL and for τ = 0."""
    if settings.tau == 0 or settings.method == "rl":
        return None
    if settings.method == "rltv":
        return TotalVariation(settings.voxel_zyx_um)
    assert model is not None
    return Wcrr(
        model,
        sigma=settings.sigma,
        dtype=settings.torch_dtype,
        device=settings.device,
        mu_max=MU_MAX if settings.update == "convergent" else math.inf,
    )


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Set the number of torch's CPU threads, and restore it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
