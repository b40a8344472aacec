"""A seam probe on a worker: a patch on a seam is solved again in a window without a seam there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bigdeconv.engine.block import read_stored, restore_window, to_stored
from bigdeconv.geometry import triple
from bigdeconv.planning import seam_probes as probes

if TYPE_CHECKING:
    from bigdeconv.engine.recipe import Recipe
    from bigdeconv.geometry import Box
    from bigdeconv.planning.seam_probes import SeamMeasurement, SeamProbe


def probe_seam(recipe: Recipe, probe: SeamProbe) -> SeamMeasurement:
    """Solve the brightest patch of a seam again and compare it with what is stored."""
    patch, stored = _brightest_patch(recipe, probe)
    window = probes.window_of(recipe.plan, patch)
    reference, is_valid = _solve(recipe, probe, window, patch)
    scale = recipe.channels[probe.channel].output_scale
    stored_again, _ = to_stored(reference.copy(), np.dtype(recipe.output_dtype), scale, recipe.keep_bits)
    as_stored = stored_again / scale
    difference = np.where(is_valid, stored - reference, 0.0)
    worst = np.unravel_index(int(np.abs(difference).argmax()), difference.shape)
    return probes.SeamMeasurement(
        probe.axis,
        probe.timepoint,
        probe.channel,
        probe.face,
        patch,
        window,
        difference=_energy(difference),
        rounding=_energy(np.where(is_valid, as_stored - reference, 0.0)),
        reference=_energy(np.where(is_valid, reference, 0.0)),
        worst_difference=float(difference[worst]),
        worst_at=triple(s + i for s, i in zip(patch.start, worst, strict=True)),
        volume=probe.volume,
    )


def _brightest_patch(recipe: Recipe, probe: SeamProbe) -> tuple[Box, np.ndarray]:
    """Return the patch with the most light and its stored values in photons: a dark patch would measure nothing."""
    origin = recipe.plan.roi.start
    strip = read_stored(recipe, 0, probe.timepoint, probe.channel, probe.strip.relative_to(origin))
    photons = strip / np.float64(recipe.channels[probe.channel].output_scale)

    def part(patch: Box) -> np.ndarray:
        found: np.ndarray = photons[patch.relative_to(probe.strip.start).slices]
        return found

    patch = max(probe.patches(), key=lambda p: _energy(part(p)))
    return patch, part(patch)


def _solve(recipe: Recipe, probe: SeamProbe, window: Box, patch: Box) -> tuple[np.ndarray, np.ndarray]:
    """Return the estimate on a patch in photons, and the mask of its valid voxels."""
    estimate, voxel_weights, _ = restore_window(recipe, probe.timepoint, probe.channel, window, patch)
    if estimate is None:
        return np.zeros(patch.shape), np.zeros(patch.shape, bool)
    inner = patch.relative_to(window.start).slices
    is_valid = np.ones(patch.shape, bool)
    if voxel_weights is not None:
        is_valid = np.any(voxel_weights[(slice(None), *inner)] > 0, axis=0)
    return estimate[inner].astype(np.float64), is_valid


def _energy(values: np.ndarray) -> float:
    return float(np.square(values, dtype=np.float64).sum())
