"""Demonstration: a simulated volume goes through the whole pipeline, and the result is compared with the truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tifffile
from PIL import Image, ImageDraw

from bigdeconv import pipeline, psf, simulation
from bigdeconv.errors import OutputExistsError
from bigdeconv.geometry import Box
from bigdeconv.numerics import metrics
from bigdeconv.reporting.figures import projections
from bigdeconv.storage import omezarr
from bigdeconv.storage.arrays import read_box

if TYPE_CHECKING:
    from bigdeconv.pipeline import Events, RunSummary

ZYX_SHAPE = (48, 128, 128)
VOXEL_ZYX_UM = (0.15, 0.08, 0.08)
PSF_SIGMA_ZYX = (2.0, 1.5, 1.5)
PHOTONS = 60.0
BACKGROUND = 4.0
BLOCK_SHAPE = (48, 64, 64)
"""Four blocks."""
ITERATIONS = 30
SEED = 7
PANEL_PIXELS, TITLE_PIXELS, GAP = 384, 18, 6
"""Sizes in the picture."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Result of the demonstration; RSNR in dB."""

    rsnr_before: float
    rsnr_after: float
    picture: Path
    summary: RunSummary


def run_demo(folder: str | Path, *, events: Events) -> DemoResult:
    """Simulate microtubules, write them as OME-Zarr, deconvolve them with GARL in four blocks, and compare with the truth.

    Raises
    ------
    OutputExistsError
        If the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise OutputExistsError(f"output: {str(folder)!r} exists; give another folder with --output, or remove it.")
    folder.mkdir(parents=True)
    extent_um = [n * v for n, v in zip(ZYX_SHAPE, VOXEL_ZYX_UM, strict=True)]
    truth = simulation.sample(simulation.tubes(SEED, extent_um, count=(14, 18)), ZYX_SHAPE, VOXEL_ZYX_UM)
    kernel = psf.gaussian(PSF_SIGMA_ZYX)
    data = simulation.acquire(truth, kernel, photons=PHOTONS, background=BACKGROUND, seed=SEED)
    tifffile.imwrite(folder / "psf.tif", kernel)
    simulation.write_volume(folder / "input.zarr", data, voxel_zyx_um=VOXEL_ZYX_UM, name="microtubules")
    summary = pipeline.run(
        input=str(folder / "input.zarr"),
        output=str(folder / "deconvolved.zarr"),
        psf=str(folder / "psf.tif"),
        block_shape=BLOCK_SHAPE,
        iterations=ITERATIONS,
        events=events,
    )
    result = read_box(omezarr.describe(folder / "deconvolved.zarr"), Box.of_shape(ZYX_SHAPE))
    picture = folder / "before-after.png"
    draw_comparison(picture, {"measured": data, "deconvolved": result, "truth": truth})
    return DemoResult(metrics.rsnr(data, truth), metrics.rsnr(result, truth), picture, summary)


def draw_comparison(path: Path, volumes: dict[str, np.ndarray]) -> None:
    """Draw maximum projections of volumes ``z y x`` side by side, each under its name."""
    panels = [projections(volume.astype(np.float32), VOXEL_ZYX_UM, PANEL_PIXELS) for volume in volumes.values()]
    width, height = panels[0].size
    canvas = Image.new("L", (len(panels) * (width + GAP) - GAP, height + TITLE_PIXELS), 255)
    draw = ImageDraw.Draw(canvas)
    for number, (name, panel) in enumerate(zip(volumes, panels, strict=True)):
        x = number * (width + GAP)
        canvas.paste(panel, (x, TITLE_PIXELS))
        draw.text((x + 4, 3), name, fill=0)
    canvas.save(path)
