"""Failures: how many may be, where they are listed, and what a terminal shows of them; pages and space."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple

import psutil
import pytest
import requests

import bigdeconv as api
from bigdeconv import pipeline
from bigdeconv.config import make_config
from bigdeconv.engine.clusters.connection import connect
from bigdeconv.jobs.space import space_of
from bigdeconv.planning.resources import Resources
from bigdeconv.storage import arrays
from bigdeconv.storage.ledger import ledger_path
from tests import make
from tests.make import RL, bigdeconv
from tests.patience import outcome

pytestmark = pytest.mark.cluster
BLOCKS = (*RL, "--block-shape", "8,32,32", "--output-scale", "8", "--blend", "0,0,0", "--seam-probes", "0")


@pytest.fixture
def torn(long_source, tmp_path, monkeypatch):
    """A volume of eight blocks, of which none can be read any more when the calibration is done."""
    image = shutil.copytree(long_source[0], tmp_path / "in.zarr")
    calibrate = pipeline.calibrate_job

    def then_tear(*arguments):
        job = calibrate(*arguments)
        flip_all(image)
        return job

    monkeypatch.setattr(pipeline, "calibrate_job", then_tear)
    return image, "--psf", long_source[1]


def flip_all(image):
    for chunk in range(1, 8):
        make.flip(image / "0" / "c" / "0" / "0" / str(chunk))


@pytest.mark.parametrize(("limit", "most"), [("0", 1), ("1", 2), ("25%", 3)])
def test_a_run_ends_when_more_blocks_fail_than_may(torn, cluster_address, tmp_path, limit, most):
    output = tmp_path / "out.zarr"
    job = (torn[0], output, *torn[1:], *BLOCKS, "--scheduler", cluster_address, "--max-failures", limit)
    result = bigdeconv("run", *job)
    assert result.exit_code == 4
    in_flight = 6  # two tasks per thread, and two
    failures = make.one_object(bigdeconv("status", output, "--json").stdout)["failures"]
    assert most <= len(failures) <= most + in_flight
    assert re.search(r"^bigdeconv: \d blocks failed, and no others were begun\.$", result.stderr, re.MULTILINE)


def test_failures_are_listed_with_place_and_cause_until_they_are_mended(torn, long_source, cluster_address, tmp_path):
    output = tmp_path / "out.zarr"
    job = (torn[0], output, *torn[1:], *BLOCKS, "--scheduler", cluster_address, "--max-failures", "100%")
    assert bigdeconv("run", *job).exit_code == 4
    failures = make.one_object(bigdeconv("status", output, "--json").stdout)["failures"]
    assert [f["block"] for f in sorted(failures, key=lambda f: f["block"])] == list(range(8))
    assert {f["block"]: f["place"] for f in failures}[3] == "z 0:8, y 0:32, x 96:128"
    assert all("cannot read array '0' of" in f["cause"] for f in failures)
    values = api.report(output)
    assert values["failures"] == failures
    page = (ledger_path(output) / "report.html").read_text()
    assert "Blocks that failed" in page
    assert "z 0:8, y 0:32, x 96:128" in page
    flip_all(torn[0])
    assert bigdeconv("resume", output, "--scheduler", cluster_address).exit_code == 0
    assert make.one_object(bigdeconv("status", output, "--json").stdout)["failures"] == []
    api.report(output)
    assert "Blocks that failed" not in (ledger_path(output) / "report.html").read_text()


def test_the_terminal_shows_ten_errors_and_says_where_the_others_are(monkeypatch, capsys, tmp_path):
    from bigdeconv_cli import run

    Summary = namedtuple("Summary", "errors output complete blocks_done blocks_total blocks_skipped blocks_failed")
    with pytest.raises(Exception, match=r"^4$"):
        run._finish(Summary([f"block {n}: torn" for n in range(14)], "out.zarr", False, 0, 14, 0, 14), as_json=False)
    said = capsys.readouterr().err.splitlines()
    assert said[:10] == [f"bigdeconv: block {n}: torn" for n in range(10)]
    assert said[10:] == ["bigdeconv: and 4 more; `bigdeconv report out.zarr` lists them."]


def test_no_traceback_of_dask_reaches_the_terminal(long_source, tmp_path):
    """With workers of its own, in a process of its own; the log of the run has it."""
    image, output = shutil.copytree(long_source[0], tmp_path / "in.zarr"), tmp_path / "out.zarr"
    make.flip(image / "0" / "c" / "0" / "0" / "2")
    job = ("run", image, output, "--psf", long_source[1], *BLOCKS, "--workers", "1")
    printed, said = outcome(make.start(*job, cwd=tmp_path), 60)
    assert "5 of 8 blocks done, 3 failed." in printed  # halos reach into the chunk
    assert len(re.findall(r"^bigdeconv: block \d .*cannot read array", said, re.MULTILINE)) == 3
    for text in ("Traceback", "distributed."):
        assert text not in said + printed
    assert "Traceback" in make.log_of(output)


def listening():
    """Return the ports at which this process and those that it started listen."""
    me = psutil.Process()
    connections = [c for p in (me, *me.children(recursive=True)) for c in p.net_connections("tcp")]
    return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}


class TestPages:
    """What a cluster of ours serves over HTTP."""

    @staticmethod
    def pages(serves_dashboard):
        """Return what answers under the names of Dask's pages, on any port of this process and its children."""
        found = []
        before = listening()
        with connect(None, Resources(workers=1), serves_dashboard=serves_dashboard) as connection:
            ports = listening() - before
            assert ports
            for port in ports:
                for page in ("status", "info/main/workers.html", "metrics", "json/counts.json", "sysmon", "health"):
                    try:
                        answer = requests.get(f"http://127.0.0.1:{port}/{page}", timeout=5)
                    except requests.RequestException:
                        continue  # it speaks TLS
                    found += [page] if answer.ok else []
            return found, connection.dashboard

    def test_a_dashboard(self):
        found, dashboard = self.pages(serves_dashboard=True)
        assert "health" in found
        assert "none" not in dashboard

    def test_nothing(self):
        assert self.pages(serves_dashboard=False) == ([], "none is served")


