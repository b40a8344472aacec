"""Calibration of the halo: the error at the edge of a data window, by its distance from the edge, measured with the numerics.

The actual iteration restores a synthetic slab whole and cut in two; the difference at the cut is the edge-error profile.  The
slab is long on the probed axis and a few PSF radii across.  See ``DESIGN.md`` in `bigdeconv.planning`.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage, signal

from bigdeconv import models
from bigdeconv.errors import BudgetError, InvalidInputError
from bigdeconv.geometry import Box, triple, zyx_text
from bigdeconv.numerics.restoration import cpu_threads, make_prior, restore
from bigdeconv.planning import planner
from bigdeconv.planning.seam_error import LEARNED_SAFETY, SAFETY, EdgeErrorProfile, worst
from bigdeconv.storage.cache import cached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bigdeconv.geometry import Triple
    from bigdeconv.numerics.priors.protocol import Prior
    from bigdeconv.numerics.priors.weights import WcrrWeights
    from bigdeconv.numerics.restoration import CalibratedSettings
    from bigdeconv.planning.blocks import Plan
    from bigdeconv.planning.planner import PlanRequest
    from bigdeconv.psf import PSF

PHOTONS = 100.0
"""Photons at the intensity scale where the settings give none; between 10 and 1000 the halo changes by a fifth at most."""
BACKGROUND_SHARE = 0.05
"""Background as a share of `PHOTONS`; from a half down to a fiftieth the reach of an error grows by a fifth."""
SMOOTHNESS = 1.5
"""Standard deviation of the slab's texture, in voxels."""
VERSION = 8
"""Raised whenever the same problem gives another profile than before, also because of other numerics."""
_MARGIN = 10.0
"""Ratio of the tolerance to the error down to which a profile is measured; the FFT's rounding up may extend a halo that far."""


def make_plan(
    request: PlanRequest, settings: CalibratedSettings, psfs: Iterable[PSF], model: WcrrWeights | None
) -> Plan:
    """Make a plan whose halo keeps the seam tolerance.

    Parameters
    ----------
    request : PlanRequest
        A given halo is a minimum; edge-error profiles are measured here.
    settings : CalibratedSettings
        Nominal settings of the iteration.
    psfs : iterable of PSF
        PSF of every channel; the halo is for the one that needs the most.  Without any, nothing is calibrated.
    model : WcrrWeights or None
        Learned prior.

    Raises
    ------
    BudgetError
        If it does not fit the memory; the message names a memory, block, halo or number of iterations that would fit.
    """
    distinct = list({psf.digest: psf for psf in psfs}.values())

    def make(request: PlanRequest, iterations: int) -> Plan:
        edge_profiles = _edge_profiles(request, replace(settings, iterations=iterations), distinct, model)
        return planner.make_plan(replace(request, edge_profiles=edge_profiles))

    try:
        return make(request, settings.iterations)
    except BudgetError as error:
        ways = _ways_to_fit(request, make, settings.iterations)
        raise BudgetError(" ".join([str(error), *ways])) from error


def warnings(plan: Plan, request: PlanRequest) -> list[str]:
    """Return a sentence if the plan is expected to exceed the seam tolerance."""
    error, tolerance = plan.predicted_seam_error, request.seam_tolerance
    if error is None or error <= tolerance:
        return []
    expected = f"An error of {error:.1e} is expected next to seams, more than the seam tolerance of {tolerance:g}"
    if request.halo is not None:
        return [f"{expected}; leave --halo out to have it chosen."]
    return [
        f"{expected}, whatever the halo, because rounding errors grow to that; lower --iterations or --tau, or use "
        "--update convergent."
    ]


def calibrate(
    psf: PSF, settings: CalibratedSettings, model: WcrrWeights | None, axis: int, tolerance: float
) -> EdgeErrorProfile:
    """Return the edge-error profile along one axis, from the cache where it was measured before: measuring takes seconds.

    Parameters
    ----------
    psf : PSF
    settings : CalibratedSettings
        Nominal settings of the iteration.
    model : WcrrWeights or None
        Learned prior.
    axis : int
        0, 1 or 2 for z, y or x.
    tolerance : float
        Seam tolerance; the profile is followed until it is well below, or levels off.
    """
    problem = {
        "version": VERSION,
        "psf": psf.digest,
        "settings": {k: str(v) for k, v in asdict(settings).items() if k != "device"},
        "model": models.digest(model) if model and settings.tau else None,
        "axis": axis,
        "tolerance": tolerance,
    }
    digest = hashlib.sha256(json.dumps(problem, sort_keys=True).encode()).hexdigest()[:24]
    profile = cached(f"halo-{digest}", lambda: asdict(measure(psf, settings, model, axis, tolerance)), _parsed)
    return replace(profile, safety=_safety(settings))


def _safety(settings: CalibratedSettings) -> float:
    return LEARNED_SAFETY if settings.method == "garl" and settings.update == "convergent" else SAFETY


def _parsed(curves: dict[str, Any]) -> EdgeErrorProfile:
    above, below = (tuple(float(e) for e in curves[name]) for name in ("ends_above", "ends_below"))
    if not above or not below:
        raise ValueError("an empty curve")
    return EdgeErrorProfile(above, below)


