"""Simulated volumes as OME-Zarr: samples with a known truth, and what a microscope makes of them.

Everything is made in memory, so a volume is as large as that allows (`TUBES_BYTES`, `IMAGE_BYTES` and `VIEW_BYTES` per voxel).
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import tifffile

from bigdeconv import psf, simulation
from bigdeconv.errors import BudgetError, InvalidInputError, OutputExistsError, StoreError
from bigdeconv.geometry import Box
from bigdeconv.intensity import Camera
from bigdeconv.storage import omezarr
from bigdeconv.storage.arrays import is_remote, read_box, resolve_location, write_region
from bigdeconv.storage.output import LevelSpec, OutputSpec, create_output
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
"""Extent of a chunk on each axis of space, where the volume has as many voxels."""
TUBES_BYTES = 30
"""Memory per voxel while a sample is made."""
IMAGE_BYTES, VIEW_BYTES = 44, 24
"""Memory per voxel, and per voxel and view, while a sample is imaged."""
PSF_SUFFIXES = (".tif", ".tiff", ".npy")
MOST_PHOTONS = 1e15
"""Whole numbers are exact to this in float64, and Poisson numbers are drawn to it."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written, and what there is to say of it."""

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    notes: tuple[str, ...] = ()


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
    path
        Where it goes; must not exist.
    data
        ``z y x``, or ``v z y x`` for views.
    voxel_zyx_um, origin_zyx_um
        Voxel size, and position of the centre of the first voxel.
    name
        Name in the metadata.
    attributes
        Goes under the group attribute ``bigdeconv``.

    Raises
    ------
    OutputExistsError
        If something is there.
    StoreError
        If it cannot be written.
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
    create_output(Path(path), OutputSpec(axes, units, data.dtype.str, (level,), "0.5", name, (), attributes or {}))
    try:
        write_region(path, "0", tuple(slice(0, n) for n in data.shape), data)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)  # half a volume of zeros would pass for one
        raise
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
    """Write a random sample of microtubules, float32 with maximum 1; the parameters are those of `simulation.tubes`.

    Raises
    ------
    InvalidInputError
        If a parameter cannot be.
    BudgetError
        If the volume does not fit the memory.
    OutputExistsError
        If the path exists.
    """
    _refuse_existing(path)
    parameters = {"seed": seed, "count": count, "outer_radius_um": outer_radius_um, "sigma_um": sigma_um}
    notes = []
    if max(voxel_zyx_um) > 1.4 * sigma_um:
        notes.append(
            f"Voxels of {max(voxel_zyx_um):g} µm are wider than 1.4 sigma: fluorophores between them are dim; "
            f"a sigma of {max(voxel_zyx_um) / 1.4:.2g} µm or more shows all alike."
        )
    with _within_memory(zyx_shape, TUBES_BYTES):
        extent_um = [n * v for n, v in zip(zyx_shape, voxel_zyx_um, strict=True)]
        specimen = simulation.tubes(seed, extent_um, count=count, outer_radius_um=outer_radius_um, sigma_um=sigma_um)
        data = simulation.sample(specimen, zyx_shape, voxel_zyx_um, peak_one=True)
    attributes = {"simulation": {"kind": "tubes", **parameters}}
    written = write_volume(path, data, voxel_zyx_um=voxel_zyx_um, name="tubes", attributes=attributes)
    return Written(written.axes, written.shape, written.dtype, tuple(notes))


def write_calibration_target(path: str | Path, zyx_shape: Triple, voxel_zyx_um: TripleUm) -> Written:
    """Write the sample of lines, rings and cubes that `simulation.calibration_target` draws, float32 from 0 to 1.

    Raises
    ------
    BudgetError
        If the volume does not fit the memory.
    OutputExistsError
        If the path exists.
    """
    _refuse_existing(path)
    with _within_memory(zyx_shape, TUBES_BYTES):
        data = simulation.calibration_target(zyx_shape, voxel_zyx_um)
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
    camera: Camera | None = None,
    sum_views: bool = False,
    save_psf: str | Path | None = None,
    voxel_zyx_um: TripleUm | None = None,
) -> Written:
    """Image a stored sample through one or more PSFs and write what the camera counts.

    A PSF that a run would mend (background, centre, negative voxels) is used as mended, which is noted; one that needs nothing
    is used whole, with the tails that a run crops.

    Parameters
    ----------
    truth
        OME-Zarr image of one time point and channel, not negative.
    path
        Where the counts go: uint16 ``z y x``, or ``v z y x`` for several views; voxel size and position are the truth's.
    psf_file, n_airyscan
        One of the two: a file, or the number of elements of a simulated Airyscan detector.
    photons, background, seed, camera
        See `simulation.acquire`.
    sum_views
        Write the sum of all views instead, float32 ``z y x``.
    save_psf
        TIFF or npy file to be made of the PSFs: what a run on the output needs.
    voxel_zyx_um
        Voxel size of the truth, where its metadata have none.

    Raises
    ------
    InvalidInputError
        If the truth, the PSF or a number cannot be used.
    BudgetError
        If it does not fit the memory.
    OutputExistsError
        If a file that is to be made exists.
    """
    camera = camera or Camera()
    if not 0 <= photons + background <= MOST_PHOTONS:
        raise InvalidInputError(
            f"photons, background: got {photons:g} and {background:g}; allowed are 0 to {MOST_PHOTONS:g} together."
        )
    _refuse_existing(path)
    _check_psf_target(save_psf)
    volume = omezarr.describe(truth, voxel_zyx_um=voxel_zyx_um)
    kernels, notes = _kernels(psf_file, n_airyscan, volume)
    views = kernels.shape[0] if kernels.ndim == 4 else 1
    if sum_views and views == 1:
        raise InvalidInputError("confocal: sums views, but the PSF has only one; leave it out.")
    with _within_memory(volume.zyx_shape, IMAGE_BYTES + views * VIEW_BYTES):
        counts = simulation.acquire(
            _read_truth(volume),
            kernels,
            photons=photons,
            background=background,
            seed=seed,
            offset=camera.offset,
            gain=camera.gain,
            read_noise=camera.read_noise,
        )
        full = int(np.count_nonzero(counts == np.iinfo(counts.dtype).max))
        data = simulation.confocal(counts) if sum_views else counts
    if full:
        notes.append(f"{full} voxels are saturated at {np.iinfo(counts.dtype).max} counts.")
    parameters: dict[str, Any] = {"photons": photons, "background": background, "seed": seed, "views": views}
    written = write_volume(
        path,
        data,
        voxel_zyx_um=volume.voxel_zyx_um,
        origin_zyx_um=volume.translation_zyx_um,
        name="confocal" if sum_views else "acquisition",
        attributes={"simulation": {"kind": "acquisition", **parameters, "camera": asdict(camera)}},
    )
    if save_psf is not None:
        _write_psf(Path(save_psf), kernels.sum(axis=0) if sum_views else kernels)
    return Written(written.axes, written.shape, written.dtype, tuple(notes))


