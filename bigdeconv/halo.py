"""How far the end of a data window reaches in, measured with the numerics and handed on as plain numbers.

The actual iteration restores a synthetic slab whole and cut in two; at the cut the difference shows how an error decays with
the distance.  The slab is long on the probed axis and a few PSF radii across.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage, signal

from bigdeconv import deconvolution, models, planner
from bigdeconv.errors import BudgetError, InvalidInputError
from bigdeconv.geometry import triple, zyx_text
from bigdeconv.seams import SAFETY, Decay, worst
from bigdeconv.storage.cache import remembered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bigdeconv.blocks import Plan
    from bigdeconv.deconvolution import Settings
    from bigdeconv.geometry import Triple
    from bigdeconv.planner import Request
    from bigdeconv.priors import Prior
    from bigdeconv.priors.weights import WcrrWeights

PHOTONS = 100.0
"""Photons at the intensity scale where the settings give none; from 10 to 1000 the halo changes by a fifth at most."""
BACKGROUND_SHARE = 0.05
"""Background as a share of them; the less, the further an error reaches, by a fifth from a half down to a fiftieth."""
SMOOTHNESS = 1.5
"""Standard deviation of the slab's texture, in voxels."""
_VERSION = 6
"""Raised when the same problem would be measured otherwise, by other numerics too."""
_MARGIN = 10.0
"""How far below the tolerance a curve is followed: what the FFT's rounding adds to a halo makes the error that much smaller."""


def make_plan(request: Request, settings: Settings, kernels: Iterable[np.ndarray], model: WcrrWeights | None) -> Plan:
    """Make a plan whose halo keeps the seam tolerance.

    Parameters
    ----------
    request
        Its halo, where given, is taken as it is, and its ``decays`` are measured here.
    settings
        The iteration, with background and intensity scale in photons.
    kernels
        PSFs ``v z y x`` of every channel; the halo is for the one that takes most.  Without any, nothing is calibrated.

    Raises
    ------
    BudgetError
        If it does not fit the memory; the sentence names the memory, block, halo or number of iterations that would do.
    """
    distinct = list({id(k): k for k in kernels}.values())

    def make(request: Request, iterations: int) -> Plan:
        decays = _decays(request, replace(settings, iterations=iterations), distinct, model)
        return planner.make_plan(replace(request, decays=decays))

    try:
        return make(request, settings.iterations)
    except BudgetError as error:
        ways = _ways_to_fit(request, make, settings.iterations)
        raise BudgetError(" ".join([str(error), *ways])) from error


def warnings(plan: Plan, request: Request) -> list[str]:
    """Return a sentence if the seam tolerance will not be kept."""
    error, tolerance = plan.predicted_seam_error, request.seam_tolerance
    if error is None or error <= tolerance:
        return []
    expected = f"An error of {error:.1e} is expected next to seams, more than the seam tolerance of {tolerance:g}"
    if request.halo is not None:
        return [f"{expected}; leave --halo out for one that keeps it."]
    return [
        f"{expected}, whatever the halo: rounding grows to that; lower --iterations or --tau, or take --update convergent."
    ]


def calibrate(kernels: np.ndarray, settings: Settings, model: WcrrWeights | None, axis: int, tolerance: float) -> Decay:
    """Return how an error decays along one axis; remembered on disk, as measuring it takes seconds.

    Parameters
    ----------
    kernels
        PSFs, ``v z y x``.
    settings
        The iteration, with background and intensity scale in photons.
    axis
        0, 1 or 2 for z, y or x.
    tolerance
        The curve is followed until it is well below this, or levels off.
    """
    problem = {
        "version": _VERSION,
        "psf": hashlib.sha256(np.ascontiguousarray(kernels).tobytes()).hexdigest(),
        "shape": kernels.shape,
        "settings": {k: str(v) for k, v in asdict(settings).items() if k != "device"},
        "model": models.digest(model) if model and settings.tau else None,
        "axis": axis,
        "tolerance": tolerance,
    }
    digest = hashlib.sha256(json.dumps(problem, sort_keys=True).encode()).hexdigest()[:24]
    return remembered(f"halo-{digest}", lambda: asdict(measure(kernels, settings, model, axis, tolerance)), _parsed)


def _parsed(curves: dict[str, Any]) -> Decay:
    above, below = (tuple(float(e) for e in curves[name]) for name in ("ends_above", "ends_below"))
    if not above or not below:
        raise ValueError("an empty curve")
    return Decay(above, below)


