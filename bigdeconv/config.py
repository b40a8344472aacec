"""Settings of a job: one frozen model for the command line, the environment, a YAML file and Python.

This module is the border.  Behind it nothing is ``"auto"``: a setting that bigdeconv or the data decide is None.
"""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from bigdeconv.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

ENVIRONMENT_PREFIX = "BIGDECONV_"
DEFAULT_ITERATIONS: dict[str, int] = {"garl": 50, "rltv": 30, "rl": 15}
"""By method, where the data do not choose the number."""
MAX_ITERATIONS: dict[str, int] = {"garl": 120, "rltv": 50, "rl": 50}
"""By method: the upper bound of a number that the data choose, for which a job is planned."""
MAX_INDICES = 1_000_000
"""Time points or channels of a setting."""
MAX_FILE_BYTES = 2**20
"""Length of a file of settings."""
SHOWN_CHARACTERS = 200
"""Of a value at fault that is shown."""
T = TypeVar("T")
_MAX_ITERATIONS_TEXT = ", ".join(f"{n} for {method}" for method, n in MAX_ITERATIONS.items())


def _numbers(value: Any) -> Any:
    """Split ``Z,Y,X`` and the like."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _indices(value: Any) -> Any:
    """Read ``0,2`` and ``0:5`` as indices."""
    if isinstance(value, int):
        return (value,)
    if not isinstance(value, str):
        return value
    indices: list[int] = []
    for part in value.split(","):
        if match := re.fullmatch(r"\s*(\d+):(\d+)\s*", part):
            found = range(int(match[1]), int(match[2]))
            if found.stop - found.start > MAX_INDICES - len(indices):
                raise ValueError(f"expected at most {MAX_INDICES} indices")
            indices.extend(found)
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


def _size(value: Any) -> Any:
    """Check the form of ``8GiB``: pydantic reads the beginning of ``8,5GiB`` and ignores the rest.  ``8Gi`` means the same."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([KMGTP]?i?)B?\s*", value, re.IGNORECASE)
    if match is None:
        raise ValueError("expected a size such as 8GiB")
    return f"{match[1]}{match[2]}B"


def _files(value: Any) -> Any:
    values = (value,) if isinstance(value, str | Path) else value
    return tuple(str(v) if isinstance(v, Path) else v for v in values) if isinstance(values, list | tuple) else values


def _version(value: Any) -> Any:
    """Take ``0.4`` from YAML, where it is a number."""
    return str(value) if isinstance(value, float) else value


