"""What is decided once for all blocks, before the first: which values are data, background, intensity scale, output scale.

A block that chose its own would be a visible tile, a time point that chose its own would flicker.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from bigdeconv import deconvolution, intensity
from bigdeconv.errors import StoreError
from bigdeconv.geometry import Box, Triple, triple
from bigdeconv.intensity import Camera, Validity, VoxelCounts
from bigdeconv.storage.arrays import read_box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bigdeconv.priors.weights import WcrrWeights
    from bigdeconv.storage.omezarr import VolumeInfo

T = TypeVar("T")

REGION = 64
"""Edge of a sample region in voxels."""
SAMPLED_VOXELS = 1e8
"""Most voxels that are sampled of a channel, all views and regions together."""
SAMPLED_VOLUMES = 8
"""Most volumes of a job that are sampled."""
HEADROOM = 4.0
"""How much brighter than the brightest calibrated voxel the stored integers can become."""
UINT16_MAX = 65535
MOST_VARIATION = 2.0
"""How much brighter the brightest sampled time point may be than the dimmest without a warning."""


class Given(NamedTuple):
    """What the user has decided; None where the data shall."""

    background: float | None = None
    """Counts above the camera offset."""
    intensity_scale: float | None = None
    """Counts."""
    tau: float | None = None
    output_scale: float | None = None


@dataclass(frozen=True, slots=True)
class ChannelCalibration:
    """What one channel's blocks share."""

    validity: Validity
    saturation: float
    """Photons from which on a datum means "at least"; infinite for floating point."""
    output_scale: float
    """Factor from photons to stored values."""
    digest: str
    """Checksum of the sampled voxels: part of the identity of a run."""
    warnings: tuple[str, ...]


class Region(NamedTuple):
    """A box of one volume at one time point."""

    info: VolumeInfo
    timepoint: int
    box: Box


@dataclass(frozen=True, slots=True)
class Sampling:
    """Where and how a channel is sampled."""

    volumes: tuple[tuple[VolumeInfo, tuple[int, ...]], ...]
    """Each with the time points that are deconvolved; all of one dtype."""
    channel: int
    view_axis: str | None
    camera: Camera
    kernels: np.ndarray
    """``v z y x``"""
    masked: bool = True
    """Whether fill and hot pixels are looked for."""

    @property
    def info(self) -> VolumeInfo:
        """The first volume."""
        return self.volumes[0][0]

    def regions(self) -> Iterator[Region]:
        """Yield up to 27 regions spread over each of up to eight volumes, and over up to three time points of each."""
        sampled = _spread(self.volumes, SAMPLED_VOLUMES)
        n_regions = 27 * sum(min(len(timepoints), 3) for _, timepoints in sampled) * len(self.kernels)
        widest = max(min(REGION, int((SAMPLED_VOXELS / n_regions) ** (1 / 3))), 1)
        for info, timepoints in sampled:
            shape = info.zyx_shape
            edge = triple(min(widest, n) for n in shape)
            starts = [sorted({round((n - e) * f) for f in (0.0, 0.5, 1.0)}) for n, e in zip(shape, edge, strict=True)]
            for timepoint, *start in product(_spread(timepoints, 3), *starts):
                box = Box(triple(start), triple(a + e for a, e in zip(start, edge, strict=True)))
                yield Region(info, timepoint, box)

    def readable(self) -> Iterator[tuple[Region, np.ndarray]]:
        """Yield the regions with their counts, less those that cannot be read: their blocks will say so.

        Raises
        ------
        StoreError
            If none can be read.
        """
        failure: StoreError | None = None
        found = False
        for region in self.regions():
            try:
                counts = self.read(region)
            except StoreError as error:
                failure = error
                continue
            found = True
            yield region, counts
        if failure is not None and not found:
            raise failure

    def read(self, region: Region) -> np.ndarray:
        """Return the counts of a region, ``v z y x``."""
        info, timepoint, box = region
        counts = read_box(info, box, timepoint=timepoint, channel=self.channel, view_axis=self.view_axis)
        return counts if self.view_axis else counts[None]


