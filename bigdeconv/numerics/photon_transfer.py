"""Gain and offset of a camera from the images themselves: how the variance of the noise grows with the mean.

The noise is what a steep high-pass filter leaves in y and x, where a blurred object has hardly any power.  Photon noise makes its
variance rise in proportion to the light, ``variance = (counts - dark)/gain``, with the gain in photons per count and a dark
level that holds offset and read noise together.  Structure that passes the filter grows with the square of the light, and is
fitted beside it.

References
----------
Janesick, "Photon Transfer", SPIE Press (2007); Foi, Trimeche, Katkovnik, Egiazarian, "Practical Poissonian-Gaussian noise
modeling and fitting for single-image raw-data", IEEE Trans. Image Process. 17 (2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from scipy.optimize import nnls

if TYPE_CHECKING:
    from collections.abc import Iterable

SECOND = np.array([1.0, -2.0, 1.0])
FOURTH = np.array([1.0, -4.0, 6.0, -4.0, 1.0])
"""Differences along y and along x: of white noise both leave the same variance, of correlated noise the steeper one less."""
N_BINS = 24
"""Bins of the mean, with as many voxels each."""
DARK_BINS = 8
"""Bins in which the noise is tested for correlation: structure hides it least there."""
TILES = (2, 3, 3)
"""Tiles of a sample, z y x, that are drawn again to get the intervals."""
REDRAWS = 40
CORRELATED = 0.1
"""Correlation from which on the noise counts as not white."""
MODELS = ((1,), (0, 1), (0, 1, 2))
"""Terms of the variance that may be needed, see `_fitted`: without the first, counts have no offset.  Structure alone beside the
slope would look like an offset."""
SHARED = 4.0
"""Voxels that hold the same noise after the filter, about."""
SYSTEMATIC = 0.1
"""Relative error of a gain beside the noise of its estimate: structure that passes the filter."""
LEAST_NOISE = 1e-6
"""Noise at the brightest mean, as a fraction of it, below which there is none: rounding."""
SEED = 20070601


@dataclass(frozen=True, slots=True)
class CameraEstimate:
    """Camera as the noise shows it."""

    gain: float
    """Photons per count."""
    gain_interval: tuple[float, float]
    """95 % interval of the gain; (0, inf) where the noise does not tell."""
    dark: float
    """Counts at which the variance would be 0: the offset less the read noise's share."""
    dark_interval: tuple[float, float]
    correlation: float
    """Departure of the noise from white, 0 for white noise."""
    is_correlated: bool

    @property
    def is_photon_counting(self) -> bool:
        """Whether counts may be photons as they are."""
        return self.gain_interval[0] <= 1.0 <= self.gain_interval[1]

    @property
    def is_known(self) -> bool:
        """Whether the noise tells the gain within a factor of two."""
        low, high = self.gain_interval
        return low > 0 and high < 4 * low


@dataclass(frozen=True, slots=True, eq=False)
class _Tile:
    """Noise of one tile by bins of the mean: sums over its voxels."""

    n: np.ndarray
    mean: np.ndarray
    fourth: np.ndarray
    """Squares of what the fourth differences leave."""
    second: np.ndarray
    """The same for second differences."""
    lagged: np.ndarray
    """Products of fourth differences in neighbouring planes."""
    lags: np.ndarray
    """Numbers of such products."""


