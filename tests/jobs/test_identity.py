"""The identity of a run: the settings that decide its numbers, each of them and no other, and the contents of what it reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bigdeconv import psf
from bigdeconv.config import JobConfig, make_config
from bigdeconv.jobs.job import plan_job, sample_digests
from bigdeconv.jobs.record import identity_of
from tests import make

DECIDING = {
    "psf_voxel_um": (0.2, 0.1, 0.1),
    "psf_scale": (0.8, 1.0, 1.0),
    "voxel_um": (0.2, 0.1, 0.1),
    "level": 1,
    "channels": (1,),
    "timepoints": (1,),
    "roi": ((0, 4), (0, 16), (None, None)),
    "views_axis": "v",
    "method": "rltv",
    "iterations": 7,
    "update": "reference",
    "tau": 0.1,
    "sigma": 0.03,
    "background": 3.0,
    "intensity_scale": 200.0,
    "camera_offset": 100.0,
    "gain": 2.0,
    "read_noise": 1.5,
    "mask": "none",
    "block_shape": (8, 16, 16),
    "halo": (1, 2, 3),
    "seam_tolerance": 1e-4,
    "blend": (0, 0, 0),
    "dtype": "float32",
    "output_scale": 4.0,
    "keep_bits": 12,
    "chunks": (8, 16, 16),
    "shards": (8, 32, 32),
    "levels": 2,
    "ome_version": "0.4",
    "device": "cuda",
}
"""Another value for each setting that decides the numbers, or how they are stored."""
NOT_DECIDING = {
    "input": ("elsewhere.zarr", "the samples of its voxels count, and its metadata: it may be moved"),
    "output": ("elsewhere-out.zarr", "its place decides no number"),
    "schema_version": (None, "there is only one"),
    "psf": (("copy.tif",), "the digest of the PSF that is made of its contents counts"),
    "model": ("compact", "the digest of its weights counts: a name may be that of another file tomorrow"),
    "memory": (
        2**33,
        "it decides blocks only where none are given, and the plan is stored: a run goes on with its own",
    ),
    "seam_probes": (3, "they are solved after the run and change nothing of it"),
    "require_tls": (True, "it refuses a cluster, or changes nothing"),
    "missing": ("error", "it stops blocks, or changes nothing"),
    "max_failures": ("2%", "it stops a run early, or changes nothing"),
    "dashboard": (False, "pages about the run change nothing of it"),
    "fsync": (True, "it decides when bytes are on disk, not which"),
    "strict": (True, "it stops a run before its first block, or changes nothing"),
    "workers": (3, "any number of workers gives the same bytes"),
    "scheduler": ("tcp://127.0.0.1:9", "so does any cluster"),
}
"""Another value for each setting that does not, and why it does not."""


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    return plan_job(config_of(folder))


def config_of(folder, **settings):
    """Return the settings of a job on a small volume, which is made if it is not there."""
    if not (folder / "in.zarr").exists():
        make.volume(folder / "in.zarr", make.scene(8, 32, 32))
        make.psf_tiff(folder / "psf.tif")
    places = {"input": str(folder / "in.zarr"), "output": str(folder / "out.zarr"), "psf": str(folder / "psf.tif")}
    return make_config(places | {"method": "rl", "device": "cpu", "block_shape": (8, 32, 32)} | settings)


def identity(plan, **settings):
    """Return the identity of a planned job, had its settings been these."""
    config = JobConfig(**(plan.facts.config.model_dump() | settings))
    return identity_of(replace(plan, facts=replace(plan.facts, config=config)), {0: "samples"})


def test_every_setting_is_in_one_of_the_two_lists():
    """A new setting needs a decision here, and a reason if it does not count."""
    assert set(DECIDING) | set(NOT_DECIDING) == set(JobConfig.model_fields)
    assert set(DECIDING) & set(NOT_DECIDING) == set()
    assert all(len(reason) > 10 for _, reason in NOT_DECIDING.values())


def test_the_flags_of_the_settings_say_the_same():
    flagged = {
        name for name, field in JobConfig.model_fields.items() if (field.json_schema_extra or {}).get("decides_numbers")
    }
    assert flagged == set(DECIDING)
    assert set(make_config({"input": "a", "output": "b"}).deciding()) == flagged


@pytest.mark.parametrize("name", DECIDING)
def test_a_setting_that_decides_changes_the_identity(name, plan):
    before, after = identity(plan), identity(plan, **{name: DECIDING[name]})
    assert getattr(plan.facts.config, name) != DECIDING[name]
    changed = {n for n, value in after["parameters"].items() if before["parameters"][n] != value}
    assert changed == {name}
    assert {k: v for k, v in before.items() if k != "parameters"} == {
        k: v for k, v in after.items() if k != "parameters"
    }


@pytest.mark.parametrize("name", [n for n in NOT_DECIDING if n != "schema_version"])
def test_one_that_does_not_leaves_it_as_it_is(name, plan):
    value, _ = NOT_DECIDING[name]
    assert getattr(plan.facts.config, name) != value
    assert identity(plan, **{name: value}) == identity(plan)


def test_what_is_left_open_and_what_is_chosen_for_it_are_two_identities(plan):
    """``--tau auto`` and ``--tau 0.1`` are different jobs, even where the data choose 0.1."""
    assert identity(plan)["parameters"]["tau"] == "auto"
    assert identity(plan, tau=0.0)["parameters"]["tau"] == 0.0


class TestContents:
    """Files count by what is in them."""

    def of(self, folder, **settings):
        planned = plan_job(config_of(folder, **settings))
        return identity_of(planned, sample_digests(planned.facts, planned.n_views))

    def changed(self, before, after):
        return {name for name, value in after.items() if before[name] != value}

    def test_a_copy_elsewhere_is_the_same_job(self, tmp_path):
        one = self.of(tmp_path / "one")
        assert self.of(tmp_path / "two") == one

    def test_a_voxel_of_the_input(self, tmp_path):
        before = self.of(tmp_path)
        data = make.scene(8, 32, 32)
        data[3, 4, 5] += 1
        (tmp_path / "in.zarr").rename(tmp_path / "earlier.zarr")
        make.volume(tmp_path / "in.zarr", data)
        assert self.changed(before, self.of(tmp_path)) == {"input"}

    def test_the_voxel_size_of_the_input(self, tmp_path, monkeypatch):
        before = self.of(tmp_path)
        (tmp_path / "in.zarr").rename(tmp_path / "earlier.zarr")
        monkeypatch.setitem(make.VOXEL_UM, "z", 0.4)
        make.volume(tmp_path / "in.zarr", make.scene(8, 32, 32))
        assert "input" in self.changed(before, self.of(tmp_path))

    def test_a_voxel_of_the_psf(self, tmp_path):
        before = self.of(tmp_path)
        kernel = psf.gaussian(make.SIGMA_ZYX, truncate=3.0)
        kernel[3, 4, 4] *= 1.01
        make.psf_tiff(tmp_path / "psf.tif", kernel)
        assert self.changed(before, self.of(tmp_path)) == {"psf"}

    def test_the_weights_of_the_model(self, tmp_path):
        from bigdeconv import models

        before = self.of(tmp_path, method="garl")
        assert self.of(tmp_path, method="garl", model=models.DEFAULT) == before
        assert self.changed(before, self.of(tmp_path, method="garl", model="finite-differences")) == {"model"}
        weights = models.resolve("default")
        models.save(tmp_path / "same.safetensors", weights)
        assert self.of(tmp_path, method="garl", model=str(tmp_path / "same.safetensors")) == before

    def test_a_mask_by_the_blocks_that_it_leaves_out(self, tmp_path):
        """Its place does not count, nor do voxels that leave the blocks as they are."""
        settings = {"block_shape": (8, 16, 16), "halo": (2, 2, 2), "blend": (0, 0, 0)}
        config_of(tmp_path)

        def with_mask(name, at):
            labels = np.zeros((8, 32, 32), np.uint8)
            labels[at] = 1
            return self.of(tmp_path, mask=str(make.volume(tmp_path / name, labels)), **settings)

        one, same, other = (
            with_mask("one.zarr", (4, 4, 4)), with_mask("same.zarr", (4, 5, 5)), with_mask("other.zarr", (4, 24, 24)),
        )  # fmt: skip
        assert one["parameters"]["mask"] == "auto"
        assert same == one
        assert self.changed(one, other) == {"mask"}
        without = self.of(tmp_path, **settings)
        assert self.changed(without, one) == {"mask"}