def calibrate(
    sampling: Sampling,
    settings: deconvolution.Settings,
    model: WcrrWeights | None,
    given: Given,
    halo: Triple,
) -> tuple[ChannelCalibration, deconvolution.Settings]:
    """Decide the numbers of one channel and complete its settings.

    Parameters
    ----------
    settings
        Of the iteration.
    halo
        Around a region that is restored to choose the output scale.

    Returns
    -------
    tuple
        The calibration, and ``settings`` with background, scale, saturation and ``tau`` filled in, in photons.
    """
    camera, warnings = sampling.camera, list[str]()
    regions = list(sampling.readable())
    counts = [counts for _, counts in regions]
    flat = [view for region in counts for view in region]
    fill = intensity.detect_fill(flat, sampling.info.fill_value) if sampling.masked else None
    validity = Validity(fill=fill)
    photons = [camera.photons(view) for view in flat]
    masks = [_is_datum(c, p, validity) for c, p in zip(flat, photons, strict=True)]
    radius = [n // 2 for n in sampling.kernels.shape[1:]]
    b, scale = given.background, given.intensity_scale
    b = intensity.estimate_background(photons, masks, radius) if b is None else camera.background(b)
    scale = intensity.estimate_scale(photons, masks, b) if scale is None else scale * camera.gain
    if scale <= 0:
        scale = 1.0
        warnings.append("The volume looks constant or empty: nothing rises above the background.")
    warnings += _negative_warning(flat, masks, camera)
    places = [region for region, views in regions for _ in views]
    warnings += _variation_warning(places, photons, masks, b, camera)
    validity = Validity(fill, intensity.hot_ratio(sampling.kernels) if sampling.masked else None, b, scale)
    settings = replace(settings, background=b, intensity_scale=scale, saturation=_saturation(sampling.info, camera))
    tau = _choose_tau(counts, sampling, settings, model, validity) if given.tau is None else given.tau
    settings = replace(settings, tau=tau)
    output_scale = given.output_scale
    if output_scale is None:
        output_scale = _choose_output_scale(sampling, settings, model, validity, halo)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(c).tobytes() for c in counts)).hexdigest()
    return ChannelCalibration(validity, settings.saturation, output_scale, digest, tuple(warnings)), settings


def prepare_views(
    counts: np.ndarray, camera: Camera, validity: Validity, owned: tuple[slice, ...] = (slice(None),) * 3
) -> tuple[np.ndarray, np.ndarray | None, VoxelCounts]:
    """Turn counts ``v z y x`` into photons, voxel weights (None where all are 1), and what was left out of ``owned``."""
    photons = np.empty(counts.shape, np.float64 if counts.dtype == np.float64 else np.float32)
    weights: np.ndarray | None = None
    total = VoxelCounts()
    for v, view in enumerate(counts):
        photons[v] = camera.photons(view)
        not_finite, fill, hot = intensity.data_mask(view, photons[v], validity)
        invalid = not_finite | fill | hot
        below = (view < camera.offset) & ~invalid
        total += VoxelCounts(below[owned].size, *(int(mask[owned].sum()) for mask in (not_finite, fill, hot, below)))
        if invalid.any():
            weights = np.ones(counts.shape, np.float32) if weights is None else weights
            weights[v][invalid] = 0
    return photons, weights, total


def _is_datum(counts: np.ndarray, photons: np.ndarray, validity: Validity) -> np.ndarray:
    not_finite, fill, hot = intensity.data_mask(counts, photons, validity)
    return np.asarray(~(not_finite | fill | hot))


def _negative_warning(counts: list[np.ndarray], masks: list[np.ndarray], camera: Camera) -> list[str]:
    total = sum(c.size for c in counts)
    below = sum(int(np.count_nonzero((c < camera.offset) & m)) for c, m in zip(counts, masks, strict=True))
    if below <= 0.01 * total:
        return []
    return [f"{100 * below / total:.1f} % of the sampled voxels lie below the camera offset; check --camera-offset."]