def estimate_camera(samples: Iterable[tuple[np.ndarray, np.ndarray]], *, ceiling: float = math.inf) -> CameraEstimate:
    """Estimate gain and dark level from the noise of samples.

    Parameters
    ----------
    samples : iterable of (ndarray, ndarray of bool)
        Stored counts ``z y x`` and the mask of valid voxels.
    ceiling : float
        Counts from which on voxels are saturated, and left out.

    Returns
    -------
    CameraEstimate

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> light = np.broadcast_to(np.linspace(5, 100, 64), (8, 64, 64))
    >>> counts = 100 + rng.poisson(light) / 0.5
    >>> found = estimate_camera([(counts, np.ones(counts.shape, bool))])
    >>> round(found.gain, 1), found.is_photon_counting, found.is_correlated
    (0.5, False, False)
    """
    pieces = [_noise(counts, valid & (counts < ceiling)) for counts, valid in samples]
    pieces = [piece for piece in pieces if piece[0].size]
    if not pieces:
        return _unknown()
    means = np.concatenate([mean for mean, *_ in pieces])
    edges = np.unique(np.quantile(means[:: max(means.size // 1_000_000, 1)], np.linspace(0, 1, N_BINS + 1)))
    if len(edges) < 4:
        return _unknown()
    tiles = [tile for piece in pieces for tile in _tiles(piece, edges)]
    terms = min(MODELS, key=lambda terms: _misfit(tiles, terms))
    rng = np.random.default_rng(SEED)
    drawn = [rng.integers(len(tiles), size=len(tiles)) for _ in range(REDRAWS)]
    redrawn = [_line([tiles[i] for i in chosen], terms) for chosen in drawn]
    slope, dark = _line(tiles, terms)
    brightest = float(means.max())
    if not slope * abs(brightest) > (LEAST_NOISE * brightest) ** 2:
        return _unknown()
    slopes, darks = (np.array(values) for values in zip(*redrawn, strict=True))
    low, high = _interval(slopes)
    correlation = _correlation(tiles)
    spread = float(np.std([_correlation([tiles[i] for i in chosen]) for chosen in drawn]))
    return CameraEstimate(
        gain=1 / slope,
        gain_interval=(
            (1 - SYSTEMATIC) / high if high > 0 else 0.0,
            (1 + SYSTEMATIC) / low if low > 0 else math.inf,
        ),
        dark=dark,
        dark_interval=_interval(darks[np.isfinite(darks)]),
        correlation=correlation,
        is_correlated=abs(correlation) > max(CORRELATED, 3 * spread),
    )


def _unknown() -> CameraEstimate:
    return CameraEstimate(1.0, (0.0, math.inf), 0.0, (-math.inf, math.inf), 0.0, is_correlated=False)


def _interval(values: np.ndarray) -> tuple[float, float]:
    if not values.size:
        return -math.inf, math.inf
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


_Noise = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _noise(counts: np.ndarray, valid: np.ndarray) -> _Noise:
    """Return, per voxel, mean, fourth and second differences, the product with the plane above, and the tile; valid ones only."""
    values = np.where(valid, counts, 0).astype(np.float64)
    inside = ndimage.minimum_filter(valid, (1, 5, 5), mode="constant", cval=False)
    around = np.outer(FOURTH, FOURTH)
    mean = ndimage.correlate(values, np.abs(around / np.abs(around).sum())[None], mode="nearest")
    fourth, second = (_differences(values, kernel) for kernel in (FOURTH, SECOND))
    lagged = np.full(values.shape, np.nan)
    lagged[:-1] = np.where(inside[:-1] & inside[1:], fourth[:-1] * fourth[1:], np.nan)
    tile = np.zeros(values.shape, np.int64)
    for axis, (n, parts) in enumerate(zip(values.shape, TILES, strict=True)):
        along = [1, 1, 1]
        along[axis] = n
        tile = tile * parts + (np.arange(n) * parts // n).reshape(along)
    return mean[inside], fourth[inside], second[inside], lagged[inside], tile[inside]


def _differences(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return differences along y and x, scaled so that white noise keeps its variance."""
    found = ndimage.correlate1d(values, kernel / np.linalg.norm(kernel), axis=1, mode="nearest")
    return np.asarray(ndimage.correlate1d(found, kernel / np.linalg.norm(kernel), axis=2, mode="nearest"))


def _tiles(piece: _Noise, edges: np.ndarray) -> list[_Tile]:
    mean, fourth, second, lagged, tile = piece
    n_bins = len(edges) - 1
    index = np.clip(np.searchsorted(edges, mean, side="right") - 1, 0, n_bins - 1)
    known = np.isfinite(lagged)
    found = []
    for number in np.unique(tile):
        mine = tile == number

        def total(values: np.ndarray | None, mine: np.ndarray = mine) -> np.ndarray:
            weights = None if values is None else values[mine]
            return np.bincount(index[mine], weights=weights, minlength=n_bins).astype(np.float64)

        sums = (None, mean, fourth**2, second**2, np.where(known, lagged, 0), known.astype(float))
        found.append(_Tile(*(total(values) for values in sums)))
    return found


def _sums(tiles: list[_Tile]) -> list[np.ndarray]:
    """Return the sums over tiles, of bins with enough voxels."""
    sums = [np.sum([getattr(tile, name) for tile in tiles], axis=0) for name in _Tile.__slots__]
    used = sums[0] > 8
    return [values[used] for values in sums]


def _correlation(tiles: list[_Tile]) -> float:
    """Return the correlation of the noise in dark bins: what the steeper filter misses, or what the next plane repeats."""
    n, _, fourth, second, lagged, lags = (values[:DARK_BINS].sum() for values in _sums(tiles))
    if not fourth > 0 or not second > 0:
        return 0.0
    lateral = 1 - fourth / second
    axial = (lagged / max(lags, 1)) / (fourth / n)
    return float(max(lateral, axial, key=abs))


def _line(tiles: list[_Tile], terms: tuple[int, ...]) -> tuple[float, float]:
    """Return the slope of variance over mean, and the mean at which the line is 0."""
    n, mean, fourth, *_ = _sums(tiles)
    if not n.size or not fourth.any():
        return 0.0, math.nan
    level, slope, _ = _fitted(mean / n, fourth / n, n, terms)[0]
    return slope, -level / slope if slope > 0 else math.nan


def _misfit(tiles: list[_Tile], terms: tuple[int, ...]) -> float:
    """Return the Bayesian information criterion (Schwarz 1978) of a model of the variance."""
    n, mean, fourth, *_ = _sums(tiles)
    if not n.size or not fourth.any():
        return math.inf
    variance = fourth / n
    expected = _fitted(mean / n, variance, n, terms)[1]
    # Twice the log-likelihood of a sum of squares; the filter repeats each voxel's noise in some SHARED others.
    deviance = (n / SHARED * (variance / expected - 1 - np.log(np.maximum(variance / expected, 1e-12)))).sum()
    return float(deviance + len(terms) * math.log(n.sum() / SHARED))


def _fitted(
    mean: np.ndarray, variance: np.ndarray, n: np.ndarray, terms: tuple[int, ...]
) -> tuple[tuple[float, float, float], np.ndarray]:
    """Fit some terms of ``variance = level + slope·mean + texture·(mean - darkest)²``; return the three and the fit.

    Slope and texture are 0 or more.  The bins weigh by their errors, which are in proportion to the variance.
    """
    powers = np.stack([np.ones_like(mean), mean, (mean - mean.min()) ** 2], axis=1)
    # A level of either sign is the difference of two that are not negative.
    columns = np.concatenate([powers[:, terms], *([-powers[:, :1]] if 0 in terms else [])], axis=1)
    size = np.maximum(np.abs(columns).max(axis=0), 1e-300)
    expected = np.maximum(variance, 1e-12 * float(variance.max()))
    for _ in range(4):
        weight = np.sqrt(n) / expected
        solution = nnls(columns / size * weight[:, None], variance * weight)[0] / size
        expected = np.maximum(columns @ solution, 1e-2 * expected)
    found = [0.0, 0.0, 0.0]
    for term, value in zip(terms, solution, strict=False):
        found[term] = float(value)
    if 0 in terms:
        found[0] -= float(solution[-1])
    level, slope, texture = found
    return (level, slope, texture), expected
