"""A job as the ledger keeps it, and what a run makes from it: the output's metadata and the workers' recipe.

A resumed run reads the document and decides nothing anew.
"""

from __future__ import annotations

# ruff: noqa: TC001  (pydantic reads the annotations of the document at run time)
import hashlib
import json
import platform
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import numpy as np
from pydantic import TypeAdapter, ValidationError

from bigdeconv import models
from bigdeconv.blocks import Plan
from bigdeconv.config import JobConfig
from bigdeconv.deconvolution import Settings
from bigdeconv.engine.recipe import ChannelRecipe, Recipe
from bigdeconv.errors import StoreError
from bigdeconv.intensity import Camera, Validity
from bigdeconv.job import Job, camera
from bigdeconv.storage import weights
from bigdeconv.storage.collection import Collection
from bigdeconv.storage.omezarr import Channel, VolumeInfo
from bigdeconv.storage.output import LevelSpec, OutputSpec

if TYPE_CHECKING:
    from bigdeconv.storage.ledger import Ledger

NUMERICS_VERSION = 7
"""Raised whenever the same input and settings give other numbers than before."""
_NOT_NUMBERS = {"input", "output", "psf", "model", "memory", "workers", "scheduler", "schema_version", "seam_probes"}
"""Settings that do not decide the numbers, or that do so by what they name."""


@dataclass(frozen=True, slots=True)
class StoredChannel:
    """What one channel's blocks share."""

    settings: Settings
    validity: Validity
    output_scale: float


@dataclass(frozen=True, slots=True)
class Document:
    """Everything that a run needs besides arrays."""

    schema_version: Literal[1]
    digest: str
    identity: dict[str, Any]
    """What decides the numbers, as named digests and parameters."""
    config: JobConfig
    images: Collection
    volumes: tuple[VolumeInfo, ...]
    plans: tuple[Plan, ...]
    """One for each volume."""
    camera: Camera
    channels: dict[int, StoredChannel]
    output_axes: tuple[str, ...]
    output_dtype: str
    workers: int
    threads: int
    cuda: bool
    warnings: tuple[str, ...]
    blocks_outside: int = 0
    """Blocks outside the mask; which ones, see `outside_of`."""

    @property
    def n_blocks(self) -> int:
        """Blocks of all volumes."""
        return sum(plan.n_blocks for plan in self.plans)

    @property
    def volume(self) -> VolumeInfo:
        """The first volume."""
        return self.volumes[0]

    @property
    def plan(self) -> Plan:
        """The plan of the first volume."""
        return self.plans[0]

    @property
    def peak_bytes_per_worker(self) -> int:
        """What a worker needs for the largest block of any volume."""
        return max(plan.peak_bytes_per_worker for plan in self.plans)


def from_job(job: Job) -> Document:
    """Return the document of a job; its arrays go beside it (`arrays_of`)."""
    outline = job.outline
    channels = {
        c: StoredChannel(job.settings[c], job.calibrations[c].validity, job.calibrations[c].output_scale)
        for c in outline.plan.channels
    }
    identity = _identity(job)
    decided = {c: asdict(channel) for c, channel in channels.items()}
    return Document(
        schema_version=1,
        digest=_digest([identity, [asdict(plan) for plan in outline.plans], decided]),
        identity=identity,
        config=outline.config,
        images=outline.images,
        volumes=outline.volumes,
        plans=outline.plans,
        camera=camera(outline.config),
        channels=channels,
        output_axes=tuple(a for a in "tczyx" if a in outline.volume.axes and a != outline.config.views_axis),
        output_dtype=outline.output_dtype,
        workers=outline.workers,
        threads=outline.threads,
        cuda=outline.cuda,
        warnings=job.warnings,
        blocks_outside=outline.blocks_outside,
    )


def arrays_of(job: Job) -> dict[str, np.ndarray]:
    """Return the PSFs and the blocks outside the mask, under the names that are looked for later."""
    arrays = {f"psf{channel}": kernels for channel, kernels in job.outline.kernels.items()}
    if job.outline.outside is not None:
        arrays["outside"] = np.packbits(job.outline.outside)
    return arrays


def outside_of(document: Document, ledger: Ledger) -> np.ndarray | None:
    """Return whether a block lies outside the mask, by its index; None without a mask."""
    bits = ledger.arrays().get("outside")
    return None if bits is None else np.unpackbits(bits, count=document.n_blocks).astype(bool)


def dump(document: Document) -> dict[str, Any]:
    """Return a document as plain values."""
    values: dict[str, Any] = TypeAdapter(Document).dump_python(document, mode="json")
    return values


def load(ledger: Ledger) -> Document:
    """Return the document of a ledger.

    Raises
    ------
    StoreError
        If it is damaged or another version's.
    """
    try:
        return TypeAdapter(Document).validate_python(ledger.document())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreError(
            f"output: the plan in {str(ledger.path / 'plan.json')!r} is damaged or another version's ({where}: {first['msg']}); "
            "start anew with --overwrite."
        ) from error


