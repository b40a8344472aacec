"""Simulated volumes as OME-Zarr: samples with a known truth, and simulated microscope images of them.

Volumes are computed in memory, which limits their size (`TUBES_BYTES`, `IMAGE_BYTES` and `VIEW_BYTES` per voxel).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import tifffile
import zarr

from bigdeconv.errors import BudgetError, InvalidInputError, OutputExistsError, StoreError
from bigdeconv.geometry import Box
from bigdeconv.simulation import samples
from bigdeconv.simulation.objects import objects
from bigdeconv.storage import omezarr
from bigdeconv.storage.arrays import read_box, write_region
from bigdeconv.storage.atomic import replaced_file
from bigdeconv.storage.locations import is_remote, resolve_location
from bigdeconv.storage.output import LevelSpec, OutputSpec, create_output, new_output
from bigdeconv.storage.psf_files import read_psf

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from bigdeconv.geometry import Triple
    from bigdeconv.storage.omezarr import VolumeInfo

    TripleUm = tuple[float, float, float]

VIEW_AXIS = "v"
"""Name of the axis along which several views of one object are written."""
CHUNK = 32
"""Largest extent of a chunk on each axis of space."""
TUBES_BYTES = 30
"""Bytes of memory per voxel while a sample is computed."""
IMAGE_BYTES, VIEW_BYTES = 44, 24
"""Bytes of memory per voxel, and per voxel and view, while a sample is imaged."""
PSF_SUFFIXES = (".tif", ".tiff", ".npy")
MAX_PHOTONS = 1e15
"""Up to this number integers are exact in float64 and Poisson numbers can be drawn."""


@dataclass(frozen=True, slots=True)
class Written:
    """Description of a volume that was written."""

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    notes: tuple[str, ...] = ()
    """One sentence for each thing that a user should know of it."""


def write_volume(
    path: str | Path,
    data: npt.NDArray[Any],
    *,
    voxel_zyx_um: Sequence[float],
    origin_zyx_um: Sequence[float] = (0.0, 0.0, 0.0),
    name: str,
    attributes: dict[str, Any] | None = None,
) -> Written:
    """Write an array as an OME-Zarr 0.5 image of one level, or nothing at all.

    Parameters
    ----------
    path : str or Path
        Place of the image: a local path that does not exist.
    data : ndarray, ``z y x`` or ``v z y x``
        One volume, or one per view.
    voxel_zyx_um : sequence of float
        Voxel size in µm.
    origin_zyx_um : sequence of float
        Position of the centre of the first voxel in µm.
    name : str
        Name of the image in the metadata.
    attributes : dict, optional
        Content of the group attribute ``bigdeconv``.

    Returns
    -------
    Written

    Raises
    ------
    OutputExistsError
        If ``path`` exists.
    StoreError
        If ``path`` is remote or cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "ones.zarr"
    >>> write_volume(path, np.ones((4, 8, 8), np.uint8), voxel_zyx_um=(0.2, 0.1, 0.1), name="ones").shape
    (4, 8, 8)
    """
    ones, zeros = ((1.0,), (0.0,)) if data.ndim == 4 else ((), ())
    axes = (VIEW_AXIS, "z", "y", "x")[-data.ndim :]
    level = LevelSpec(
        shape=data.shape,
        chunk_shape=tuple(1 if axis == VIEW_AXIS else min(n, CHUNK) for axis, n in zip(axes, data.shape, strict=True)),
        shard_shape=None,
        scale=(*ones, *(float(v) for v in voxel_zyx_um)),
        translation=(*zeros, *(float(o) for o in origin_zyx_um)),
    )
    units = tuple(None if axis == VIEW_AXIS else "micrometer" for axis in axes)
    _refuse_existing(path)
    spec = OutputSpec(axes, units, data.dtype.str, (level,), "0.5", name, (), attributes or {})
    # The volume appears with all its voxels: one with zeros in unwritten chunks would look complete.
    with new_output(Path(resolve_location(path))) as folder:
        create_output(folder, spec)
        # Dark chunks too: a run would take one without a file for one that is lost.
        with zarr.config.set({"array.write_empty_chunks": True}):
            write_region(folder, "0", tuple(slice(0, n) for n in data.shape), data)
    return Written(axes, data.shape, data.dtype.name)


def write_tubes(
    path: str | Path,
    zyx_shape: Triple,
    voxel_zyx_um: TripleUm,
    *,
    seed: int,
    count: tuple[int, int],
    outer_radius_um: tuple[float, float],
    sigma_um: float,
) -> Written:
    """Write a random sample of microtubules, float32 with maximum 1.

    Parameters
    ----------
    path : str or Path
        Place of the image: a local path that does not exist.
    zyx_shape : tuple of int
        Shape of the volume.
    voxel_zyx_um : tuple of float
        Voxel size in µm.
    seed, count, outer_radius_um, sigma_um
        See `bigdeconv.simulation.tubes`.

    Returns
    -------
    Written

    Raises
    ------
    InvalidInputError
        If a parameter is out of its range.
    BudgetError
        If the volume does not fit into the memory.
    OutputExistsError
        If ``path`` exists.
    StoreError
        If ``path`` is remote or cannot be written.
    """
    _refuse_existing(path)
    parameters = {"seed": seed, "count": count, "outer_radius_um": outer_radius_um, "sigma_um": sigma_um}
    notes = []
    if max(voxel_zyx_um) > 1.4 * sigma_um:
        notes.append(
            f"Voxels of {max(voxel_zyx_um):g} µm are wider than 1.4 sigma: fluorophores between voxel centres appear too dim. "
            f"Use a sigma of {max(voxel_zyx_um) / 1.4:.2g} µm or more, or smaller voxels."
        )
    with _within_memory(zyx_shape, TUBES_BYTES):
        extent_um = [n * v for n, v in zip(zyx_shape, voxel_zyx_um, strict=True)]
        specimen = samples.tubes(seed, extent_um, count=count, outer_radius_um=outer_radius_um, sigma_um=sigma_um)
        data = samples.sample(specimen, zyx_shape, voxel_zyx_um, peak_one=True)
    attributes = {"simulation": {"kind": "tubes", **parameters}}
    written = write_volume(path, data, voxel_zyx_um=voxel_zyx_um, name="tubes", attributes=attributes)
    return Written(written.axes, written.shape, written.dtype, tuple(notes))


def write_objects(
    path: str | Path,
    kind: str,
    zyx_shape: Triple,
    voxel_zyx_um: TripleUm,
    *,
    seed: int,
    size_um: float | None = None,
) -> Written:
    """Write a random object of a kind, float32 with maximum 1.

    Parameters
    ----------
    path : str or Path
        Place of the image: a local path that does not exist.
    kind, zyx_shape, voxel_zyx_um, seed, size_um
        See `bigdeconv.simulation.objects`.

    Returns
    -------
    Written

    Raises
    ------
    InvalidInputError
        If a parameter is out of its range.
    BudgetError
        If the volume does not fit into the memory.
    OutputExistsError
        If ``path`` exists.
    StoreError
        If ``path`` is remote or cannot be written.
    """
    _refuse_existing(path)
    with _within_memory(zyx_shape, TUBES_BYTES):
        data = objects(kind, seed, zyx_shape, voxel_zyx_um, size_um=size_um)
    attributes = {"simulation": {"kind": kind, "seed": seed, "size_um": size_um}}
    return write_volume(path, data, voxel_zyx_um=voxel_zyx_um, name=kind, attributes=attributes)


def write_calibration_target(path: str | Path, zyx_shape: Triple, voxel_zyx_um: TripleUm) -> Written:
    """Write the calibration sample of lines, rings and cubes, float32 from 0 to 1.

    Parameters
    ----------
    path : str or Path
        Place of the image: a local path that does not exist.
    zyx_shape, voxel_zyx_um
        See `bigdeconv.simulation.calibration_target`.

    Returns
    -------
    Written

    Raises
    ------
    InvalidInputError
        If a voxel size is not positive.
    BudgetError
        If the volume does not fit into the memory.
    OutputExistsError
        If ``path`` exists.
    StoreError
        If ``path`` is remote or cannot be written.
    """
    _refuse_existing(path)
    with _within_memory(zyx_shape, TUBES_BYTES):
        data = samples.calibration_target(zyx_shape, voxel_zyx_um)
    attributes = {"simulation": {"kind": "calibration"}}
    return write_volume(path, data, voxel_zyx_um=voxel_zyx_um, name="calibration", attributes=attributes)


def write_acquisition(
    truth: str | Path,
    path: str | Path,
    *,
    psf_file: str | Path | None = None,
    n_airyscan: int | None = None,
    photons: float,
    background: float,
    seed: int,
    camera_offset: float = 0.0,
    gain: float = 1.0,
    read_noise: float = 0.0,
    sum_views: bool = False,
    save_psf: str | Path | None = None,
    voxel_zyx_um: TripleUm | None = None,
) -> Written:
    """Image a stored sample through one or more PSFs and write the counts of the camera.

    A PSF that a run would correct (background, centre, negative voxels) is used as corrected, with a note; any other PSF is used
    whole, with the tails that a run crops.

    Parameters
    ----------
    truth : str or Path
        OME-Zarr image of one time point and channel, 0 or more.
    path : str or Path
        Place of the counts, a local path that does not exist: uint16 ``z y x``, or ``v z y x`` for several views, with the voxel
        size and the position of the truth.
    psf_file : str or Path, optional
        TIFF or npy file of the PSF, ``z y x`` or ``v z y x``.  Either this or ``n_airyscan`` is needed.
    n_airyscan : int, optional
        Number of elements of a simulated Airyscan detector.
    photons, background, seed
        See `bigdeconv.simulation.acquire`.
    camera_offset, gain, read_noise : float
        Counts without light, photons per count, and standard deviation of the read noise in photons.
    sum_views : bool
        Whether to write the sum of all views instead, float32 ``z y x``.
    save_psf : str or Path, optional
        TIFF or npy file that is made of the PSF, for runs on the output.
    voxel_zyx_um : tuple of float, optional
        Voxel size of the truth in µm, if its metadata have none.

    Returns
    -------
    Written

    Raises
    ------
    InvalidInputError
        If the truth, the PSF or a number cannot be used.
    BudgetError
        If the volume does not fit into the memory.
    OutputExistsError
        If ``path`` or ``save_psf`` exists.
    StoreError
        If the truth cannot be read, or an output is remote or cannot be written.
    """
    if not 0 <= photons + background <= MAX_PHOTONS:
        raise InvalidInputError(
            f"photons, background: got {photons:g} and {background:g}; expected 0 to {MAX_PHOTONS:g} together."
        )
    _refuse_existing(path)
    _check_psf_target(save_psf)
    volume = omezarr.describe(truth, voxel_zyx_um=voxel_zyx_um)
    psf, notes = _psf(psf_file, n_airyscan, volume)
    views = psf.shape[0] if psf.ndim == 4 else 1
    if sum_views and views == 1:
        raise InvalidInputError("confocal: got a PSF of one view; expected several views to sum. Leave it out.")
    with _within_memory(volume.zyx_shape, IMAGE_BYTES + views * VIEW_BYTES):
        counts = samples.acquire(
            _read_truth(volume),
            psf,
            photons=photons,
            background=background,
            seed=seed,
            offset=camera_offset,
            gain=gain,
            read_noise=read_noise,
        )
        saturated = int(np.count_nonzero(counts == np.iinfo(counts.dtype).max))
        data = samples.confocal(counts) if sum_views else counts
    if saturated:
        notes.append(f"{saturated} voxels are saturated at {np.iinfo(counts.dtype).max} counts.")
    parameters: dict[str, Any] = {"photons": photons, "background": background, "seed": seed, "views": views}
    camera = {"offset": camera_offset, "gain": gain, "read_noise": read_noise}
    written = write_volume(
        path,
        data,
        voxel_zyx_um=volume.voxel_zyx_um,
        origin_zyx_um=volume.translation_zyx_um,
        name="confocal" if sum_views else "acquisition",
        attributes={"simulation": {"kind": "acquisition", **parameters, "camera": camera}},
    )
    if save_psf is not None:
        _write_psf(Path(save_psf), psf.sum(axis=0) if sum_views else psf)
    return Written(written.axes, written.shape, written.dtype, tuple(notes))


def _psf(
    psf_file: str | Path | None, n_airyscan: int | None, volume: VolumeInfo
) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Return the PSF, ``z y x`` for one view and ``v z y x`` for several, and notes on its corrections."""
    from bigdeconv.psf import airyscan, prepare  # loads torch, which samples do without

    if (psf_file is None) == (n_airyscan is None):
        raise InvalidInputError(
            "psf, airyscan: got both or neither; expected one of the two, a PSF file or a number of elements."
        )
    views: npt.NDArray[Any]
    if psf_file is not None:
        views, name = read_psf(psf_file), "psf"
    else:
        views, name = airyscan(voxel_zyx_um=volume.voxel_zyx_um, n_views=n_airyscan or 0), "airyscan"
    prepared = prepare(views, voxel_zyx_um=volume.voxel_zyx_um, volume_zyx_shape=volume.zyx_shape, name=name)
    if prepared.notes:
        views = prepared.views
    views = views.reshape((1,) * (4 - views.ndim) + views.shape)
    return np.asarray(views if len(views) > 1 else views[0], dtype=np.float32), list(prepared.notes)


