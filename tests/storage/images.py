"""Small OME-Zarr images for the tests of the storage, and changes to them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from bigdeconv.storage.arrays import write_region
from bigdeconv.storage.collection import Collection, create_outputs
from bigdeconv.storage.ome_parsing import Channel
from bigdeconv.storage.output import LevelSpec, OutputSpec, create_output

LAYOUTS = {"0.5-sharded": ("0.5", True), "0.5": ("0.5", False), "0.4": ("0.4", False)}
EXTENT = {"t": 2, "c": 3, "v": 4, "z": 11, "y": 13, "x": 10}
UNITS = {"t": "second", "z": "micrometer", "y": "micrometer", "x": "micrometer"}
VOXEL = {"z": 0.5, "y": 0.25, "x": 0.2}
ORIGIN = {"z": 3.0, "y": -1.0, "x": 0.0}


def make_spec(axes="tczyx", layout=("0.5", True), dtype="uint16", n_levels=2, extent=EXTENT, chunk=None, **changes):
    version, sharded = layout
    edge = chunk or (4 if sharded else 8)  # few files: making and removing them is most of the time
    levels = []
    for n in range(n_levels):
        factor = {a: 2**n if a in "zyx" else 1 for a in axes}
        shape = tuple(-(-extent[a] // factor[a]) for a in axes)
        chunks = tuple(edge if a in "zyx" else 1 for a in axes)
        scale = tuple(VOXEL.get(a, 1.0) * factor[a] for a in axes)
        levels.append(
            LevelSpec(
                shape=shape,
                chunk_shape=chunks,
                shard_shape=tuple(2 * c if a in "zyx" else 1 for a, c in zip(axes, chunks, strict=True))
                if sharded
                else None,
                scale=scale,
                translation=tuple(
                    ORIGIN.get(a, 0.0) + (s - VOXEL.get(a, 1.0)) / 2 for a, s in zip(axes, scale, strict=True)
                ),
            )
        )
    n_channels = extent["c"] if "c" in axes else 1
    spec = OutputSpec(
        axes=tuple(axes),
        units=tuple(UNITS.get(a) for a in axes),
        dtype=dtype,
        levels=tuple(levels),
        ome_version=version,
        name="embryo",
        channels=tuple(Channel(f"stain {i}") for i in range(n_channels)),
        attributes={"iterations": 50},
    )
    return replace(spec, **changes)


def make(path, *args, fill=True, **kwargs):
    """Create an output and fill every level with reproducible noise; return the arrays as written."""
    spec = make_spec(*args, **kwargs)
    create_output(path, spec)
    written = []
    for n, level in enumerate(spec.levels):
        data = np.random.default_rng(n).integers(0, 100, level.shape).astype(spec.dtype)
        if fill:
            write_region(path, str(n), tuple(slice(None) for _ in level.shape), data)
        written.append(data)
    return written


def make_plate(path, version="0.5", names=("A/1/0", "A/1/1", "B/2/0"), extents=(EXTENT, EXTENT, EXTENT), **changes):
    """Create a plate of images without voxels, by ``row/column/field``, with entries that OME-Zarr does not know."""
    paths = list(dict.fromkeys(name.rpartition("/")[0] for name in names))
    plate = {
        "name": "screen 7",
        "rows": [{"name": "A"}, {"name": "B"}],
        "columns": [{"name": "1"}, {"name": "2"}, {"name": "3"}],
        "wells": [{"path": path, "drug": "DMSO"} for path in paths],
        "field_count": 2,
        "acquisitions": [{"id": 3, "name": "overnight"}],
        "robot": {"arm": 1},
    }
    wells = {path: {"images": [], "operator": "K."} for path in paths}
    for name in names:
        well, _, image = name.rpartition("/")
        wells[well]["images"].append({"path": image, "acquisition": 3})
    specs = [make_spec("zyx", (version, False), extent=extent) for extent in extents]
    create_outputs(path, Collection(tuple(names), tuple(names), plate | changes, wells), specs)
    return path


def edit(path, change):
    """Let ``change`` alter the OME attributes of a 0.5 group in place."""
    file = Path(path) / "zarr.json"
    metadata = json.loads(file.read_text())
    change(metadata["attributes"]["ome"])
    file.write_text(json.dumps(metadata))


def flip_bit(path, position, bit=3):
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1 << bit
    path.write_bytes(raw)


def with_entry(key, value, *, dataset=None):
    def change(ome):
        target = ome["multiscales"][0]
        (target if dataset is None else target["datasets"][dataset])[key] = value

    return change


def with_unit(value):
    def change(ome):
        for axis in ome["multiscales"][0]["axes"]:
            axis.pop("unit", None)
            if value is not None:
                axis["unit"] = value

    return change


def with_scale(*vector):
    return with_entry("coordinateTransformations", [{"type": "scale", "scale": list(vector)}], dataset=0)