def _kernels(
    psf_file: str | Path | None, n_airyscan: int | None, volume: VolumeInfo
) -> tuple[npt.NDArray[Any], list[str]]:
    """Return the PSFs, ``z y x`` for one and ``v z y x`` for several, and what was mended."""
    if (psf_file is None) == (n_airyscan is None):
        raise InvalidInputError("psf, airyscan: one of the two is needed; give a PSF file, or a number of elements.")
    kernels: npt.NDArray[Any]
    if psf_file is not None:
        kernels, name = read_psf(psf_file), "psf"
    else:
        kernels, name = psf.airyscan(voxel_zyx_um=volume.voxel_zyx_um, n_views=n_airyscan or 0), "airyscan"
    prepared = psf.prepare(kernels, voxel_zyx_um=volume.voxel_zyx_um, volume_zyx_shape=volume.zyx_shape, name=name)
    if prepared.notes:
        kernels = prepared.kernels
    kernels = kernels.reshape((1,) * (4 - kernels.ndim) + kernels.shape)
    return np.asarray(kernels if len(kernels) > 1 else kernels[0], dtype=np.float32), list(prepared.notes)


def _read_truth(volume: VolumeInfo) -> npt.NDArray[Any]:
    if volume.n_timepoints * volume.n_channels > 1:
        raise InvalidInputError(
            f"truth: has {volume.n_timepoints} time points and {volume.n_channels} channels; allowed is one of each."
        )
    truth = read_box(volume, Box.of_shape(volume.zyx_shape))
    if not np.isfinite(truth).all() or truth.min() < 0:
        raise InvalidInputError(
            "truth: has negative voxels, NaN or infinity; allowed are light intensities of 0 or more."
        )
    return truth


def _check_psf_target(path: str | Path | None) -> None:
    if path is None:
        return
    if Path(path).suffix.lower() not in PSF_SUFFIXES:
        raise InvalidInputError(
            f"save-psf: got {str(path)!r}; allowed are names that end in {', '.join(PSF_SUFFIXES)}."
        )
    if not Path(path).absolute().parent.is_dir():
        raise InvalidInputError(f"save-psf: there is no folder {str(Path(path).parent)!r}; make it first.")
    _refuse_existing(path, "save-psf")


def _write_psf(path: Path, kernels: npt.NDArray[Any]) -> None:
    try:
        if path.suffix.lower() == ".npy":
            np.save(path, kernels)
        else:
            tifffile.imwrite(path, kernels, photometric="minisblack")
    except OSError as error:
        raise StoreError(f"save-psf: {str(path)!r} cannot be written ({error}).") from error


def _refuse_existing(path: str | Path, argument: str = "output") -> None:
    if is_remote(where := resolve_location(path)):
        raise StoreError(f"{argument}: cannot write to {where}; give a local path.")
    if os.path.lexists(where):
        raise OutputExistsError(f"{argument}: {str(path)!r} exists; give another path, or remove it.")


@contextmanager
def _within_memory(zyx_shape: Triple, bytes_per_voxel: int) -> Iterator[None]:
    """Refuse what the free memory will not hold, before and where it turns out so."""
    z, y, x = zyx_shape
    needed, free = z * y * x * bytes_per_voxel, psutil.virtual_memory().available
    message = (
        f"A volume of {z},{y},{x} voxels takes about {needed / 2**30:.3g} GiB to simulate, and {free / 2**30:.3g} GiB are free; "
        "simulate a smaller one."
    )
    if needed > free:
        raise BudgetError(message)
    try:
        yield
    except MemoryError as error:
        raise BudgetError(message) from error
