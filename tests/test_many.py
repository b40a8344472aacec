"""Several volumes in one job: a glob, a list, a plate; each comes out as it would alone."""

from __future__ import annotations

import json
import re
import shutil
import warnings

import numpy as np
import pytest
import zarr

from bigdeconv.storage.ledger import ledger_path
from bigdeconv.storage.output import LevelSpec, OutputSpec, create_output
from tests import make
from tests.make import RL, bigdeconv

SHAPES = {"a.zarr": (8, 32, 64), "b.zarr": (8, 48, 32), "c.zarr": (8, 32, 64)}
GIVEN = (*RL, "--background", "20", "--intensity-scale", "100", "--output-scale", "8")
BLOCKS = ("--block-shape", "8,16,16", "--chunks", "8,16,16", "--levels", "3")
N_BLOCKS = {"a.zarr": 8, "b.zarr": 6, "c.zarr": 8}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three volumes of two shapes, and their PSF."""
    folder = tmp_path_factory.mktemp("source")
    for seed, (name, shape) in enumerate(SHAPES.items()):
        make.volume(folder / "data" / name, make.scene(*shape, seed=seed), chunk=(8, 16, 16))
    make.psf_tiff(folder / "psf.tif")
    return folder


@pytest.fixture(scope="module")
def options(source, cluster_address):
    return ("--psf", source / "psf.tif", *GIVEN, *BLOCKS, "--scheduler", cluster_address)


@pytest.fixture(scope="module")
def alone(source, options, tmp_path_factory):
    """Files of the levels of each volume, made in a job of its own."""
    folder = tmp_path_factory.mktemp("alone")
    for name in SHAPES:
        result = bigdeconv("run", source / "data" / name, folder / name, *options)
        assert result.exit_code == 0, result.stderr
    return {name: levels_of(folder / name) for name in SHAPES}


@pytest.fixture(scope="module")
def finished(source, options, tmp_path_factory):
    """The folder of a job of three volumes that ended well."""
    output = tmp_path_factory.mktemp("finished") / "out"
    result = bigdeconv("run", source / "data" / "*.zarr", output, *options, "--json")
    assert result.exit_code == 0, result.stdout
    printed = json.loads(result.stdout)
    assert (printed["blocks_total"], printed["blocks_done"]) == (22, 22)
    return output


def levels_of(image):
    """Every file of an image but its own metadata, which say what job it is from."""
    return {name: digest for name, digest in make.snapshot(image).items() if name not in {"zarr.json", ".zattrs"}}


def attributes(group):
    found = zarr.open_group(group, mode="r").attrs.asdict()
    return found.get("ome", found)


class TestEachAsAlone:
    """With the same numbers, a volume becomes the same bytes in company as alone."""

    def test_a_glob(self, finished, alone):
        assert {p.name for p in finished.iterdir()} == set(SHAPES)
        for name in SHAPES:
            assert levels_of(finished / name) == alone[name]
        assert len(make.journal_of(finished)) >= 22

    def test_a_list_relative_to_its_file_with_comments(self, source, options, alone, tmp_path):
        file = source / "some.txt"
        file.write_text(f"# second first\n\n  data/b.zarr  # narrow\n{source / 'data' / 'a.zarr'}\n#data/c.zarr\n")
        result = bigdeconv("run", file, tmp_path / "out", *options)
        assert result.exit_code == 0, result.stderr
        assert "14 blocks of 8,16,16 voxels in 2 volumes" in result.stderr
        assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.zarr", "b.zarr"}
        for name in ("a.zarr", "b.zarr"):
            assert levels_of(tmp_path / "out" / name) == alone[name]

    @pytest.mark.parametrize(("version", "written"), [("0.4", "0.4"), ("0.4", "0.5"), ("0.5", "0.5"), ("0.5", "0.4")])
    def test_a_plate(self, options, tmp_path, version, written):
        fields = {
            f"{well}/{f}": make.scene(8, 32, 32, seed=7 * f + i)
            for i, well in enumerate(("A/1", "B/2"))
            for f in (0, 1)
        }
        del fields["B/2/1"]
        plate, output = make.plate(tmp_path / "in.zarr", version, fields), tmp_path / "out.zarr"
        result = bigdeconv("run", plate, output, *options, "--ome-version", written)
        assert result.exit_code == 0, result.stderr
        stored, made = attributes(plate)["plate"], attributes(output)["plate"]
        assert made == stored | {"version": written}
        for well in ("A/1", "B/2"):
            assert attributes(output / well)["well"] == attributes(plate / well)["well"] | {"version": written}
        from ome_zarr_models import v04, v05

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hcs = (v05 if written == "0.5" else v04).HCS.from_zarr(zarr.open_group(output, mode="r"))
        assert hcs.n_wells == 2
        single = bigdeconv("run", plate / "B/2/0", tmp_path / "one.zarr", *options, "--ome-version", written)
        assert single.exit_code == 0, single.stderr
        assert levels_of(output / "B/2/0") == levels_of(tmp_path / "one.zarr")
        for name in fields:
            assert zarr.open_array(output / name / "0", mode="r").shape == (8, 32, 32)
            assert len(attributes(output / name)["multiscales"][0]["datasets"]) == 3
        assert bigdeconv("validate", output, "--deep").stdout == "valid\n"

    def test_time_points_channels_and_regions_are_chosen_in_each(self, options, source, tmp_path):
        """One volume has more time points than the other; the first two of both are taken."""
        for n, name in ((2, "short.zarr"), (3, "long.zarr")):
            data = np.stack([[make.scene(8, 32, 32, seed=10 * n + 3 * t + c) for c in range(2)] for t in range(n)])
            make.volume(tmp_path / "data" / name, data, chunk=(1, 1, 8, 16, 16))
        part = (*options, "--timepoints", "0:2", "--channels", "1", "--roi", ":,16:32,:")
        assert bigdeconv("run", tmp_path / "data" / "*.zarr", tmp_path / "out", *part).exit_code == 0
        for name in ("short.zarr", "long.zarr"):
            assert bigdeconv("run", tmp_path / "data" / name, tmp_path / name, *part).exit_code == 0
            assert make.pixels(tmp_path / "out" / name).shape == (2, 1, 8, 16, 32)
            assert levels_of(tmp_path / "out" / name) == levels_of(tmp_path / name)

    def test_a_mask_leaves_out_blocks_of_each(self, options, source, tmp_path):
        mask = np.zeros((8, 64, 64), "uint8")
        mask[:, :8, :8] = 1
        level = LevelSpec(mask.shape, mask.shape, None, (0.3, 0.1, 0.1), (0.0, 0.0, 0.0))
        spec = OutputSpec(("z", "y", "x"), ("micrometer",) * 3, "uint8", (level,), "0.5", "mask", (), {})
        create_output(tmp_path / "mask.zarr", spec)
        zarr.open_array(tmp_path / "mask.zarr" / "0")[:] = mask
        more = ("--mask", tmp_path / "mask.zarr", "--halo", "2,4,4", "--blend", "0,0,0", "--json")
        result = bigdeconv("run", source / "data" / "*.zarr", tmp_path / "out", *options, *more)
        assert result.exit_code == 0, result.stdout
        assert json.loads(result.stdout)["blocks_skipped"] == 22 - 3
        for name in SHAPES:
            pixels = make.pixels(tmp_path / "out" / name)
            assert pixels[:, :16, :16].all()
            assert not pixels[:, 16:].any()


class TestOneScale:
    def test_background_and_scale_are_those_of_all_volumes_together(self, source, cluster_address, tmp_path):
        """A dim and a bright volume: what is decided lies between what each would decide alone, and is one for both."""
        for name, signal in (("dim.zarr", 100.0), ("bright.zarr", 1000.0)):
            make.volume(tmp_path / "data" / name, make.scene(8, 32, 32, signal=signal))
        common = ("--psf", source / "psf.tif", *RL, "--scheduler", cluster_address)
        decided = {}
        for name in ("*.zarr", "dim.zarr", "bright.zarr"):
            output = tmp_path / name.replace("*", "all")
            assert bigdeconv("run", tmp_path / "data" / name, output, *common).exit_code == 0
            decided[name] = make.plan_of(output)["channels"]["0"]
        both = decided["*.zarr"]
        dim, bright = (decided[n]["settings"]["intensity_scale"] for n in ("dim.zarr", "bright.zarr"))
        volumes = [make.scene(8, 32, 32, signal=s) for s in (100.0, 1000.0)]
        expected = np.percentile(np.stack(volumes), 99.9) - both["settings"]["background"]
        assert dim < both["settings"]["intensity_scale"] < bright
        assert both["settings"]["intensity_scale"] == pytest.approx(expected, rel=1e-5)
        assert both["output_scale"] == decided["bright.zarr"]["output_scale"]  # the brightest must fit


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "words"),
        {
            "dtype": ({"dtype": "uint8", "signal": 100.0}, ("dtype uint8", "uint16")),
            "axes": ({"shape": (2, 8, 32, 64), "axes": "tzyx"}, ("axes t,z,y,x", "z,y,x")),
            "views": ({"shape": (2, 8, 32, 64), "axes": "czyx"}, ("axes c,z,y,x",)),
        }.values(),
        ids=["dtype", "axes", "channels"],
    )
    def test_volumes_that_differ(self, change, words, source, options, tmp_path):
        shutil.copytree(source / "data" / "a.zarr", tmp_path / "data" / "a.zarr")
        numbers = {k: v for k, v in change.items() if k in {"dtype", "signal"}}
        data = make.scene(*change.get("shape", SHAPES["a.zarr"]), **numbers)
        make.volume(tmp_path / "data" / "z.zarr", data, axes=change.get("axes"))
        self.refused(
            tmp_path / "data" / "*.zarr", options, tmp_path, ("z.zarr", "a.zarr", *words, "run those that differ apart")
        )

    def test_volumes_of_another_voxel_size_or_number_of_channels(self, options, tmp_path, monkeypatch):
        make.volume(tmp_path / "data" / "a.zarr", make.scene(2, 8, 32, 32))
        make.volume(tmp_path / "data" / "b.zarr", make.scene(3, 8, 32, 32))
        self.refused(tmp_path / "data" / "*.zarr", options, tmp_path, ("channels 3", "has 2"))
        shutil.rmtree(tmp_path / "data" / "b.zarr")
        monkeypatch.setitem(make.VOXEL_UM, "z", 0.4)
        make.volume(tmp_path / "data" / "b.zarr", make.scene(2, 8, 32, 32))
        self.refused(tmp_path / "data" / "*.zarr", options, tmp_path, ("voxel size", "0.4,0.1,0.1", "0.3,0.1,0.1"))

    def test_names_that_clash(self, source, options, tmp_path):
        (tmp_path / "list.txt").write_text(f"{source}/data/a.zarr\nmore/a.zarr\n")
        self.refused(tmp_path / "list.txt", options, tmp_path, ("both called 'a.zarr'", "run them apart"))

    def test_nothing_to_do(self, options, tmp_path):
        (tmp_path / "list.txt").write_text("# nothing yet\n")
        self.refused(tmp_path / "list.txt", options, tmp_path, ("list.txt", "names no image"))
        self.refused(tmp_path / "*.zarr", options, tmp_path, ("no image matches", "*.zarr"))

    def test_one_of_them_is_missing(self, source, options, tmp_path):
        (tmp_path / "list.txt").write_text(f"{source}/data/a.zarr\nnone.zarr\n")
        self.refused(tmp_path / "list.txt", options, tmp_path, (f"{tmp_path}/none.zarr does not exist",))

    @pytest.mark.parametrize("fault", ["no wells", "no rows", "well gone", "field outside"])
    def test_a_broken_plate(self, fault, options, tmp_path):
        plate = make.plate(tmp_path / "in.zarr", "0.5", {"A/1/0": make.scene(8, 32, 32)})
        file = plate / ("A/1" if fault in {"well gone", "field outside"} else "") / "zarr.json"
        metadata = json.loads(file.read_text())
        ome = metadata["attributes"]["ome"]
        if fault == "no wells":
            ome["plate"]["wells"] = []
        elif fault == "no rows":
            del ome["plate"]["rows"]
        elif fault == "well gone":
            del ome["well"]
        else:
            ome["well"]["images"][0]["path"] = ".."
        file.write_text(json.dumps(metadata))
        self.refused(plate, options, tmp_path, ("plate", "in.zarr"))

    @staticmethod
    def refused(location, options, folder, words):
        before = make.snapshot(folder)
        result = bigdeconv("run", location, folder / "out", *options)
        assert result.exit_code == 3, result.stderr
        for word in words:
            assert word in result.stderr
        assert "Traceback" not in result.stderr
        assert make.snapshot(folder) == before


class TestLedger:
    def test_status_and_validate_of_a_folder(self, finished, tmp_path):
        status = json.loads(bigdeconv("status", finished, "--json").stdout)
        assert (status["state"], status["blocks_total"], status["blocks_done"]) == ("complete", 22, 22)
        assert bigdeconv("validate", finished, "--deep").stdout == "valid\n"
        assert {p.name for p in finished.parent.iterdir()} == {"out", "out.bigdeconv"}
        output = make.copied(finished, tmp_path)
        shutil.rmtree(output / "b.zarr" / "1")
        result = bigdeconv("validate", output)
        assert result.exit_code == 3
        assert re.search(r"^b\.zarr: .*'1'", result.stdout, re.MULTILINE)

    def test_resume_gives_the_same_bytes_and_solves_nothing_twice(
        self, source, options, finished, cluster_address, tmp_path
    ):
        output = tmp_path / "out"

        def progressed(self, progress):
            if progress.blocks_finished >= 11:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bigdeconv_cli.progress.Reporter.progressed", progressed)
            assert bigdeconv("run", source / "data" / "*.zarr", output, *options).exit_code == 4
        status = json.loads(bigdeconv("status", output, "--json").stdout)
        assert status["state"] == "interrupted"
        assert 11 <= status["blocks_done"] < 22
        result = bigdeconv("resume", output, "--scheduler", cluster_address, "--json")
        assert result.exit_code == 0, result.stdout
        assert sorted(r["block"] for r in make.journal_of(output) if "block" in r) == list(range(22))
        assert make.snapshot(output) == make.snapshot(finished)
        again = bigdeconv("run", source / "data" / "*.zarr", output, *options, "--resume")
        assert again.exit_code == 0
        other = bigdeconv("run", source / "data" / "[ab].zarr", output, *options, "--resume")
        assert other.exit_code == 3
        assert "differs in input" in other.stderr

    def test_an_input_that_has_changed_is_named(self, source, options, cluster_address, tmp_path):
        data = shutil.copytree(source / "data", tmp_path / "data")
        assert bigdeconv("run", data / "*.zarr", tmp_path / "out", *options).exit_code == 0
        journal = ledger_path(tmp_path / "out") / "journal" / "000000.jsonl"
        journal.write_text(journal.read_text().splitlines(keepends=True)[0])
        shutil.rmtree(data / "b.zarr")
        make.volume(data / "b.zarr", make.scene(8, 48, 40))
        result = bigdeconv("resume", tmp_path / "out", "--scheduler", cluster_address)
        assert result.exit_code == 3
        assert "b.zarr" in result.stderr
        assert "shape was (8, 48, 32), is (8, 48, 40)" in result.stderr

    def test_overwrite_replaces_a_folder_of_its_own_and_no_other(self, source, options, finished, tmp_path):
        output = make.copied(finished, tmp_path)
        (output / "notes").mkdir()
        before = make.snapshot(tmp_path)
        refused = bigdeconv("run", source / "data" / "*.zarr", output, *options, "--overwrite")
        assert refused.exit_code == 3
        assert make.snapshot(tmp_path) == before
        (output / "notes").rmdir()
        assert bigdeconv("run", source / "data" / "[ab].zarr", output, *options, "--overwrite").exit_code == 0
        assert {p.name for p in output.iterdir()} == {"a.zarr", "b.zarr"}
        # The folder of the inputs, or one above it, is never replaced.
        for place in (source / "data", source):
            refused = bigdeconv("run", source / "data" / "*.zarr", place, *options, "--overwrite")
            assert refused.exit_code == 3
            assert "input" in refused.stderr
        assert (source / "data" / "a.zarr").exists()

    def test_the_report_is_of_all_volumes(self, finished, tmp_path, monkeypatch):
        """The stored certificate is taken as it is; the pictures are of the first volume."""
        output = make.copied(finished, tmp_path)
        monkeypatch.setattr("bigdeconv.pipeline.connect", None)
        result = bigdeconv("report", output, "--json")
        assert result.exit_code == 0, result.stderr
        printed = json.loads(result.stdout)
        assert (printed["blocks_done"], printed["plan"]["blocks"], printed["plan"]["volumes"]) == (22, 22, 3)
        assert {p["volume"] for p in printed["seams"]["probes"]} == {0, 1, 2}
        assert "<img" in (ledger_path(output) / "report.html").read_text()

    def test_plan_counts_all_blocks(self, source, options):
        command = ("plan", source / "data" / "*.zarr", *options)
        plan = json.loads(bigdeconv(*command, "--json").stdout)
        assert (plan["volumes"], plan["n_blocks"]) == (3, 22)
        assert re.search(r"volume +3 volumes such as 8,\d\d,\d\d,", bigdeconv(*command).stdout)