def _failures(value: Any) -> Any:
    """Check a number or a share of blocks."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and not re.fullmatch(r"\s*(\d{1,9}|\d{1,2}(\.\d+)?\s*%|100\s*%)\s*", text):
        raise ValueError("expected a number such as 5 or a share such as 2%")
    return text


def _none_for_auto(value: Any) -> Any:
    return None if value == "auto" else value


def _auto_for_none(value: Any) -> Any:
    return "auto" if value is None else value


Automatic: TypeAlias = Annotated[T | None, BeforeValidator(_none_for_auto), PlainSerializer(_auto_for_none)]
"""A setting that takes ``auto``: None here, ``auto`` again where it is written to a file."""
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
Bytes = Annotated[ByteSize, BeforeValidator(_size), Field(gt=0)]
Files = Annotated[tuple[str, ...], BeforeValidator(_files)]
Real = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _option(default: Any, panel: str, description: str, metavar: str | None = None, *, decides: bool = True) -> Any:
    """Declare a setting.

    Parameters
    ----------
    default : Any
    panel : str
        Heading under which the command line's help shows it.
    description : str
        Help text.
    metavar : str, optional
        Form of the value in the help.
    decides : bool
        Whether its value decides the numbers that are stored, so that it is part of a run's identity.  False also for files, of
        which the contents decide.
    """
    extra: dict[str, Any] = {"panel": panel, "metavar": metavar, "decides_numbers": decides}
    return Field(default=default, description=description, json_schema_extra=extra)


class JobConfig(BaseModel):
    """All settings of a run.  Triples are in the order z,y,x.

    Examples
    --------
    >>> config = JobConfig(input="embryo.zarr", output="out.zarr", psf="psf.tif", tau="auto", memory="8GiB")
    >>> config.tau is None, config.memory
    (True, 8589934592)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    schema_version: Literal[1] = 1
    input: str = Field(
        description="OME-Zarr image or plate (path or https, s3, gs, az URL), a glob, or a .txt list of images."
    )
    output: str = Field(description="Output: a path that does not exist yet; a folder for several images.")
    psf: Files = _option(
        (), "Input", "PSF file: TIFF or .npy, z y x, or v z y x for views. FILE for all channels, C1=FILE for a channel, "
        "V3=FILE for a view, C1.V3=FILE for both; may be repeated.", "FILE", decides=False,
    )  # fmt: skip
    psf_voxel_um: Lengths | None = _option(
        None, "Input", "Voxel size of the PSF files in µm. Default: that of the data.", "Z,Y,X"
    )
    psf_scale: Automatic[Lengths] = _option(
        (1.0, 1.0, 1.0),
        "Input",
        "Width of the PSF as a multiple of the given one; auto: from the data.",
        "Z,Y,X|auto",
    )
    require_tls: bool = _option(False, "Workers", "Refuse a cluster that speaks without TLS.", decides=False)
    missing: Literal["fill", "error"] = _option(
        "fill", "Workers", "Chunks that the input lacks: fill, as zarr has it, and reported; or an error.", "fill|error",
        decides=False,
    )  # fmt: skip
    max_failures: Automatic[Annotated[str, BeforeValidator(_failures)]] = _option(
        None,
        "Workers",
        "Blocks that may fail before no others are begun, as a number or a share; auto: 10, and more than have succeeded.",
        "N|P%|auto",
        decides=False,
    )
    fsync: bool = _option(
        False,
        "Workers",
        "Have the files of a block on disk before it counts as finished: it then survives a power failure.",
        decides=False,
    )
    dashboard: bool = _option(
        True, "Workers", "Serve Dask's dashboard; anybody on this machine can read it.", decides=False
    )
    strict: bool = _option(
        False, "Workers", "Stop before the first block where the data do not fit the PSF.", decides=False
    )
    voxel_um: Lengths | None = _option(None, "Input", "Voxel size in µm. Default: from the metadata.", "Z,Y,X")
    level: int = _option(0, "Input", "Level of the input pyramid.", "N")
    channels: Indices | None = _option(None, "Input", "Channels, for example 0,2. Default: all.", "LIST")
    timepoints: Indices | None = _option(None, "Input", "Time points, for example 0:5. Default: all.", "LIST")
    roi: Ranges | None = _option(
        None, "Input", "Region of the volume. Its surroundings are read too: the result equals that part of a full run.",
        "Z0:Z1,Y0:Y1,X0:X1",
    )  # fmt: skip
    views_axis: str | None = _option(None, "Input", "Axis of the views of one object.", "NAME")

    method: Literal["garl", "rl", "rltv"] = _option(
        "garl", "Method", "Learned prior (garl), no prior (rl) or total variation (rltv).", "garl|rl|rltv"
    )
    iterations: Automatic[Annotated[int, Field(ge=0, le=100_000)]] = _option(
        None,
        "Method",
        f"Iterations; auto: chosen by cross-validation on thinned photons, at most {_MAX_ITERATIONS_TEXT}.",
        "N|auto",
    )
    update: Literal["convergent", "reference"] = _option(
        "convergent",
        "Method",
        "Update rule: convergent (majorise-minimise steps with bounded momentum) or reference (algorithm 1 of Pham 2025).",
        "convergent|reference",
    )
    tau: Automatic[NonNegative] = _option(
        None,
        "Method",
        "Strength of the prior, in units of the intensity scale; auto: chosen by cross-validation on thinned photons.",
        "F|auto",
    )
    sigma: Automatic[Positive] = _option(
        None,
        "Method",
        "Noise level of the learned prior, as a fraction of the intensity scale; auto: that of the model, or two or four times "
        "as much where the data prefer it.",
        "F|auto",
    )
    model: str = _option(
        "default", "Method", "Learned prior: a shipped name or a model file.", "NAME|FILE", decides=False
    )

    background: Automatic[NonNegative] = _option(
        None,
        "Intensity",
        "Background in counts above the camera offset; auto: from dark regions and cross-validation on thinned photons.",
        "F|auto",
    )
    intensity_scale: Automatic[Positive] = _option(
        None,
        "Intensity",
        "Counts above background that stand for 1 in the solver; auto: the 99.9th percentile.",
        "F|auto",
    )
    camera_offset: Real = _option(0.0, "Intensity", "Camera offset: counts without light.", "F")
    gain: Automatic[Positive] = _option(
        None,
        "Intensity",
        "Photons per count; auto: 1, or gain and offset from the noise where that excludes 1.",
        "F|auto",
    )
    read_noise: NonNegative = _option(0.0, "Intensity", "Standard deviation of the read noise, in photons.", "F")
    mask: Automatic[Annotated[str, Field(min_length=1)]] = _option(
        None, "Intensity", "auto: mask fill values and hot pixels. none: mask only values that are not finite. LABELS: as auto, "
        "and compute only blocks within a halo of the non-zero voxels of this OME-Zarr image or label image.",
        "auto|none|LABELS",
    )  # fmt: skip

    block_shape: Automatic[Shape] = _option(None, "Blocks", "Core of a block in voxels; auto: planned.", "Z,Y,X|auto")
    halo: Automatic[Width] = _option(
        None, "Blocks", "Minimum halo in voxels; auto: from the seam tolerance.", "Z,Y,X|auto"
    )
    seam_tolerance: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = _option(
        1e-3, "Blocks", "Largest relative error next to a seam, compared with the volume solved in one piece.", "F"
    )
    blend: Automatic[Width] = _option(
        None, "Blocks", "Half-width of the ramps at seams in voxels; 0 crops. auto: 4.", "Z,Y,X|auto"
    )
    memory: Automatic[Bytes] = _option(
        None, "Blocks", "Memory per worker, for example 8GiB; auto: a share of this machine's memory.", "SIZE|auto",
        decides=False,
    )  # fmt: skip
    seam_probes: Annotated[int, Field(ge=0)] = _option(
        8, "Blocks", "Seams to solve again without a seam after the run, to measure their error; 0 for none.", "N",
        decides=False,
    )  # fmt: skip

    dtype: Automatic[Literal["uint16", "float32"]] = _option(
        None, "Output", "auto: uint16 for integer input, float32 for floating-point input.", "auto|uint16|float32"
    )
    output_scale: Automatic[Positive] = _option(
        None, "Output", "Factor from photons to stored integers; auto: chosen with headroom and stored.", "F|auto"
    )
    keep_bits: Annotated[int, Field(ge=1, le=23)] | None = _option(
        None, "Output", "Mantissa bits of float32 output; fewer bits compress better. Default: all.", "N"
    )
    chunks: Shape | None = _option(None, "Output", "Chunk of the output. Default: planned.", "Z,Y,X")
    shards: Shape | None = _option(None, "Output", "Shard of the output (OME-Zarr 0.5). Default: planned.", "Z,Y,X")
    levels: Automatic[Annotated[int, Field(ge=1, le=32)]] = _option(
        None, "Output", "Levels of the pyramid, the full resolution included; auto: until one chunk holds it.", "N|auto"
    )
    ome_version: Annotated[Literal["0.5", "0.4"], BeforeValidator(_version)] = _option(
        "0.5", "Output", "OME-Zarr version of the output.", "0.5|0.4"
    )

    device: Automatic[Literal["cpu", "cuda"]] = _option(
        None, "Workers", "Device of the blocks; auto: the GPUs of this machine, or its CPU.", "auto|cpu|cuda"
    )
    workers: Annotated[int, Field(ge=1, le=100_000)] | None = _option(
        None,
        "Workers",
        "Local worker processes. Default: one per GPU, or one per core as memory allows.",
        "N",
        decides=False,
    )
    scheduler: str | None = _option(
        None, "Workers", "Running Dask cluster: address or scheduler file.", "ADDRESS|FILE.json", decides=False
    )

    @property
    def mask_labels(self) -> str | None:
        """Location of the label image, None without one."""
        return None if self.mask == "none" else self.mask

    @property
    def masks_defects(self) -> bool:
        """Whether fill values and hot pixels are masked."""
        return self.mask != "none"

    def failures_allowed(self, n_blocks: int) -> int | None:
        """Return the number of blocks that may fail, None where the engine decides."""
        if self.max_failures is None:
            return None
        number = self.max_failures.strip()
        return int(n_blocks * float(number[:-1]) / 100) if number.endswith("%") else int(number)

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide the stored numbers, as JSON values by name."""
        fields = type(self).model_fields.items()
        names = {n for n, f in fields if isinstance(x := f.json_schema_extra, dict) and x["decides_numbers"]}
        return self.model_dump(mode="json", include=names)

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
    """Merge settings: flags over environment variables over a YAML file over defaults.

    Parameters
    ----------
    flags : dict
        Values by setting; None and empty lists count as not given.
    config_file : str or Path, optional
        YAML file.
    environment : dict, optional
        Variables; default: those of the process.

    Raises
    ------
    InvalidInputError
        If a setting is unknown or its value is not allowed, or the file cannot be read.
    """
    settings = _read_file(config_file) if config_file else {}
    environment = dict(os.environ) if environment is None else environment
    known = {ENVIRONMENT_PREFIX + name.upper(): name for name in JobConfig.model_fields}
    for variable, value in environment.items():
        if variable in known:
            settings[known[variable]] = value
        elif variable.startswith(ENVIRONMENT_PREFIX) and (near := get_close_matches(variable, known, n=1, cutoff=0.85)):
            raise InvalidInputError(f"environment: {variable} is no setting; did you mean {near[0]}?")
    settings |= {name: value for name, value in flags.items() if value is not None and value != []}
    return make_config(settings)


def make_config(settings: dict[str, Any]) -> JobConfig:
    """Check settings.

    Parameters
    ----------
    settings : dict
        Values by setting, as in `JobConfig`.

    Raises
    ------
    InvalidInputError
        One sentence for each setting at fault.
    """
    try:
        return JobConfig(**settings)
    except ValidationError as error:
        raise InvalidInputError(" ".join(_sentences(error))) from error


def _sentences(error: ValidationError) -> list[str]:
    """Return one sentence for each setting at fault."""
    by_name: dict[str, str] = {}
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else ""
        if name in by_name:
            continue
        if not name:
            message = item["msg"].removeprefix("Value error, ")
            by_name[message] = f"{message}."
        elif item["type"] == "extra_forbidden":
            by_name[name] = f"{name}: no such setting; `bigdeconv run --help` lists them."
        elif item["type"] == "missing":
            by_name[name] = f"{name}: missing; it is required."
        else:
            field = JobConfig.model_fields[name]
            meaning = f" Meaning: {field.description}" if field.description else ""
            extra = field.json_schema_extra
            automatic = isinstance(extra, dict) and "auto" in str(extra["metavar"]).split("|")
            expected = _expectation(item) + (" or auto" if automatic else "")
            by_name[name] = f"{name.replace('_', '-')}: got {_shown(item['input'])}; {expected}.{meaning}"
    return list(by_name.values())


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


_EXPECTED = {
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "int_type": "expected a whole number",
    "string_type": "expected text",
    "tuple_type": "expected a list",
    "byte_size": "expected a size such as 8GiB",
    "byte_size_unit": "expected a size such as 8GiB",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected {ge} or more",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected {le} or less",
    "literal_error": "expected {expected}",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "too_short": "expected {min_length} values, got {actual_length}",
    "too_long": "expected {max_length} values, got {actual_length}",
    "string_too_short": "expected text that is not empty",
}
"""Plain words for pydantic's kinds of errors."""


