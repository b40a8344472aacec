"""Compression of the output: its cost is measured with the codecs that are written."""

from __future__ import annotations

import zarr

from bigdeconv.storage import codecs


def test_the_cost_is_measured_with_the_codecs_of_the_output(monkeypatch):
    made, create = [], zarr.create_array
    monkeypatch.setattr(zarr, "create_array", lambda *a, **k: made.append(create(*a, **k)) or made[-1])
    decode, encode = codecs.seconds_per_voxel(edge=16)
    assert 0 <= decode < 1e-5
    assert 0 < encode < 1e-5
    [array] = made
    assert [c["name"] for c in array.metadata.to_dict()["codecs"]] == ["bytes", "blosc", "crc32c"]
    assert array.compressors[0].to_dict()["configuration"] | {"typesize": 0, "blocksize": 0} == {
        "cname": "zstd",
        "clevel": 3,
        "shuffle": "bitshuffle",
        "typesize": 0,
        "blocksize": 0,
    }
