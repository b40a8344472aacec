"""A first job: simulate microtubules under a microscope, deconvolve the volume, and compare the result with the truth.

python examples/first_job.py [FOLDER] [Z,Y,X]
"""

import sys
import tempfile
from pathlib import Path

import tifffile
import zarr

import bigdeconv
from bigdeconv import simulation
from bigdeconv.numerics.metrics import rsnr

VOXEL_ZYX_UM = (0.15, 0.08, 0.08)


def main(folder: Path, zyx_shape: tuple[int, ...] = (32, 96, 96)) -> None:
    """Write ``input.zarr``, ``psf.tif`` and ``output.zarr`` into a folder, and print the RSNR before and after."""
    extent_um = [n * v for n, v in zip(zyx_shape, VOXEL_ZYX_UM, strict=True)]
    truth = simulation.sample(simulation.tubes(7, extent_um), zyx_shape, VOXEL_ZYX_UM)
    psf = bigdeconv.psf.gaussian((2.0, 1.5, 1.5))  # standard deviations in voxels
    counts = simulation.acquire(truth, psf, photons=60, background=4, seed=7)
    simulation.write_volume(folder / "input.zarr", counts, voxel_zyx_um=VOXEL_ZYX_UM, name="tubes")
    tifffile.imwrite(folder / "psf.tif", psf)

    # Every option of `bigdeconv run` is a keyword here.
    files = {"input": "input.zarr", "output": "output.zarr", "psf": "psf.tif"}
    summary = bigdeconv.run(**{name: str(folder / file) for name, file in files.items()})
    result = zarr.open_array(folder / "output.zarr" / "0")[...]
    print(f"RSNR before: {rsnr(counts, truth):.2f} dB, after: {rsnr(result, truth):.2f} dB")
    print(f"{summary.blocks_done} of {summary.blocks_total} blocks in {summary.seconds:.0f} s: {summary.output}")


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="bigdeconv-"))
    where.mkdir(parents=True, exist_ok=True)
    main(where, *(tuple(map(int, shape.split(","))) for shape in sys.argv[2:3]))