def make_recipes(document: Document, ledger: Ledger, output: Path, *, threads: int | None) -> tuple[Recipe, ...]:
    """Make what the workers need for each volume from a ledger alone; ``output`` is where it lies now."""
    arrays = ledger.arrays()
    channels = {
        c: ChannelRecipe(stored.settings, stored.validity, arrays[f"psf{c}"], stored.output_scale)
        for c, stored in document.channels.items()
    }
    first = Recipe(
        token=uuid4().hex[:12],
        volume=document.volume,
        view_axis=document.config.views_axis,
        camera=document.camera,
        plan=document.plan,
        channels=channels,
        model=weights.load(ledger.model_path) if ledger.model_path.exists() else None,
        output=str(output),
        output_axes=document.output_axes,
        output_dtype=document.output_dtype,
        keep_bits=document.config.keep_bits,
        # A folder of this very run: a task that outlived the driver of another one writes elsewhere.
        scratch=str(ledger.path / "scratch" / document.digest),
        threads=threads,
    )
    members = zip(document.volumes, document.plans, document.images.outputs(output), strict=True)
    return tuple(replace(first, volume=volume, plan=plan, output=str(path)) for volume, plan, path in members)


def output_specs(document: Document) -> tuple[OutputSpec, ...]:
    """Return the arrays and metadata of each volume's output."""
    return tuple(
        _output_spec(document, volume, plan) for volume, plan in zip(document.volumes, document.plans, strict=True)
    )


def _output_spec(document: Document, volume: VolumeInfo, plan: Plan) -> OutputSpec:
    config = document.config
    return OutputSpec(
        axes=document.output_axes,
        units=tuple(_transform(document, volume, plan, axis)[2] for axis in document.output_axes),
        dtype=document.output_dtype,
        levels=tuple(_level_spec(document, volume, plan, n) for n in range(len(plan.levels))),
        ome_version=config.ome_version,
        name=volume.name or Path(config.output).stem,
        channels=_channels(document, volume),
        attributes=description(document),
    )


def _identity(job: Job) -> dict[str, Any]:
    outline = job.outline
    volumes = [
        {k: v for k, v in asdict(volume).items() if k not in {"location", "name", "channels"}}
        for volume in outline.volumes
    ]
    kernels = b"".join(kernel.tobytes() for _, kernel in sorted(outline.kernels.items()))
    parameters = {k: v for k, v in outline.config.model_dump(mode="json").items() if k not in _NOT_NUMBERS}
    outside = None if outline.outside is None else np.packbits(outline.outside).tobytes()
    return {
        "input": _digest([volumes, outline.images.names, [c.digest for c in job.calibrations.values()]]),
        "psf": hashlib.sha256(kernels).hexdigest()[:16],
        "model": models.digest(outline.model) if outline.model else None,
        # What a mask decides is which blocks it leaves out: wherever it lies, and whatever it says about other voxels.
        "mask": None if outside is None else hashlib.sha256(outside).hexdigest()[:16],
        "numerics": NUMERICS_VERSION,
        "parameters": parameters | ({} if outside is None else {"mask": "auto"}),
    }


def _level_spec(document: Document, volume: VolumeInfo, plan: Plan, n: int) -> LevelSpec:
    level = plan.levels[n]
    rows = []
    for axis in document.output_axes:
        scale, origin, _ = _transform(document, volume, plan, axis)
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


def _transform(document: Document, volume: VolumeInfo, plan: Plan, axis: str) -> tuple[float, float, str | None]:
    """Return scale, translation and unit of an axis at level 0: as stored, or in µm where the user gave the voxel size."""
    stored = volume.axes.index(axis)
    scale, origin, unit = volume.scales[stored], volume.translations[stored], volume.units[stored]
    if axis == "c":
        return 1.0, 0.0, unit
    if axis == "t":
        return scale, origin + plan.timepoints[0] * scale, unit
    i = "zyx".index(axis)
    if document.config.voxel_um is not None or unit is None:
        scale, origin, unit = volume.voxel_zyx_um[i], volume.translation_zyx_um[i], "micrometer"
    return scale, origin + plan.roi.start[i] * scale, unit


def _channels(document: Document, volume: VolumeInfo) -> tuple[Channel, ...]:
    """Carry names and colours over; the window goes from dark to twice the intensity scale, in stored values."""
    found = []
    for c in document.plan.channels:
        known = volume.channels[c] if c < len(volume.channels) else Channel(f"channel {c}", None, None)
        stored = document.channels[c]
        end = 2 * stored.settings.intensity_scale * stored.output_scale
        limit = 65535.0 if document.output_dtype == "uint16" else end
        found.append(Channel(known.label, known.color, (0.0, limit, 0.0, min(end, limit))))
    return tuple(found)


def description(document: Document) -> dict[str, Any]:
    """Return what the output says about its making; nothing in it depends on when or where it was made."""
    hidden = {"input", "output", "psf", "model", "workers", "scheduler", "memory", "seam_probes"}
    hidden |= {"mask"} if document.identity["mask"] else set()
    channels = {
        str(c): {
            # JSON has no infinity: what has no saturation says nothing of it.
            **{k: v for k, v in asdict(stored.settings).items() if v != float("inf") and k != "device"},
            "output_scale": stored.output_scale,
            "fill": stored.validity.fill,
        }
        for c, stored in document.channels.items()
    }
    return {
        "digest": document.digest,
        "identity": {k: v for k, v in document.identity.items() if k != "parameters"},
        "settings": document.config.model_dump(mode="json", exclude=hidden),
        "channels": channels,
        "versions": {"python": platform.python_version()}
        | {n: version(n) for n in ("bigdeconv", "numba", "numpy", "torch", "zarr")},
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