class TestSpace:
    @pytest.fixture
    def job(self, long_source, cluster_address, tmp_path):
        job = {"input": str(long_source[0]), "output": str(tmp_path / "out.zarr"), "psf": str(long_source[1])}
        return job | {"method": "rl", "iterations": 3, "device": "cpu", "scheduler": cluster_address, "seam_probes": 0}

    @staticmethod
    def with_free(monkeypatch, n_bytes):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr("bigdeconv.jobs.space.shutil.disk_usage", lambda _: usage(n_bytes, 0, n_bytes))

    def test_the_plan_is_an_upper_bound_of_what_is_written(self, job, tmp_path):
        assert api.run(**job).complete
        plan = make.one_object(
            bigdeconv("plan", job["input"], "--psf", job["psf"], "--method", "rl", "--iterations", "3", "--json").stdout
        )
        files = [path for path in (tmp_path / "out.zarr").rglob("*") if path.is_file() and path.name != "zarr.json"]
        folders = [path for path in (tmp_path / "out.zarr").rglob("*") if path.is_dir()]
        assert 0 < sum(path.stat().st_size for path in files) <= plan["output_bytes"]
        assert 0 < len(files) <= plan["output_files"]
        assert 0 < len(folders) <= plan["output_folders"]
        assert "before compression" in bigdeconv("plan", job["input"], "--psf", job["psf"], *RL).stdout

    def test_a_run_that_cannot_fit_is_refused_before_anything_is_made(self, job, monkeypatch, tmp_path):
        self.with_free(monkeypatch, 2000)
        with pytest.raises(api.StoreError, match=r"takes about .* at most, but .* free; .*--force"):
            api.run(**job)
        assert list(tmp_path.iterdir()) == []

    def test_it_begins_all_the_same_where_it_is_forced(self, job, monkeypatch):
        self.with_free(monkeypatch, 2000)
        said: list[str] = []
        assert api.run(**job, force=True, events=api.Events(warned=said.append)).complete
        assert any("on disk" in text for text in said)

    def test_a_run_that_fits_as_its_samples_compress_is_begun_with_a_warning(self, job, monkeypatch, tmp_path):
        bound = space_of(api.plan(**job).facts)
        self.with_free(monkeypatch, bound.output_bytes + bound.scratch_bytes - 1)
        said: list[str] = []
        assert api.run(**job, events=api.Events(warned=said.append)).complete
        assert any("on disk" in text for text in said)


def test_files_and_their_folders_are_on_disk_before_a_block_counts(monkeypatch, tmp_path):
    """A worker syncs what it wrote, and the folders above it up to the output, when it is asked to."""
    image = make.volume(tmp_path / "out.zarr", make.scene(8, 16, 16), chunk=(8, 16, 16))
    order: list[str] = []
    monkeypatch.setattr(arrays, "synced", lambda path: order.append(str(path.relative_to(image))))
    region = (slice(0, 8), slice(0, 16), slice(0, 16))
    assert arrays.files_of_region(image, "0", region)
    assert order == []
    (mark,) = arrays.files_of_region(image, "0", region, syncs=True)
    assert order == [mark.name, "0/c/0/0", "0/c/0", "0/c", "0", "."]


def test_a_job_that_syncs_ends_as_any(long_source, cluster_address, tmp_path):
    job = {"input": str(long_source[0]), "psf": str(long_source[1]), "method": "rl", "iterations": 3, "device": "cpu"}
    for name, fsync in (("a.zarr", False), ("b.zarr", True)):
        config = make_config(
            job | {"output": str(tmp_path / name), "fsync": fsync, "scheduler": cluster_address, "seam_probes": 0}
        )
        assert api.run(config).complete
    assert make.snapshot(tmp_path / "a.zarr") == make.snapshot(tmp_path / "b.zarr")
