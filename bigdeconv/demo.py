"""The demonstration: a simulated volume through the whole pipeline, with the truth at hand to measure the gain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tifffile
from PIL import Image, ImageDraw

from bigdeconv import pipeline, psf, quality, simulation
from bigdeconv.config import make_config
from bigdeconv.errors import OutputExistsError
from bigdeconv.geometry import Box
from bigdeconv.phantoms import write_volume
from bigdeconv.storage import omezarr
from bigdeconv.storage.arrays import read_box

if TYPE_CHECKING:
    from bigdeconv.pipeline import Events
    from bigdeconv.summary import Summary

ZYX_SHAPE = (48, 128, 128)
VOXEL_ZYX_UM = (0.15, 0.08, 0.08)
PSF_SIGMA_ZYX = (2.0, 1.5, 1.5)
PHOTONS = 60.0
BACKGROUND = 4.0
BLOCK_SHAPE = (48, 64, 64)
"""Four blocks."""
ITERATIONS = 30
SEED = 7


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demonstration measured and made."""

    rsnr_before: float
    rsnr_after: float
    picture: Path
    summary: Summary


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
    write_volume(folder / "input.zarr", data, voxel_zyx_um=VOXEL_ZYX_UM, name="microtubules")
    config = make_config(
        {
            "input": str(folder / "input.zarr"),
            "output": str(folder / "deconvolved.zarr"),
            "psf": (str(folder / "psf.tif"),),
            "block_shape": BLOCK_SHAPE,
            "iterations": ITERATIONS,
        }
    )
    summary = pipeline.run(config, events=events)
    result = read_box(omezarr.describe(folder / "deconvolved.zarr"), Box.of_shape(ZYX_SHAPE))
    picture = folder / "before-after.png"
    draw_comparison(picture, {"measured": data, "deconvolved": result, "truth": truth})
    return DemoResult(quality.rsnr(data, truth), quality.rsnr(result, truth), picture, summary)


def draw_comparison(path: Path, volumes: dict[str, np.ndarray], zoom: int = 3) -> None:
    """Draw maximum projections of volumes ``z y x`` side by side: from above, and from the side below it."""
    panels = [_panel(name, volume, zoom) for name, volume in volumes.items()]
    gap = 6
    width = sum(p.width for p in panels) + gap * (len(panels) - 1)
    canvas = Image.new("L", (width, max(p.height for p in panels)), 255)
    x = 0
    for panel in panels:
        canvas.paste(panel, (x, 0))
        x += panel.width + gap
    canvas.save(path)


def _panel(name: str, volume: np.ndarray, zoom: int) -> Image.Image:
    low, high = np.percentile(volume, [1.0, 99.8])
    grey = np.clip((volume.astype(np.float32) - low) / max(high - low, 1e-9), 0, 1)
    depth_zoom = max(round(zoom * VOXEL_ZYX_UM[0] / VOXEL_ZYX_UM[1]), 1)
    above = np.kron(grey.max(axis=0), np.ones((zoom, zoom)))
    side = np.kron(grey.max(axis=1), np.ones((depth_zoom, zoom)))
    pixels = np.concatenate([above, np.ones((6, above.shape[1])), side])
    image = Image.new("L", (pixels.shape[1], pixels.shape[0] + 18), 255)
    image.paste(Image.fromarray((255 * pixels**0.7).astype(np.uint8)), (0, 18))
    ImageDraw.Draw(image).text((4, 3), name, fill=0)
    return image