def _read_truth(volume: VolumeInfo) -> npt.NDArray[Any]:
    if volume.n_timepoints * volume.n_channels > 1:
        raise InvalidInputError(
            f"truth: got {volume.n_timepoints} time points and {volume.n_channels} channels; expected one of each."
        )
    truth = read_box(volume, Box.of_shape(volume.zyx_shape))
    if not np.isfinite(truth).all() or truth.min() < 0:
        raise InvalidInputError("truth: got negative voxels, NaN or infinity; expected light intensities of 0 or more.")
    return truth


def _check_psf_target(path: str | Path | None) -> None:
    if path is None:
        return
    if Path(path).suffix.lower() not in PSF_SUFFIXES:
        raise InvalidInputError(f"save-psf: got {str(path)!r}; expected a name that ends in {', '.join(PSF_SUFFIXES)}.")
    if not Path(path).absolute().parent.is_dir():
        raise InvalidInputError(f"save-psf: the folder {str(Path(path).parent)!r} does not exist. Make it first.")
    _refuse_existing(path, "save-psf")


def _write_psf(path: Path, psf: npt.NDArray[Any]) -> None:
    try:
        with replaced_file(path) as building:
            if path.suffix.lower() == ".npy":
                with building.open("wb") as file:  # given a name, numpy would add its own suffix to .NPY
                    np.save(file, psf)
            else:
                tifffile.imwrite(building, psf, photometric="minisblack")
    except OSError as error:
        raise StoreError(
            f"save-psf: {str(path)!r} cannot be written ({error}). Check free space and permissions."
        ) from error


def _refuse_existing(path: str | Path, argument: str = "output") -> None:
    if is_remote(where := resolve_location(path)):
        raise StoreError(f"{argument}: got {where}; expected a local path.")
    if os.path.lexists(where):
        raise OutputExistsError(f"{argument}: {str(path)!r} exists; give another path, or remove it.")


@contextmanager
def _within_memory(zyx_shape: Triple, bytes_per_voxel: int) -> Iterator[None]:
    """Refuse volumes that do not fit into the free memory, before the computation or when it runs out of memory."""
    z, y, x = zyx_shape
    needed, free = z * y * x * bytes_per_voxel, psutil.virtual_memory().available
    message = (
        f"shape: got {z},{y},{x} voxels, which take about {needed / 2**30:.3g} GiB to simulate; {free / 2**30:.3g} GiB are free. "
        "Simulate a smaller volume."
    )
    if needed > free:
        raise BudgetError(message)
    try:
        yield
    except MemoryError as error:
        raise BudgetError(message) from error
