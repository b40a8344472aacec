"""Kinds of objects with a known truth: what a prior trained on tubes has not seen.

An object is drawn from a seed in µm, so that the same one can be sampled with any voxels; it goes on beyond the faces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from bigdeconv.errors import InvalidInputError
from bigdeconv.simulation.samples import sample, tubes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from bigdeconv.geometry import Triple

    Floats = npt.NDArray[np.float64]

SLAB_VOXELS = 2**20
"""Voxels that are computed at a time, about."""
WALL_UM = 0.1
"""Standard deviation of a membrane across, in µm, and radius of a filament."""


def objects(
    kind: str, seed: int, zyx_shape: Triple, voxel_zyx_um: Sequence[float], *, size_um: float | None = None
) -> npt.NDArray[np.float32]:
    """Simulate an object of a kind.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    seed : int
        The same seed gives the same object.
    zyx_shape : tuple of int
        Voxels.
    voxel_zyx_um : sequence of float
        Voxel size in µm.
    size_um : float, optional
        Size of a nucleus or a cell, and spacing of points and filaments, in µm.  Default: a quarter of the smaller extent in y
        and x.

    Returns
    -------
    ndarray, ``z y x``
        The largest value is 1, none is negative.

    Raises
    ------
    InvalidInputError
        If the kind is unknown, or a shape or length is not positive.

    Examples
    --------
    >>> nuclei = objects("nuclei", 1, (8, 32, 32), (0.3, 0.1, 0.1))
    >>> nuclei.shape, float(nuclei.max())
    ((8, 32, 32), 1.0)
    """
    if kind not in KINDS:
        raise InvalidInputError(f"kind: got {kind!r}; expected {', '.join(list(KINDS)[:-1])} or {list(KINDS)[-1]}.")
    voxel_um = np.asarray(voxel_zyx_um, np.float64)
    if np.shape(zyx_shape) != (3,) or min(zyx_shape) < 1 or voxel_um.shape != (3,) or not (voxel_um > 0).all():
        raise InvalidInputError(
            f"zyx_shape, voxel_zyx_um: got {tuple(zyx_shape)} and {tuple(voxel_zyx_um)}; expected three positive numbers each."
        )
    extent_um = np.asarray(zyx_shape) * voxel_um
    size = float(min(extent_um[1:])) / 4 if size_um is None else float(size_um)
    if not size > 0:
        raise InvalidInputError(f"size_um: got {size_um}; expected a positive length in µm.")
    rng = np.random.default_rng(seed)
    if kind == "tubes":
        specimen = tubes(seed, extent_um.tolist(), count=(6, 10), outer_radius_um=(0.05, 0.2))
        return sample(specimen, zyx_shape, voxel_zyx_um, peak_one=True)
    found = KINDS[kind](rng, extent_um, size, tuple(zyx_shape), voxel_um)
    peak = float(found.max())
    return (found / peak if peak > 0 else found).astype(np.float32)


Drawn = tuple[int, ...]


def _nuclei(rng: np.random.Generator, extent_um: Floats, size: float, zyx_shape: Drawn, voxel_um: Floats) -> Floats:
    """Draw ellipsoids with a texture and dark nucleoli; none covers another."""
    volume = np.zeros(zyx_shape)
    texture = _Waves(rng, 40, finest_um=size / 3, coarsest_um=size)
    for _ in range(_count(extent_um + 2 * size, 1.6 * size)):
        centre = rng.uniform(0.0, 1.0, 3) * (extent_um + 2 * size) - size
        radii, brightness = size * rng.uniform(0.5, 0.9, 3), rng.uniform(0.4, 1.0)
        dark = centre + rng.uniform(-0.45, 0.45, (2, 3)) * radii
        box, places = _around(centre, radii.max(), zyx_shape, voxel_um)
        if not places.size:
            continue
        inside = (((places - centre) / radii) ** 2).sum(axis=-1) < 1
        value = brightness * np.maximum(1 + 0.3 * texture.at(places), 0.2)
        for nucleolus in dark:
            value[((places - nucleolus) ** 2).sum(axis=-1) < (0.2 * size) ** 2] *= 0.3
        part = volume[box]
        part[inside & (part == 0)] = value[inside & (part == 0)]
    return volume


def _membranes(rng: np.random.Generator, extent_um: Floats, size: float, zyx_shape: Drawn, voxel_um: Floats) -> Floats:
    """Draw the walls between cells, which are the Voronoi cells of random points, with a dim inside."""
    margin = 2 * size
    points = rng.uniform(-margin, extent_um + margin, (_count(extent_um + 2 * margin, size), 3))
    tree = cKDTree(points)
    inside_cell = rng.uniform(0.0, 0.06, len(points))
    volume = np.empty(zyx_shape)
    for planes, places in _slabs(zyx_shape, voxel_um):
        distance, nearest = map(np.asarray, tree.query(places.reshape(-1, 3), k=2))
        apart = np.linalg.norm(points[nearest[:, 0]] - points[nearest[:, 1]], axis=1)
        # Distance from the plane half-way between the two nearest points.
        to_wall = (distance[:, 1] ** 2 - distance[:, 0] ** 2) / (2 * apart)
        wall = np.exp(-0.5 * (to_wall / WALL_UM) ** 2) + inside_cell[nearest[:, 0]]
        volume[planes] = wall.reshape(places.shape[:-1])
    return volume


def _puncta(rng: np.random.Generator, extent_um: Floats, size: float, zyx_shape: Drawn, voxel_um: Floats) -> Floats:
    """Draw points of a brightness over a factor of 7 on a dim, uneven haze."""
    points = rng.uniform(0, extent_um, (_count(extent_um, size), 3))
    volume = np.zeros(zyx_shape)
    _add_points(volume, points / voxel_um - 0.5, 7.0 ** rng.uniform(-1, 0, len(points)))
    haze = _Waves(rng, 20, finest_um=2 * size, coarsest_um=8 * size)
    for planes, places in _slabs(zyx_shape, voxel_um):
        volume[planes] += HAZE * np.maximum(1 + haze.at(places), 0) * voxel_um.prod() / size**3
    return volume


def _mesh(rng: np.random.Generator, extent_um: Floats, size: float, zyx_shape: Drawn, voxel_um: Floats) -> Floats:
    """Draw straight thin filaments of random directions."""
    volume = np.zeros(zyx_shape)
    reach = float(np.linalg.norm(extent_um))
    along = np.arange(-reach, reach, float(voxel_um.min()) / 3)
    for _ in range(2 * _count(extent_um, 1.2 * size)):
        through, direction = rng.uniform(0.0, 1.0, 3) * extent_um, rng.standard_normal(3)
        points = through + along[:, None] * direction / np.linalg.norm(direction)
        points = points[((points > 0) & (points < extent_um)).all(axis=1)]
        _add_points(volume, points / voxel_um - 0.5, np.full(len(points), rng.uniform(0.5, 1.0)))
    return volume


def _texture(rng: np.random.Generator, extent_um: Floats, size: float, zyx_shape: Drawn, voxel_um: Floats) -> Floats:
    """Draw a random field of a power-law spectrum, dark where it is low."""
    waves = _Waves(rng, 200, finest_um=size / 6, coarsest_um=3 * size)
    volume = np.empty(zyx_shape)
    for planes, places in _slabs(zyx_shape, voxel_um):
        volume[planes] = np.logaddexp(0, 3 * (waves.at(places) - 0.5))
    return volume


KINDS: dict[str, Callable[[np.random.Generator, Floats, float, Drawn, Floats], Floats]] = {
    "nuclei": _nuclei,
    "membranes": _membranes,
    "puncta": _puncta,
    "mesh": _mesh,
    "texture": _texture,
    "tubes": _mesh,
}
"""Kinds of objects; tubes are those of `bigdeconv.simulation.tubes`."""
HAZE = 0.1
"""Light of the haze for each point, as a share of the brightest point's."""


