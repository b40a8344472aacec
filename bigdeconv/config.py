"""The settings of a job: one frozen model for the command line, the environment, a YAML file and Python."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bigdeconv.errors import InvalidInputError

ENVIRONMENT_PREFIX = "BIGDECONV_"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def _numbers(value: Any) -> Any:
    """Split ``Z,Y,X`` and the like; leave ``auto`` and what is no text alone."""
    if isinstance(value, str) and value != "auto":
        return tuple(part.strip() for part in value.split(","))
    return value


def _indices(value: Any) -> Any:
    """Read ``0,2`` and ``0:5`` as indices."""
    if isinstance(value, int):
        return (value,)
    if not isinstance(value, str):
        return value
    indices: list[int] = []
    for part in value.split(","):
        if match := re.fullmatch(r"\s*(\d+):(\d+)\s*", part):
            indices.extend(range(int(match[1]), int(match[2])))
        elif re.fullmatch(r"\s*[+-]?\d+\s*", part):
            indices.append(int(part))
        else:
            raise ValueError("expected indices such as 0,2 or 0:5")
    return tuple(indices)


def _ranges(value: Any) -> Any:
    """Read ``z0:z1,y0:y1,x0:x1``; an empty end means the volume's."""
    if not isinstance(value, str):
        return value
    parts = [re.fullmatch(r"\s*(\d*):(\d*)\s*", part) for part in value.split(",")]
    if len(parts) != 3 or not all(parts):
        raise ValueError("expected z0:z1,y0:y1,x0:x1")
    return tuple((int(m[1]) if m[1] else None, int(m[2]) if m[2] else None) for m in parts if m)


def _bytes(value: Any) -> Any:
    """Read ``8GiB`` and the like as bytes."""
    if not isinstance(value, str) or value == "auto":
        return value
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT]?I?B?)\s*", value.upper())
    unit = match[2] if match else "?"
    unit = unit + "B" if unit and not unit.endswith("B") else unit
    if not match or unit not in _UNITS:
        raise ValueError("expected a size such as 8GiB")
    return int(float(match[1]) * _UNITS[unit])


def _files(value: Any) -> Any:
    values = (value,) if isinstance(value, str | Path) else value
    return tuple(str(v) if isinstance(v, Path) else v for v in values) if isinstance(values, list | tuple) else values


def _version(value: Any) -> Any:
    """Take ``0.4`` from YAML, where it is a number."""
    return str(value) if isinstance(value, float) else value


Auto: TypeAlias = Literal["auto"]
Shape = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_numbers), Field(min_length=3, max_length=3)]
Width = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_numbers), Field(min_length=3, max_length=3)]
Lengths = Annotated[
    tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...],
    BeforeValidator(_numbers),
    Field(min_length=3, max_length=3),
]
Indices = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_indices), Field(min_length=1)]
Ranges = Annotated[
    tuple[tuple[int | None, int | None], ...], BeforeValidator(_ranges), Field(min_length=3, max_length=3)
]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]
Files = Annotated[tuple[str, ...], BeforeValidator(_files)]
Real = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _option(default: Any, panel: str, description: str, metavar: str | None = None) -> Any:
    return Field(default=default, description=description, json_schema_extra={"panel": panel, "metavar": metavar})