def _variation_warning(
    places: list[Region], photons: list[np.ndarray], masks: list[np.ndarray], background: float, camera: Camera
) -> list[str]:
    """Compare a volume's sampled time points by what `estimate_scale` says of each; report the volume that varies most."""
    found: list[tuple[float, str]] = []
    locations = list(dict.fromkeys(region.info.location for region in places))
    for location in locations:
        mine = [i for i, region in enumerate(places) if region.info.location == location]
        levels = _levels_over_time(
            [places[i] for i in mine], [photons[i] for i in mine], [masks[i] for i in mine], background
        )
        (dimmest, low), (brightest, high) = (pick(levels.items(), key=lambda item: item[1]) for pick in (min, max))
        if high <= MOST_VARIATION * low:
            continue
        factor, where = (
            (f"{high / low:.1f}-fold" if low else "from nothing"),
            f" in {location}" if len(locations) > 1 else "",
        )
        found.append(
            (
                high / low if low else math.inf,
                f"The foreground varies {factor} over time{where} (99.9th percentile above background: "
                f"{low / camera.gain:.4g} counts at time point {dimmest}, {high / camera.gain:.4g} at {brightest}), and one "
                "intensity scale serves all; with a prior, dim time points come out smoother: run them apart with --timepoints "
                "if that matters.",
            )
        )
    return [max(found)[1]] if found else []


def _levels_over_time(
    places: list[Region], photons: list[np.ndarray], masks: list[np.ndarray], background: float
) -> dict[int, float]:
    """Return the foreground of each sampled time point, over the regions that all of them have."""
    times = sorted({region.timepoint for region in places})
    everywhere = set.intersection(*({r.box for r in places if r.timepoint == time} for time in times))
    levels: dict[int, float] = {}
    for time in times:
        mine = [i for i, region in enumerate(places) if region.timepoint == time and region.box in everywhere]
        levels[time] = intensity.estimate_scale([photons[i] for i in mine], [masks[i] for i in mine], background)
    return levels


def _spread(items: tuple[T, ...], most: int) -> list[T]:
    """Return up to so many items, first and last among them, spread evenly."""
    last = len(items) - 1
    return [items[i] for i in sorted({round(last * n / (most - 1)) for n in range(most)})]


def _saturation(info: VolumeInfo, camera: Camera) -> float:
    dtype = np.dtype(info.dtype)
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        return math.inf
    return (float(np.iinfo(dtype).max) - camera.offset) * camera.gain + camera.read_noise**2


def _choose_tau(
    counts: list[np.ndarray],
    sampling: Sampling,
    settings: deconvolution.Settings,
    model: WcrrWeights | None,
    validity: Validity,
) -> float:
    """Try strengths on the brightest region and on one that a quarter of the regions exceed."""
    ranked = sorted(counts, key=lambda region: -_brightness(region, sampling.camera, validity))
    chosen = [ranked[i] for i in sorted({0, len(ranked) // 4})]
    views = (prepare_views(region, sampling.camera, validity)[:2] for region in chosen)
    return deconvolution.choose_tau(views, sampling.kernels, model, settings)


def _choose_output_scale(
    sampling: Sampling,
    settings: deconvolution.Settings,
    model: WcrrWeights | None,
    validity: Validity,
    halo: Triple,
) -> float:
    """Restore the two brightest regions and leave headroom: the largest power of two at which they fit four times over."""
    prior = deconvolution.make_prior(settings, model)
    ranked = sorted(sampling.readable(), key=lambda r: -_brightness(r[1], sampling.camera, validity))
    brightest = 0.0
    for (info, timepoint, box), _ in ranked[:2]:
        window = box.grow(halo).intersect(Box.of_shape(info.zyx_shape))
        photons, weights, _ = prepare_views(sampling.read(Region(info, timepoint, window)), sampling.camera, validity)
        blur = deconvolution.make_blur(sampling.kernels, window.shape, settings)
        estimate = deconvolution.restore(photons, weights, blur, prior, settings)
        brightest = max(brightest, float(estimate[box.relative_to(window.start).slices].max()))
    if brightest <= 0 or not math.isfinite(brightest):
        return 1.0
    return 2.0 ** math.floor(math.log2(UINT16_MAX / (HEADROOM * brightest)))


def _brightness(counts: np.ndarray, camera: Camera, validity: Validity) -> float:
    photons, weights, _ = prepare_views(counts, camera, validity)
    return float(np.percentile(photons if weights is None else photons * weights, 99.9))