class _Waves:
    """A random field: a sum of plane waves, of which longer ones are stronger; its variance is 1."""

    def __init__(self, rng: np.random.Generator, count: int, *, finest_um: float, coarsest_um: float) -> None:
        lengths = finest_um * (coarsest_um / finest_um) ** rng.uniform(0, 1, count)
        directions = rng.standard_normal((count, 3))
        self._waves = 2 * np.pi * directions / np.linalg.norm(directions, axis=1, keepdims=True) / lengths[:, None]
        self._phases = rng.uniform(0, 2 * np.pi, count)
        self._heights = lengths * np.sqrt(2 / (lengths**2).sum())

    def at(self, places: Floats) -> Floats:
        """Return the field at positions ``... zyx`` in µm."""
        total = np.zeros(places.shape[:-1])
        for wave, phase, height in zip(self._waves, self._phases, self._heights, strict=True):
            total += height * np.cos(places @ wave + phase)
        return total


def _count(extent_um: Floats, spacing_um: float) -> int:
    """Return how many objects of a spacing fill a volume; flat samples are as deep as the spacing."""
    return max(round(float(np.maximum(extent_um, spacing_um).prod()) / spacing_um**3), 1)


def _around(centre: Floats, radius: float, zyx_shape: Drawn, voxel_um: Floats) -> tuple[tuple[slice, ...], Floats]:
    """Return the voxels of a box around a position, and their centres ``z y x zyx`` in µm."""
    first = np.clip(np.floor((centre - radius) / voxel_um).astype(int), 0, zyx_shape)
    last = np.clip(np.ceil((centre + radius) / voxel_um).astype(int), 0, zyx_shape)
    axes = [(np.arange(a, b) + 0.5) * v for a, b, v in zip(first, last, voxel_um, strict=True)]
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    return box, np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def _slabs(zyx_shape: Drawn, voxel_um: Floats) -> Iterator[tuple[slice, Floats]]:
    """Yield ranges of planes, and the centres ``z y x zyx`` of their voxels in µm."""
    depth = max(SLAB_VOXELS // (zyx_shape[1] * zyx_shape[2]), 1)
    for start in range(0, zyx_shape[0], depth):
        planes = slice(start, min(start + depth, zyx_shape[0]))
        numbers = (np.arange(planes.start, planes.stop), np.arange(zyx_shape[1]), np.arange(zyx_shape[2]))
        axes = [(n + 0.5) * v for n, v in zip(numbers, voxel_um, strict=True)]
        yield planes, np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def _add_points(volume: Floats, positions: Floats, brightness: Floats) -> None:
    """Add points at positions in voxels, each shared among its eight neighbours in proportion to its distance."""
    first = np.floor(positions).astype(int)
    beyond = positions - first
    for corner in np.ndindex(2, 2, 2):
        share = np.where(corner, beyond, 1 - beyond).prod(axis=1)
        index = first + corner
        inside = ((index >= 0) & (index < volume.shape)).all(axis=1)
        np.add.at(volume, tuple(index[inside].T), (share * brightness)[inside])
