"""``bigdeconv simulate``."""

from __future__ import annotations

import math
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bigdeconv_cli.exits import Exit, reported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import bigdeconv

app = typer.Typer(
    help="Simulate samples and microscopes, to try settings where the truth is known. Volumes are made in memory.",
    no_args_is_help=True,
)

COUNT = (4, 12)
OUTER_RADIUS_UM = (0.05, 0.2)
SIGMA_UM = 0.075

Output = Annotated[str, typer.Argument(metavar="OUTPUT.zarr", help="OME-Zarr image to be made: a path.")]


@app.command("tubes")
def tubes(
    output: Output,
    shape: Annotated[str, typer.Option("--shape", metavar="Z,Y,X", help="Voxels.")] = "64,256,256",
    voxel_um: Annotated[str, typer.Option("--voxel-um", metavar="Z,Y,X", help="Voxel size in µm.")] = "0.1,0.05,0.05",
    kind: Annotated[
        Literal["tubes", "calibration"],
        typer.Option("--kind", help="Random microtubules, or a fixed sample of lines, rings and cubes."),
    ] = "tubes",
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="The same seed gives the same bytes. Default: 0.")
    ] = None,
    count: Annotated[
        str | None, typer.Option("--count", metavar="A:B", help="Fewest and most tubes. Default: 4:12.")
    ] = None,
    outer_radius_um: Annotated[
        str | None,
        typer.Option("--outer-radius-um", metavar="A:B", help="Range of the tubes' radii in µm. Default: 0.05:0.2."),
    ] = None,
    sigma_um: Annotated[
        float | None,
        typer.Option("--sigma-um", metavar="F", help="Width of a fluorophore's Gaussian in µm. Default: 0.075."),
    ] = None,
) -> None:
    """Make a sample whose truth is known, from 0 to 1.

    It is made in memory, about 30 bytes per voxel: a volume of 512,1024,1024 takes 15 GiB.
    """
    given = {"seed": seed, "count": count, "outer-radius-um": outer_radius_um, "sigma-um": sigma_um}
    with _usage():
        zyx_shape = _triple("shape", shape, int, "three whole numbers of 1 or more, for example 64,256,256")
        voxel = _triple("voxel-um", voxel_um, float, "three positive lengths, for example 0.1,0.05,0.05")
        settings: dict[str, Any] = {
            "seed": _at_least_zero("seed", 0 if seed is None else seed),
            "count": _range("count", count, int, "two whole numbers, 1 <= A <= B, for example 4:12") or COUNT,
            "outer_radius_um": _range(
                "outer-radius-um", outer_radius_um, float, "two lengths, 0 < A <= B, for example 0.05:0.2"
            )
            or OUTER_RADIUS_UM,
            "sigma_um": _positive("sigma-um", SIGMA_UM if sigma_um is None else sigma_um),
        }
        for name in [n for n, value in given.items() if kind == "calibration" and value is not None]:
            raise ValueError(f"{name}: the calibration sample is always the same; leave it out, or give --kind tubes.")
    import bigdeconv

    with reported():
        if kind == "tubes":
            written = bigdeconv.simulation.write_tubes(output, zyx_shape, voxel, **settings)
        else:
            written = bigdeconv.simulation.write_calibration_target(output, zyx_shape, voxel)
    _finish(output, written)


