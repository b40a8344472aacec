"""Simulated samples and microscopes: arrays from a seed, and the same as OME-Zarr volumes with a known truth."""

from bigdeconv.simulation.samples import Tubes, acquire, calibration_target, confocal, sample, tubes
from bigdeconv.simulation.volumes import (
    Written,
    write_acquisition,
    write_calibration_target,
    write_tubes,
    write_volume,
)

__all__ = [
    "Tubes",
    "Written",
    "acquire",
    "calibration_target",
    "confocal",
    "sample",
    "tubes",
    "write_acquisition",
    "write_calibration_target",
    "write_tubes",
    "write_volume",
]