def measure(
    psf: PSF, settings: CalibratedSettings, model: WcrrWeights | None, axis: int, tolerance: float
) -> EdgeErrorProfile:
    """Measure an edge-error profile; parameters as in `calibrate`."""
    settings = replace(settings, device="cpu")
    prior = make_prior(settings, model)
    radius = max(psf.radius_zyx[axis], 3)
    previous = np.inf
    half = max(radius * (2 + np.sqrt(settings.iterations)), 24)
    for longer in (1, 1.5, 2.25):
        # Several threads gain little on so small slabs, and lose much beside other work.
        with cpu_threads(1):
            profile = _cut(psf, settings, prior, axis, round(half * longer))
        if profile.floor <= tolerance / (_safety(settings) * _MARGIN) or profile.floor > 0.5 * previous:
            break
        previous = profile.floor
    return profile


def _edge_profiles(
    request: PlanRequest, settings: CalibratedSettings, psfs: list[PSF], model: WcrrWeights | None
) -> tuple[EdgeErrorProfile | None, ...]:
    return tuple(
        worst(calibrate(psf, settings, model, axis, request.seam_tolerance) for psf in psfs)
        if psfs and _may_have_seams(request, axis)
        else None
        for axis in range(3)
    )


def _may_have_seams(request: PlanRequest, axis: int) -> bool:
    """Tell whether an axis may be cut; the faces of a region inside the volume need a halo as seams do."""
    extent = request.zyx_shape[axis]
    if request.roi is not None and request.roi.shape[axis] < extent:
        return True
    least = request.block_shape or request.chunk_shape or (planner.CHUNK,) * 3
    return least[axis] < extent


def _ways_to_fit(request: PlanRequest, make: Callable[[PlanRequest, int], Plan], iterations: int) -> Iterator[str]:
    """Yield a sentence for each other setting whose plan fits the memory."""

    def first_that_fits(others: Iterable[tuple[PlanRequest, int]]) -> tuple[Plan, int] | None:
        for other, n in others:
            # A block that does not suit given chunks or shards does not help either.
            with suppress(BudgetError, InvalidInputError):
                return make(other, n), n
        return None

    smaller = (replace(request, block_shape=shape) for shape in _other_blocks(request))
    if found := first_that_fits((other, iterations) for other in smaller):
        yield f"--block-shape {zyx_text(found[0].core_shape)} would fit."
    if request.halo is not None:
        thinner = (replace(request, halo=halo) for halo in _thinner(request.halo))
        if found := first_that_fits((other, iterations) for other in thinner):
            yield f"--halo {zyx_text(found[0].halo)} would fit."
    elif found := first_that_fits((request, iterations >> n) for n in range(1, iterations.bit_length())):
        plan, fewer = found
        yield f"--iterations {fewer} would fit, with a halo of {zyx_text(plan.halo)}."


def _other_blocks(request: PlanRequest) -> Iterator[Triple | None]:
    """Yield block shapes to try instead; None leaves the choice to the planner, whose smallest block is a chunk."""
    if request.block_shape is not None:
        yield None
    yield from ((edge,) * 3 for edge in (planner.CHUNK // 2, planner.CHUNK // 4))


def _thinner(halo: Triple) -> Iterator[Triple]:
    while any(halo):
        halo = triple(h // 2 for h in halo)
        yield halo


def slab(psf: PSF, settings: CalibratedSettings, zyx_shape: Triple) -> np.ndarray:
    """Return simulated photons ``v z y x``: a texture of specks with photon noise, as bright as the intensity scale."""
    rng = np.random.default_rng(0)
    specks = np.where(rng.random(zyx_shape) < 0.01, rng.exponential(size=zyx_shape), 0.0)
    texture = ndimage.gaussian_filter(specks, SMOOTHNESS, mode="wrap")
    views = np.stack([signal.oaconvolve(texture, view, mode="same") for view in psf.views.astype(np.float64)])
    views *= settings.intensity_scale / max(float(np.percentile(views, 99.9)), 1e-12)
    photons: np.ndarray = rng.poisson(np.maximum(views, 0) + settings.background).astype(np.float32)
    return photons


def _cut(psf: PSF, settings: CalibratedSettings, prior: Prior | None, axis: int, half: int) -> EdgeErrorProfile:
    """Restore a slab whole and cut in two halves of ``half`` voxels, and compare plane by plane."""
    shape = [min(max(3 * radius, 16), 48) for radius in psf.radius_zyx]
    shape[axis] = 2 * half
    photons = slab(psf, settings, (shape[0], shape[1], shape[2]))

    def restored(start: int, stop: int) -> np.ndarray:
        part = photons.take(range(start, stop), axis=1 + axis)
        operator = psf.operator(Box.of_shape(triple(part.shape[1:])), settings)
        return np.moveaxis(restore(part, None, operator, prior, settings), axis, 0)

    whole = restored(0, 2 * half)
    mean_energy = float(np.square(whole, dtype=np.float64).sum()) / (2 * half)

    def curve(difference: np.ndarray) -> tuple[float, ...]:
        energy = np.square(difference, dtype=np.float64).sum(axis=(1, 2)) / mean_energy
        # A running maximum from the far end: a dark plane does not lower the profile before it.
        return tuple(float(f"{e:.4g}") for e in np.sqrt(np.maximum.accumulate(energy[::-1])[::-1]))

    return EdgeErrorProfile(
        curve((restored(0, half) - whole[:half])[::-1]), curve(restored(half, 2 * half) - whole[half:])
    )