@app.command("objects")
def objects(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="nuclei, membranes, puncta, mesh, texture or tubes.", show_default=False)
    ],
    output: Output,
    shape: Annotated[str, typer.Option("--shape", metavar="Z,Y,X", help="Voxels.")] = "64,256,256",
    voxel_um: Annotated[str, typer.Option("--voxel-um", metavar="Z,Y,X", help="Voxel size in µm.")] = "0.2,0.1,0.1",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The same seed gives the same object.")] = 0,
    size_um: Annotated[
        float | None,
        typer.Option(
            "--size-um", metavar="F", help="Size of a nucleus or cell, or spacing of points and filaments, in µm. "
            "Default: a quarter of the smaller extent in y and x.",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Make an object of a kind, from 0 to 1, to try settings on: the same seed gives the same object at any voxel size."""
    with _usage():
        zyx_shape = _triple("shape", shape, int, "three whole numbers of 1 or more, for example 64,256,256")
        voxel = _triple("voxel-um", voxel_um, float, "three positive lengths, for example 0.2,0.1,0.1")
        number = _at_least_zero("seed", seed)
        size = None if size_um is None else _positive("size-um", size_um)
    import bigdeconv

    with reported():
        written = bigdeconv.simulation.write_objects(output, kind, zyx_shape, voxel, seed=number, size_um=size)
    _finish(output, written)


@app.command("acquire")
def acquire(
    truth: Annotated[str, typer.Argument(metavar="TRUTH.zarr", help="OME-Zarr image of the sample: a path or a URL.")],
    output: Output,
    psf: Annotated[
        str | None,
        typer.Option(
            "--psf", metavar="FILE", help="TIFF or npy: z y x, or v z y x for views, which go along the axis v."
        ),
    ] = None,
    airyscan: Annotated[
        int | None,
        typer.Option(
            "--airyscan", metavar="N", help="Instead of --psf: N views, those of a simulated Airyscan detector."
        ),
    ] = None,
    save_psf: Annotated[
        str | None,
        typer.Option("--save-psf", metavar="FILE", help="Write the PSF here (.tif or .npy), for --psf of a run."),
    ] = None,
    photons: Annotated[
        float, typer.Option("--photons", metavar="F", help="Photons in the brightest voxel of the brightest view.")
    ] = 100.0,
    background: Annotated[
        float, typer.Option("--background", metavar="F", help="Photons of background per voxel and view.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The same seed gives the same bytes.")] = 0,
    camera_offset: Annotated[
        float, typer.Option("--camera-offset", metavar="F", help="Counts that the camera gives without light.")
    ] = 0.0,
    gain: Annotated[float, typer.Option("--gain", metavar="F", help="Photons per count.")] = 1.0,
    read_noise: Annotated[
        float, typer.Option("--read-noise", metavar="F", help="Standard deviation of the read noise, in photons.")
    ] = 0.0,
    confocal: Annotated[
        bool, typer.Option("--confocal", help="Write the sum of all views instead, as float32 (and sum --save-psf).")
    ] = False,
    voxel_um: Annotated[
        str | None,
        typer.Option("--voxel-um", metavar="Z,Y,X", help="Voxel size in µm, where the metadata have none."),
    ] = None,
) -> None:
    """Image a sample through PSFs, with photon noise and a camera: what a run can deconvolve.

    It is made in memory, about 44 bytes per voxel and 24 more per view: one view of 512,1024,1024 takes 34 GiB.
    """
    with _usage():
        if (psf is None) == (airyscan is None):
            raise ValueError("psf, airyscan: one of the two is needed, a PSF file or a number of detector elements.")
        if airyscan is not None and not 1 <= airyscan <= 1000:
            raise ValueError(f"airyscan: got {airyscan}; expected 1 to 1000 elements, for example 32.")
        light = {"photons": _at_least_zero("photons", photons), "background": _at_least_zero("background", background)}
        _finite("camera-offset", camera_offset)
        _positive("gain", gain)
        _at_least_zero("read-noise", read_noise)
        _at_least_zero("seed", seed)
        lengths = "three positive lengths, for example 0.1,0.05,0.05"
        voxel = None if voxel_um is None else _triple("voxel-um", voxel_um, float, lengths)
    import bigdeconv

    with reported():
        written = bigdeconv.simulation.write_acquisition(
            truth,
            output,
            psf_file=psf,
            n_airyscan=airyscan,
            **light,
            seed=seed,
            camera_offset=camera_offset,
            gain=gain,
            read_noise=read_noise,
            sum_views=confocal,
            save_psf=save_psf,
            voxel_zyx_um=voxel,
        )
    _finish(output, written)
    if save_psf is not None:
        print(f"Wrote {save_psf}")


def _finish(output: str, written: bigdeconv.simulation.Written) -> None:
    for note in written.notes:
        print(f"bigdeconv: {note}", file=sys.stderr)
    shape = ",".join(str(n) for n in written.shape)
    print(f"Wrote {output}: {','.join(written.axes)} = {shape}, {written.dtype}")


@contextmanager
def _usage() -> Iterator[None]:
    """Turn what is wrong in the arguments themselves into one sentence and the exit code for it."""
    try:
        yield
    except ValueError as error:
        print(f"bigdeconv: {error}", file=sys.stderr)
        raise typer.Exit(Exit.USAGE) from None


def _triple(option: str, text: str, kind: Callable[[str], Any], allowed: str) -> tuple[Any, Any, Any]:
    z, y, x = _split(option, text, ",", kind, 3, allowed)
    return z, y, x


def _range(option: str, text: str | None, kind: Callable[[str], Any], allowed: str) -> tuple[Any, Any] | None:
    if text is None:
        return None
    low, high = _split(option, text, ":", kind, 2, allowed)
    if low > high:
        raise ValueError(f"{option}: got {text!r}; expected {allowed}.")
    return low, high


def _split(option: str, text: str, separator: str, kind: Callable[[str], Any], n: int, allowed: str) -> list[Any]:
    """Read ``n`` positive numbers."""
    try:
        values = [kind(part) for part in text.split(separator)]
    except ValueError:
        values = []
    if len(values) != n or not all(math.isfinite(v) and v > 0 for v in values):
        raise ValueError(f"{option}: got {text!r}; expected {allowed}.")
    return values


def _finite(option: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{option}: got {value}; expected a finite number.")
    return value


def _positive(option: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{option}: got {value}; expected a positive number.")
    return value


def _at_least_zero(option: str, value: Any) -> Any:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{option}: got {value}; expected a number of 0 or more.")
    return value