def measure(kernels: np.ndarray, settings: Settings, model: WcrrWeights | None, axis: int, tolerance: float) -> Decay:
    """Measure what `calibrate` returns."""
    settings = replace(settings, device="cpu")
    prior = deconvolution.make_prior(settings, model)
    radius = max(kernels.shape[1 + axis] // 2, 3)
    previous = np.inf
    half = max(radius * (2 + np.sqrt(settings.iterations)), 24)
    for longer in (1, 1.5, 2.25):
        # Several threads gain little on so small slabs, and lose much beside other work.
        with deconvolution.cpu_threads(1):
            decay = _cut(kernels, settings, prior, axis, round(half * longer))
        if decay.floor <= tolerance / (SAFETY * _MARGIN) or decay.floor > 0.5 * previous:
            break
        previous = decay.floor
    return decay


def _decays(
    request: Request, settings: Settings, kernels: list[np.ndarray], model: WcrrWeights | None
) -> tuple[Decay | None, ...]:
    return tuple(
        worst(calibrate(k, settings, model, axis, request.seam_tolerance) for k in kernels)
        if kernels and _may_have_seams(request, axis)
        else None
        for axis in range(3)
    )


def _may_have_seams(request: Request, axis: int) -> bool:
    """Tell whether an axis may be cut; where a region is cut out of it, its faces need a halo as a seam does."""
    extent = request.zyx_shape[axis]
    if request.roi is not None and request.roi.shape[axis] < extent:
        return True
    least = request.block_shape or request.chunk_shape or (planner.CHUNK,) * 3
    return least[axis] < extent


def _ways_to_fit(request: Request, make: Callable[[Request, int], Plan], iterations: int) -> Iterator[str]:
    """Yield a sentence for each other setting whose plan fits the memory."""

    def first_that_fits(others: Iterable[tuple[Request, int]]) -> tuple[Plan, int] | None:
        for other, n in others:
            # A block that does not suit given chunks or shards is no way out either.
            with suppress(BudgetError, InvalidInputError):
                return make(other, n), n
        return None

    smaller = (replace(request, block_shape=shape) for shape in _other_blocks(request))
    if found := first_that_fits((other, iterations) for other in smaller):
        yield f"--block-shape {zyx_text(found[0].core_shape)} would do."
    if request.halo is not None:
        thinner = (replace(request, halo=halo) for halo in _thinner(request.halo))
        if found := first_that_fits((other, iterations) for other in thinner):
            yield f"--halo {zyx_text(found[0].halo)} would do."
    elif found := first_that_fits((request, iterations >> n) for n in range(1, iterations.bit_length())):
        plan, fewer = found
        yield f"--iterations {fewer} would do: the seam tolerance then takes a halo of {zyx_text(plan.halo)}."


def _other_blocks(request: Request) -> Iterator[Triple | None]:
    """Yield other block shapes than the one that is too large; None leaves it to the planner, whose smallest is a chunk."""
    if request.block_shape is not None:
        yield None
    yield from ((edge,) * 3 for edge in (planner.CHUNK // 2, planner.CHUNK // 4))


def _thinner(halo: Triple) -> Iterator[Triple]:
    while any(halo):
        halo = triple(h // 2 for h in halo)
        yield halo


def slab(kernels: np.ndarray, settings: Settings, zyx_shape: Triple) -> np.ndarray:
    """Return simulated photons ``v z y x`` of a texture of specks, as bright as the intensity scale, with photon noise."""
    rng = np.random.default_rng(0)
    specks = np.where(rng.random(zyx_shape) < 0.01, rng.exponential(size=zyx_shape), 0.0)
    texture = ndimage.gaussian_filter(specks, SMOOTHNESS, mode="wrap")
    views = np.stack([signal.oaconvolve(texture, kernel, mode="same") for kernel in kernels.astype(np.float64)])
    views *= settings.intensity_scale / max(float(np.percentile(views, 99.9)), 1e-12)
    photons: np.ndarray = rng.poisson(np.maximum(views, 0) + settings.background).astype(np.float32)
    return photons


def _cut(kernels: np.ndarray, settings: Settings, prior: Prior | None, axis: int, half: int) -> Decay:
    """Restore a slab whole and cut in two halves of ``half`` voxels, and compare plane by plane."""
    shape = [min(max(3 * (n // 2), 16), 48) for n in kernels.shape[1:]]
    shape[axis] = 2 * half
    photons = slab(kernels, settings, (shape[0], shape[1], shape[2]))

    def restored(start: int, stop: int) -> np.ndarray:
        part = photons.take(range(start, stop), axis=1 + axis)
        blur = deconvolution.make_blur(kernels, part.shape[1:], settings)
        return np.moveaxis(deconvolution.restore(part, None, blur, prior, settings), axis, 0)

    whole = restored(0, 2 * half)
    mean_energy = float(np.square(whole, dtype=np.float64).sum()) / (2 * half)

    def curve(difference: np.ndarray) -> tuple[float, ...]:
        energy = np.square(difference, dtype=np.float64).sum(axis=(1, 2)) / mean_energy
        # What comes later never counts for less, so that a dark plane promises nothing.
        return tuple(float(f"{e:.4g}") for e in np.sqrt(np.maximum.accumulate(energy[::-1])[::-1]))

    return Decay(curve((restored(0, half) - whole[:half])[::-1]), curve(restored(half, 2 * half) - whole[half:]))
