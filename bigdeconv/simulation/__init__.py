"""Simulated samples and microscopes: arrays from a seed, and the same as OME-Zarr volumes with a known truth."""

from bigdeconv.simulation.objects import KINDS, objects
from bigdeconv.simulation.samples import Tubes, acquire, calibration_target, confocal, sample, tubes
from bigdeconv.simulation.volumes import (
    Written,
    write_acquisition,
    write_calibration_target,
    write_objects,
    write_tubes,
    write_volume,
)

__all__ = [
    "KINDS",
    "Tubes",
    "Written",
    "acquire",
    "calibration_target",
    "confocal",
    "objects",
    "sample",
    "tubes",
    "write_acquisition",
    "write_calibration_target",
    "write_objects",
    "write_tubes",
    "write_volume",
]