def _expectation(item: Mapping[str, Any]) -> str:
    """Return what was expected instead of a value."""
    words = _EXPECTED.get(item["type"])
    if words is None:
        message = str(item["msg"]).removeprefix("Value error, ")
        return message[0].lower() + message[1:]
    return words.format(**item.get("ctx", {}))


class _Loader(yaml.SafeLoader):
    """YAML loader without sexagesimal integers, as ``1:5`` is a range, and without aliases: few lines make gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read; write the value out")
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:int"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))


def read_yaml(text: str) -> Any:
    """Return the values of a YAML document of settings.

    Raises
    ------
    ValueError
        If it is none, too long, or nested too deeply.
    """
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"it is longer than {MAX_FILE_BYTES} characters")
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def read_text(path: Path) -> str:
    """Return the beginning of a text file, a little more than a file of settings may have.

    Raises
    ------
    OSError
        If it is a pipe or a device, or cannot be read.
    """
    if path.exists() and not path.is_file():
        raise OSError("it is no regular file")
    with path.open(encoding="utf-8") as file:
        return file.read(MAX_FILE_BYTES + 1)


def _read_file(path: str | Path) -> dict[str, Any]:
    try:
        content = read_yaml(read_text(Path(path)))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InvalidInputError(
            f"config: {str(path)!r} cannot be read as YAML ({reason}); give a file of settings, one NAME: VALUE per line."
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidInputError(f"config: {str(path)!r} must hold names and values, got {type(content).__name__}.")
    return {str(name).replace("-", "_"): value for name, value in content.items()}
