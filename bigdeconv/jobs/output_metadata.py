"""Arrays, metadata and attributes of a run's output."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigdeconv.calibration.channel import UINT16_MAX
from bigdeconv.storage.ome_parsing import Channel
from bigdeconv.storage.output import LevelSpec, OutputSpec

if TYPE_CHECKING:
    from bigdeconv.jobs.facts import JobFacts
    from bigdeconv.jobs.record import RunRecord
    from bigdeconv.planning.blocks import Plan
    from bigdeconv.storage.omezarr import VolumeInfo


def output_specs(record: RunRecord) -> tuple[OutputSpec, ...]:
    """Return the arrays and metadata of each volume's output."""
    facts = record.facts
    return tuple(_output_spec(record, volume, plan) for volume, plan in zip(facts.volumes, facts.plans, strict=True))


def attributes_of(record: RunRecord) -> dict[str, Any]:
    """Return the attributes under ``bigdeconv`` in the output: how it was made, and nothing of when or where."""
    hidden = {"mask"} if record.identity["mask"] else set[str]()
    config = record.facts.config
    channels = {
        str(number): {
            # JSON has no infinity: without saturation nothing is said of it.
            **{k: v for k, v in asdict(numbers.settings).items() if v != float("inf") and k != "device"},
            "output_scale": numbers.output_scale,
            "fill": numbers.data_mask.fill,
            "camera": asdict(numbers.camera),
            # Warnings are sentences for a person, and stand in the ledger.
            "findings": {k: v for k, v in asdict(record.findings[number]).items() if k != "warnings"},
        }
        for number, numbers in record.channels.items()
    }
    return {
        "digest": record.digest,
        "identity": {k: v for k, v in record.identity.items() if k != "parameters"},
        "settings": {
            "schema_version": config.schema_version,
            **{k: v for k, v in config.deciding().items() if k not in hidden},
        },
        "channels": channels,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("bigdeconv", "numba", "numpy", "torch", "zarr"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def _output_spec(record: RunRecord, volume: VolumeInfo, plan: Plan) -> OutputSpec:
    facts = record.facts
    return OutputSpec(
        axes=facts.output_axes,
        units=tuple(_transform(facts, volume, plan, axis)[2] for axis in facts.output_axes),
        dtype=facts.output_dtype,
        levels=tuple(_level_spec(facts, volume, plan, n) for n in range(len(plan.levels))),
        ome_version=facts.config.ome_version,
        name=volume.name or Path(facts.config.output).stem,
        channels=_channels(record, volume),
        attributes=attributes_of(record),
    )


def _level_spec(facts: JobFacts, volume: VolumeInfo, plan: Plan, n: int) -> LevelSpec:
    level = plan.levels[n]
    rows = []
    for axis in facts.output_axes:
        scale, origin, _ = _transform(facts, volume, plan, axis)
        if axis in "zyx":
            i = "zyx".index(axis)
            factor = level.factors[i]
            sizes = (level.shape[i], level.chunk_shape[i], level.write_shape[i])
        else:
            factor, sizes = 1, (len(plan.timepoints) if axis == "t" else len(plan.channels), 1, 1)
        # A coarse voxel is centred on the voxels that it is the mean of: half a step past the first of them.
        rows.append((*sizes, scale * factor, origin + scale * (factor - 1) / 2))
    shape, chunk, shard, scales, translations = (tuple(column) for column in zip(*rows, strict=True))
    return LevelSpec(shape, chunk, shard if level.shard_shape else None, scales, translations)


def _transform(facts: JobFacts, volume: VolumeInfo, plan: Plan, axis: str) -> tuple[float, float, str | None]:
    """Return scale, translation and unit of an axis at level 0: as stored, or in µm where the user gave the voxel size."""
    stored = volume.axes.index(axis)
    scale, origin, unit = volume.scales[stored], volume.translations[stored], volume.units[stored]
    origin = origin if math.isfinite(origin) else 0.0
    if axis == "c":
        return 1.0, 0.0, unit
    if axis == "t":
        return scale, origin + plan.timepoints[0] * scale, unit
    i = "zyx".index(axis)
    if facts.config.voxel_um is not None or unit is None:
        scale, origin, unit = volume.voxel_zyx_um[i], volume.translation_zyx_um[i], "micrometer"
    return scale, origin + plan.roi.start[i] * scale, unit


def _channels(record: RunRecord, volume: VolumeInfo) -> tuple[Channel, ...]:
    """Keep names and colours; the display window ends at twice the intensity scale, in stored values."""
    found = []
    for number, numbers in record.channels.items():
        known = volume.channels[number] if number < len(volume.channels) else Channel(f"channel {number}", None, None)
        end = 2 * numbers.settings.intensity_scale * numbers.output_scale
        limit = float(UINT16_MAX) if record.facts.output_dtype == "uint16" else end
        found.append(Channel(known.label, known.color, (0.0, limit, 0.0, min(end, limit))))
    return tuple(found)