class JobConfig(BaseModel):
    """Everything that a run is made from.  All triples are in the order z,y,x."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    schema_version: Literal[1] = 1
    input: str = Field(
        description="OME-Zarr image or plate: a path or a URL (https, s3, gs, az); or a glob or a .txt list of images."
    )
    output: str = Field(
        description="Where the result goes, a folder for several images: a path that does not exist yet."
    )
    psf: Files = _option((), "Input", "PSF file: TIFF or npy, z y x, or v z y x for views. FILE for all channels, C1=FILE per "
                         "channel, V3=FILE per view, C1.V3=FILE for both; give it several times.", "FILE")  # fmt: skip
    psf_voxel_um: Lengths | None = _option(
        None, "Input", "Voxel size of the PSF files in µm, where it is not the data's.", "Z,Y,X"
    )
    voxel_um: Lengths | None = _option(None, "Input", "Voxel size in µm, where the metadata have none.", "Z,Y,X")
    level: int = _option(0, "Input", "Level of the input pyramid.", "N")
    channels: Indices | None = _option(None, "Input", "Channels, such as 0,2. Default: all.", "LIST")
    timepoints: Indices | None = _option(None, "Input", "Time points, such as 0:5. Default: all.", "LIST")
    roi: Ranges | None = _option(
        None, "Input", "Part of the volume; its surroundings are still read, so it equals that part of a full run.",
        "Z0:Z1,Y0:Y1,X0:X1",
    )  # fmt: skip
    views_axis: str | None = _option(None, "Input", "Axis along which several views of one object lie.", "NAME")

    method: Literal["garl", "rl", "rltv"] = _option("garl", "Method", "Learned prior, plain, or total variation.")
    iterations: Annotated[int, Field(ge=0)] | None = _option(
        None, "Method", "Iterations. Default: garl 50, rltv 30, rl 15.", "N"
    )
    update: Literal["convergent", "reference"] = _option(
        "convergent",
        "Method",
        "Update rule: one whose steps cannot raise the objective but for the momentum, or the report's.",
        "convergent|reference",
    )
    tau: NonNegative | Auto = _option(
        "auto",
        "Method",
        "Strength of the prior, in units of the intensity scale; auto: the one with which the data predict themselves best.",
        "F|auto",
    )
    sigma: Positive | None = _option(
        None,
        "Method",
        "Noise level of the learned prior, as a fraction of the intensity scale. Default: the model's.",
        "F",
    )
    model: str = _option("default", "Method", "Learned prior: a shipped name or a model file.", "NAME|FILE")

    background: NonNegative | Auto = _option(
        "auto", "Intensity", "Background in counts above the camera offset.", "F|auto"
    )
    intensity_scale: Positive | Auto = _option(
        "auto", "Intensity", "Counts that stand for 1 inside the solver.", "F|auto"
    )
    camera_offset: Real = _option(0.0, "Intensity", "Counts that the camera gives without light.", "F")
    gain: Positive = _option(1.0, "Intensity", "Photons per count.", "F")
    read_noise: NonNegative = _option(0.0, "Intensity", "Standard deviation of the read noise, in photons.", "F")
    mask: Annotated[str, Field(min_length=1)] = _option(
        "auto", "Intensity", "Leave out fill and hot pixels, or nothing but values that are not finite. LABELS, an OME-Zarr "
        "image or label image in the same space, does as auto and computes only the blocks within a halo of where it is not 0.",
        "auto|none|LABELS",
    )  # fmt: skip

    block_shape: Shape | Auto = _option("auto", "Blocks", "Core of a block in voxels.", "Z,Y,X|auto")
    halo: Width | Auto = _option(
        "auto", "Blocks", "Least halo in voxels. Default: what the seam tolerance takes.", "Z,Y,X|auto"
    )
    seam_tolerance: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = _option(
        1e-3, "Blocks", "Largest relative error next to a seam, against the volume solved in one piece.", "F"
    )
    blend: Width | Auto = _option(
        "auto", "Blocks", "Half-width of the ramps at seams in voxels; 0 crops.", "Z,Y,X|auto"
    )
    memory: Bytes | Auto = _option("auto", "Blocks", "Memory per worker, such as 8GiB.", "SIZE|auto")

    dtype: Literal["auto", "uint16", "float32"] = _option(
        "auto", "Output", "Default: uint16 for integer input, float32 for floating point."
    )
    output_scale: Positive | Auto = _option(
        "auto", "Output", "Factor from photons to stored integers. Default: chosen with headroom, stored.", "F|auto"
    )
    keep_bits: Annotated[int, Field(ge=1, le=23)] | None = _option(
        None, "Output", "Mantissa bits that float32 output keeps; fewer compress better.", "N"
    )
    chunks: Shape | None = _option(None, "Output", "Chunk of the output.", "Z,Y,X")
    shards: Shape | None = _option(None, "Output", "Shard of the output (OME-Zarr 0.5).", "Z,Y,X")
    levels: Annotated[int, Field(ge=1)] | Auto = _option(
        "auto", "Output", "Levels of the pyramid, the full one included.", "N|auto"
    )
    ome_version: Annotated[Literal["0.5", "0.4"], BeforeValidator(_version)] = _option(
        "0.5", "Output", "OME-Zarr version of the output.", "0.5|0.4"
    )

    seam_probes: Annotated[int, Field(ge=0)] = _option(
        8,
        "Blocks",
        "Seams that are solved again without a seam after the run, to measure their error; 0 for none.",
        "N",
    )

    device: Literal["auto", "cpu", "cuda"] = _option("auto", "Workers", "Where blocks are computed.")
    workers: Annotated[int, Field(ge=1)] | None = _option(
        None, "Workers", "Local worker processes. Default: one per GPU, or one per core as memory allows.", "N"
    )
    scheduler: str | None = _option(
        None, "Workers", "Address or scheduler file of a running Dask cluster.", "ADDRESS|FILE.json"
    )

    @model_validator(mode="after")
    def _check(self) -> JobConfig:
        if self.shards is not None and self.ome_version == "0.4":
            raise ValueError("shards: OME-Zarr 0.4 has none; drop --shards or use --ome-version 0.5")
        if self.keep_bits is not None and self.dtype == "uint16":
            raise ValueError("keep_bits: rounds floating point only; drop --keep-bits or use --dtype float32")
        return self


def resolve(
    flags: dict[str, Any], config_file: str | Path | None = None, environment: dict[str, str] | None = None
) -> JobConfig:
    """Merge flags over environment variables over a YAML file over defaults.

    Raises
    ------
    InvalidInputError
        If a setting is unknown, has no legal value, or the file cannot be read.
    """
    settings = _read_file(config_file) if config_file else {}
    environment = dict(os.environ) if environment is None else environment
    for name in JobConfig.model_fields:
        if (variable := ENVIRONMENT_PREFIX + name.upper()) in environment:
            settings[name] = environment[variable]
    settings |= {name: value for name, value in flags.items() if value is not None and value != []}
    return make_config(settings)


def make_config(settings: dict[str, Any]) -> JobConfig:
    """Check settings.

    Raises
    ------
    InvalidInputError
        One sentence per setting at fault.
    """
    try:
        return JobConfig(**settings)
    except ValidationError as error:
        raise InvalidInputError(" ".join(_sentences(error))) from error


def _sentences(error: ValidationError) -> list[str]:
    by_name: dict[str, str] = {}
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else ""
        message = item["msg"].removeprefix("Value error, ")
        if not name:
            by_name[message] = f"{message}."
        elif item["type"] == "extra_forbidden":
            by_name[name] = f"{name}: there is no such setting."
        elif item["type"] == "missing":
            by_name[name] = f"{name}: is missing."
        else:
            field = JobConfig.model_fields[name]
            got = item["input"] if name not in by_name else by_name[name]
            meaning = f" It is: {field.description}" if field.description else ""
            first = f"{name.replace('_', '-')}: got {got!r}; {message[0].lower() + message[1:]}.{meaning}"
            by_name.setdefault(name, first)
    return list(by_name.values())


class _Loader(yaml.SafeLoader):
    """YAML without numbers of base sixty: ``1:5`` is a range."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:int"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))


def _read_file(path: str | Path) -> dict[str, Any]:
    try:
        content = yaml.load(Path(path).read_text(), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInputError(f"config: {str(path)!r} cannot be read as YAML ({error}).") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidInputError(f"config: {str(path)!r} must hold names and values, got {type(content).__name__}.")
    return {str(name).replace("-", "_"): value for name, value in content.items()}
