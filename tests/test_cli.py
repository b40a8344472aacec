"""The command line: what it prints where, its exit codes, and that it goes on where it was stopped."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import numpy as np
import psutil
import pytest

from bigdeconv.errors import BudgetError, ClusterLostError, InvalidInputError, OutputExistsError, StoreError
from bigdeconv.psf import gaussian
from bigdeconv.storage.ledger import Ledger, ledger_path
from tests import make
from tests.make import RL, bigdeconv

PUBLISHED = Path(__file__).parents[2] / "shared" / "models" / "pyxudeconv-3Dtubes"
PLAN_KEYS = {
    *("n_blocks", "block_shape", "halo", "blend", "fft_shape", "chunk_shape", "shard_shape", "levels"),
    *("peak_bytes_per_worker", "rim_bytes", "read_amplification", "compute_amplification"),
    *("estimated_seconds", "predicted_seam_error"),
}
TWO_BLOCKS = (*RL, "--block-shape", "8,32,32")
SLOW = ("--method", "rl", "--iterations", "250", "--device", "cpu", "--output-scale", "8", "--block-shape", "8,32,32")
"""Eight blocks of a few tenths of a second each, and no calibration to wait for."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A volume and its PSF, never written to."""
    folder = tmp_path_factory.mktemp("source")
    return make.volume(folder / "in.zarr", make.scene(8, 32, 64)), make.psf_tiff(folder / "psf.tif")


@pytest.fixture(scope="module")
def long_source(tmp_path_factory):
    """A volume of eight blocks; chunk 2 lies between the regions that are sampled before the first block."""
    folder = tmp_path_factory.mktemp("long")
    image = make.volume(folder / "in.zarr", make.scene(8, 32, 256), chunk=(8, 32, 32))
    return image, make.psf_tiff(folder / "psf.tif")


@pytest.fixture(scope="module")
def finished(source, cluster_address, tmp_path_factory):
    """The output of a run that ended well; tests copy it before they change it."""
    image, psf = source
    output = tmp_path_factory.mktemp("finished") / "out.zarr"
    result = bigdeconv("run", image, output, "--psf", psf, *TWO_BLOCKS, "--scheduler", cluster_address)
    assert result.exit_code == 0, result.stderr
    return output


@pytest.fixture(scope="module")
def undisturbed(long_source, cluster_address, tmp_path_factory):
    """What an uninterrupted run of `SLOW` on `long_source` writes."""
    image, psf = long_source
    output = tmp_path_factory.mktemp("undisturbed") / "out.zarr"
    result = bigdeconv("run", image, output, "--psf", psf, *SLOW, "--scheduler", cluster_address)
    assert result.exit_code == 0, result.stderr
    return make.snapshot(output)


@pytest.fixture
def no_cluster(monkeypatch):
    """Whoever wants workers fails."""

    def connect(*_):
        raise AssertionError("a cluster is not needed for this")

    monkeypatch.setattr("bigdeconv.pipeline.connect", connect)


def one_object(text):
    """Return the JSON object that is all of a text: one line and nothing else."""
    assert text.endswith("\n")
    assert text.count("\n") == 1
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


@contextmanager
def unchanged(folder):
    before = make.snapshot(folder)
    yield
    assert make.snapshot(folder) == before


def copied(output, folder):
    """Copy an output and its ledger, which then resumes as the output of the copy."""
    target = folder / output.name
    shutil.copytree(output, target)
    shutil.copytree(ledger_path(output), ledger_path(target))
    return target


# --- usage ------------------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_the_order_of_axes():
    result = bigdeconv("--help")
    assert result.exit_code == 0
    for word in ("run", "plan", "resume", "status", "validate", "demo", "model", "z,y,x"):
        assert word in result.stdout


def test_help_of_run_says_units_defaults_and_precedence():
    text = re.sub(r"[\s│]+", " ", bigdeconv("run", "--help").stdout)
    for words in ("µm", "garl 50", "Z,Y,X", "--resume", "--overwrite", "Flags go before environment"):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    {
        "no such option": (("run", "a", "b", "--nonsense"), ("--nonsense",)),
        "no output": (("run", "a"), ("Missing argument", "OUTPUT")),
        "no such command": (("deconvolve",), ("deconvolve",)),
        "not a method": (("run", "a", "b", "--method", "magic"), ("method", "'magic'", "garl", "rltv")),
        "negative iterations": (("run", "a", "b", "--iterations", "-1"), ("iterations", "-1", "greater than or equal")),
        "two of three": (("run", "a", "b", "--halo", "4,4"), ("halo", "4", "3")),
        "no volume": (("plan",), ("INPUT", "--shape")),
        "two volumes": (("plan", "a", "--shape", "1,1,8,8,8"), ("INPUT", "--shape")),
        "no shape": (("plan", "--shape", "8,8,8"), ("shape", "'8,8,8'", "T,C,Z,Y,X")),
        "no size": (("plan", "a", "--memory", "lots"), ("memory", "'lots'", "8GiB")),
        "no range": (("plan", "a", "--roi", "0:4"), ("roi", "'0:4'", "z0:z1,y0:y1,x0:x1")),
        "zero voxel": (("plan", "a", "--voxel-um", "0,1,1"), ("voxel-um", "0", "greater than 0")),
        "no indices": (("plan", "a", "--channels", "red"), ("channels", "'red'")),
        "shards in 0.4": (
            ("plan", "a", "--shards", "8,8,8", "--ome-version", "0.4"),
            ("0.4", "drop --shards", "--ome-version 0.5"),
        ),
        "bits of integers": (("plan", "a", "--keep-bits", "10", "--dtype", "uint16"), ("keep_bits", "--dtype float32")),
        "resume and overwrite": (("run", "a", "b", "--resume", "--overwrite"), ("--resume", "--overwrite")),
    }.values(),
    ids=lambda v: " ".join(v[1:]) if v[0] in ("run", "plan") else None,
)
def test_what_is_typed_wrong_is_a_usage_error_that_names_it(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = bigdeconv(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr
    assert make.snapshot(tmp_path) == {}


def test_a_usage_error_is_one_json_object_too():
    result = bigdeconv("plan", "a", "--tau", "-1", "--json")
    assert result.exit_code == 2
    assert one_object(result.stdout)["exit_code"] == 2
    assert "tau: got '-1'" in one_object(result.stdout)["error"]


@pytest.mark.parametrize(
    ("content", "words"),
    {
        "method: [": ("job.yaml", "cannot be read as YAML"),
        "- rl": ("job.yaml", "names and values", "got list"),
        "methd: rl": ("methd", "no such setting"),
        "schema_version: 2": ("schema-version: got 2",),
        "method: 3": ("method: got 3", "'garl', 'rl' or 'rltv'"),
    }.items(),
)
def test_a_settings_file_at_fault_is_named(content, words, source, tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(content)
    result = bigdeconv("plan", source[0], "--psf", source[1], "--config", file)
    assert result.exit_code == 2
    for word in words:
        assert word in result.stderr
    assert "None" not in result.stderr


def test_a_settings_file_that_is_missing_is_named(source, tmp_path):
    result = bigdeconv("plan", source[0], "--config", tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert "config" in result.stderr
    assert "none.yaml" in result.stderr


def test_an_environment_variable_at_fault_is_named(source):
    result = bigdeconv("plan", source[0], "--psf", source[1], iterations="many")
    assert result.exit_code == 2
    assert "iterations: got 'many'" in result.stderr


# --- exit codes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInputError("psf: got this; give that."), 3),
        (StoreError("input: it is gone."), 3),
        (OutputExistsError("output: it exists."), 3),
        (BudgetError("memory: too little."), 3),
        (ClusterLostError("scheduler: it does not answer."), 5),
        (KeyboardInterrupt(), 4),
        (ZeroDivisionError("division by zero"), 1),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else "",
)
@pytest.mark.parametrize("command", ["run", "resume"])
def test_every_kind_of_error_has_its_exit_code(command, error, code, as_json, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(f"bigdeconv.pipeline.{command}", fail)
    places = ["in.zarr", "my out.zarr"] if command == "run" else ["my out.zarr"]
    result = bigdeconv(command, *places, *(["--json"] if as_json else []))
    assert result.exit_code == code
    if as_json:
        printed = one_object(result.stdout)
        assert printed["exit_code"] == code
        said = printed["error"]
    else:
        assert result.stdout == ""
        said = result.stderr
    expected = {
        KeyboardInterrupt: "Nothing had been written yet",
        ZeroDivisionError: "Unexpected ZeroDivisionError: division",
    }
    assert expected.get(type(error), str(error)) in said
    # The trace is for what nobody foresaw.
    assert ("Traceback" in result.stderr) == (code == 1)


@pytest.mark.cluster
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_scheduler_that_does_not_answer_is_exit_5_and_costs_nothing(as_json, source, finished, tmp_path, monkeypatch):
    from bigdeconv.engine import cluster

    client = cluster.Client
    monkeypatch.setattr(cluster, "Client", lambda *a, **k: client(*a, **(k | {"timeout": 0.5})))
    output = copied(finished, tmp_path)
    with unchanged(tmp_path):
        for place, *flags in ([tmp_path / "new.zarr"], [output, "--overwrite"]):
            more = [*flags, *(["--json"] if as_json else [])]
            job = (source[0], place, "--psf", source[1], *TWO_BLOCKS, "--scheduler", "tcp://127.0.0.1:9")
            result = bigdeconv("run", *job, *more)
            assert result.exit_code == 5
            said = one_object(result.stdout)["error"] if as_json else result.stderr
            for words in ("tcp://127.0.0.1:9", "tcp://HOST:PORT", "start at least one worker"):
                assert words in said


@pytest.mark.cluster
def test_a_scheduler_file_that_leads_nowhere_is_named(source, tmp_path):
    (tmp_path / "text.json").write_text("no JSON")
    with unchanged(tmp_path):
        started = []
        for file in ("missing.json", "text.json"):
            job = (source[0], tmp_path / f"{file}.zarr", "--psf", source[1], *RL, "--scheduler", tmp_path / file)
            started.append((file, make.start("run", *job, cwd=tmp_path)))
        try:
            for file, process in started:
                _, said = process.communicate(timeout=20)
                assert process.returncode == 5
                assert file in said
                assert "Traceback" not in said
        finally:
            for _, process in started:
                process.kill()


# --- plan -------------------------------------------------------------------------------------------------------------


def test_plan_as_json_has_what_scripts_rely_on(source, no_cluster):
    result = bigdeconv(
        "plan", source[0], "--psf", source[1], *TWO_BLOCKS, "--halo", "3,6,6", "--blend", "2,2,2", "--json"
    )
    assert result.exit_code == 0
    plan = one_object(result.stdout)
    assert plan.keys() >= PLAN_KEYS
    assert plan["n_blocks"] == 2
    assert plan["block_shape"] == [8, 32, 32]
    assert plan["halo"] == [3, 6, 6]
    assert plan["blend"] == [0, 0, 2]
    assert plan["levels"][0] == [8, 32, 64]
    assert all(f >= r for f, r in zip(plan["fft_shape"], [8, 32, 38], strict=True))
    assert all(s % c == 0 for s, c in zip(plan["shard_shape"], plan["chunk_shape"], strict=True))
    assert plan["peak_bytes_per_worker"] == sum(plan["memory"].values())
    assert plan["compute_amplification"] > plan["read_amplification"] > 1
    assert 0 < plan["predicted_seam_error"] < 0.1
    assert plan["estimated_seconds"] >= 0
    assert plan["iterations"] == 3


def test_chunks_that_make_reading_dear_are_named_with_those_that_help(tmp_path):
    data, psf = np.zeros((16, 256, 256), np.uint16), make.psf_tiff(tmp_path / "psf.tif")

    def plan(chunk, block):
        image = make.volume(tmp_path / f"{chunk} {block}.zarr", data, chunk=chunk)
        job = ("plan", image, "--psf", psf, *RL, "--halo", "2,4,4", "--block-shape", block, "--json")
        found = one_object(bigdeconv(*job).stdout)
        warning = next((w for w in found["warnings"] if w.startswith("Reading decodes")), "")
        return found["decode_amplification"], warning

    now, warning = plan(data.shape, "16,64,64")
    said, better, then = re.search(
        r"decodes ([\d.]+) .* of 16,256,256; with ([\d,]+) it would be ([\d.]+)\.$", warning
    ).groups()
    assert float(said) == now == 16  # every one of 16 blocks decodes all
    now, warning = plan(tuple(int(n) for n in better.split(",")), "16,64,64")
    assert round(now, 1) == float(then)
    assert "larger blocks (--block-shape, or more --memory) would help" in warning
    assert plan(data.shape, "16,256,256") == (1, "")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--memory", "500MiB", "--iterations", "40"), {"--memory", "--block-shape", "--iterations"}),
        (("--memory", "600MiB", "--block-shape", "128,128,128"), {"--memory", "--block-shape"}),
        (("--memory", "480MiB", "--halo", "40,40,40", "--block-shape", "16,16,16"), {"--memory", "--halo"}),
    ],
    ids=["halo", "block", "given-halo"],
)
def test_what_a_refusal_for_memory_advises_works(tmp_path, flags, named):
    psf = make.psf_tiff(tmp_path / "psf.tif", gaussian((1.5, 1.0, 1.0)))
    job = ("plan", "--shape", "1,1,512,512,512", "--psf", psf, "--method", "rl", "--device", "cpu", *flags, "--json")
    refused = bigdeconv(*job)
    assert refused.exit_code == 3
    advice = dict(re.findall(r"(--[a-z-]+) ([\w.,]+) would do", json.loads(refused.stdout)["error"]))
    assert advice.keys() >= named
    for option, value in advice.items():
        assert bigdeconv(*job, option, value).exit_code == 0, option


def test_plan_as_text_says_blocks_memory_and_cost(source):
    text = bigdeconv("plan", source[0], "--psf", source[1], *TWO_BLOCKS, "--halo", "3,6,6").stdout
    assert re.search(r"volume +8,32,64, 1 time points, 1 channels, 1 views", text)
    assert re.search(r"method +rl, 3 iterations, PSF box \d,\d,\d", text)
    assert re.search(r"blocks +2 of 8,32,32, halo 3,6,6, blend 0,0,4, FFT \d+,\d+,\d+", text)
    assert re.search(r"chunks +8,32,32, shards 8,32,32, \d levels", text)
    assert re.search(r"cost +\d\.\d\d voxels read, \d\.\d\d decoded and \d\.\d\d computed per voxel written", text)
    assert re.search(r"workers +\d+ of \d+ threads, \d+\.\d MiB each", text)
    assert re.search(r"MiB +FFT work", text)


def test_plan_says_when_the_data_are_not_what_the_model_was_trained_on(tmp_path):
    data = make.scene(8, 32, 32)
    like_training = make.volume(tmp_path / "in.zarr", data)
    psf_file = make.psf_tiff(tmp_path / "psf.tif")

    def warnings(*options):
        done = bigdeconv("plan", like_training, "--psf", psf_file, "--json", *options)
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)["warnings"]

    assert warnings() == []
    (flat,) = warnings("--voxel-um", "0.1,0.1,0.1")
    assert "trained on voxels 1.5 to 4 times as long in z as in y and x, this volume's are 1 times" in flat
    (noisy,) = warnings("--sigma", "0.4")
    assert "trained on noise up to --sigma 0.196, got 0.4" in noisy
    assert warnings("--voxel-um", "0.1,0.1,0.1", "--method", "rltv") == []


def test_plan_says_when_the_model_is_a_stand_in(source):
    job = ("plan", source[0], "--psf", source[1])
    result = bigdeconv(*job, "--model", "standin", "--json")
    assert any("stand-in" in w and "--model" in w for w in json.loads(result.stdout)["warnings"])
    assert "warning: The learned prior" in bigdeconv(*job, "--model", "standin").stdout
    assert json.loads(bigdeconv(*job, "--json").stdout)["warnings"] == []


def test_a_volume_that_does_not_exist_yet_is_planned_like_one_that_does(source, tmp_path):
    """The same extent, type and voxel size give the same blocks, memory and costs."""
    options = ("--psf", source[1], *TWO_BLOCKS, "--json")
    stored = one_object(bigdeconv("plan", source[0], *options).stdout)
    shape = (stored["timepoints"], stored["channels"], *stored["volume_shape"])
    voxel = ",".join(str(v) for v in make.VOXEL_UM.values())
    imagined = bigdeconv("plan", "--shape", ",".join(map(str, shape)), "--voxel-um", voxel, *options)
    differing = {"read_amplification", "warnings"}  # the chunks to come are not known
    assert {k: v for k, v in one_object(imagined.stdout).items() if k not in differing} == {
        k: v for k, v in stored.items() if k not in differing
    }
    assert make.snapshot(tmp_path) == {}


def test_without_a_psf_the_plan_says_which_one_it_takes():
    plan = one_object(bigdeconv("plan", "--shape", "2,3,9,200,200", "--method", "rl", "--json").stdout)
    assert (plan["timepoints"], plan["channels"], plan["volume_shape"]) == (2, 3, [9, 200, 200])
    assert plan["psf_shape"] == [9, 33, 33]
    assert any("PSF box of 9,33,33" in w for w in plan["warnings"])


def test_a_million_blocks_are_planned_within_20_cpu_seconds_and_500_mb(tmp_path):
    options = ("--shape", "1,1,25600,25600,25600", "--block-shape", "256,256,256", "--json")
    # The peak of a child counts from that of its parent, so a process smaller than this one starts it.
    starter = (
        "import json, resource, subprocess, sys\n"
        "print(subprocess.run(sys.argv[1:], check=True, capture_output=True, text=True).stdout, end='')\n"
        "usage = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]), file=sys.stderr)"
    )
    command = [sys.executable, "-c", starter, sys.executable, "-m", "bigdeconv_cli", "plan", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cpu_seconds, peak_bytes = json.loads(done.stderr)
    assert one_object(done.stdout)["n_blocks"] == 10**6
    assert cpu_seconds < 20
    assert peak_bytes < 500e6


def test_a_dry_run_prints_the_plan_and_writes_nothing(source, tmp_path, no_cluster):
    job = (source[0], tmp_path / "deep" / "out.zarr", "--psf", source[1], *TWO_BLOCKS)
    as_json, as_text = bigdeconv("run", *job, "--dry-run", "--json"), bigdeconv("run", *job, "--dry-run")
    assert as_json.exit_code == as_text.exit_code == 0
    assert one_object(as_json.stdout) == one_object(
        bigdeconv("plan", source[0], "--psf", source[1], *TWO_BLOCKS, "--json").stdout
    )
    assert as_text.stdout.startswith("volume")
    assert make.snapshot(tmp_path) == {}


def test_flags_go_before_environment_before_file_before_defaults(source, tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("method: rl\niterations: 11\nblock-shape: 8,32,32\n")

    def planned(*flags, **environment):
        result = bigdeconv("plan", source[0], "--psf", source[1], "--json", *flags, **environment)
        assert result.exit_code == 0, result.stdout
        return json.loads(result.stdout)

    assert planned()["method"] == "garl"
    assert planned()["iterations"] == 50
    from_file = planned("--config", file)
    assert (from_file["method"], from_file["iterations"], from_file["n_blocks"]) == ("rl", 11, 2)
    assert planned("--config", file, iterations=12)["iterations"] == 12
    assert planned("--config", file, "--iterations", "13", iterations=12)["iterations"] == 13
    both = planned("--config", file, "--method", "rltv", iterations=12)
    assert (both["method"], both["iterations"], both["n_blocks"]) == ("rltv", 12, 2)


def test_a_psf_may_come_from_file_or_environment(source, tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(f"psf: {source[1]}\nmethod: rl\n")
    assert bigdeconv("plan", source[0], "--config", file).exit_code == 0
    assert bigdeconv("plan", source[0], method="rl", psf=source[1]).exit_code == 0


def test_a_region_of_interest_is_planned_alone(source):
    result = bigdeconv("plan", source[0], "--psf", source[1], *RL, "--roi", "2:6,:,16:", "--json")
    plan = json.loads(result.stdout)
    assert plan["output_shape"] == [4, 32, 48]
    assert plan["volume_shape"] == [8, 32, 64]


# --- status and validate ----------------------------------------------------------------------------------------------


def test_status_and_validate_of_a_finished_run(finished):
    before = make.snapshot(finished.parent)
    status = one_object(bigdeconv("status", finished, "--json").stdout)
    assert status == {
        "output": str(finished),
        "state": "complete",
        "blocks_total": 2,
        "blocks_done": 2,
        "blocks_skipped": 0,
        "blocks_failed": 0,
    }
    assert bigdeconv("status", finished).stdout == "complete: 2 of 2 blocks\n"
    assert bigdeconv("status", finished, "--watch").stdout == "complete: 2 of 2 blocks\n"
    assert bigdeconv("validate", finished, "--deep").stdout == "valid\n"
    assert one_object(bigdeconv("validate", finished, "--json").stdout) == {"valid": True, "problems": []}
    assert make.snapshot(finished.parent) == before


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("command", ["status", "resume"])
def test_without_a_ledger_there_is_nothing_to_tell_or_resume(command, as_json, source, no_cluster):
    for place in (source[0], source[0] / "nowhere"):
        result = bigdeconv(command, place, *(["--json"] if as_json else []))
        assert result.exit_code == 3
        said = one_object(result.stdout)["error"] if as_json else result.stderr
        assert str(place) in said
        assert "no ledger" in said
        assert "bigdeconv run" in said


@pytest.mark.parametrize("command", ["status", "resume"])
@pytest.mark.parametrize(
    "content", ["", '{"schema_version": 1', '{"schema_version": 99}'], ids=["empty", "cut", "newer"]
)
def test_a_ledger_that_cannot_be_read_is_an_error_that_names_it(content, command, finished, tmp_path, no_cluster):
    output = copied(finished, tmp_path)
    (ledger_path(output) / "plan.json").write_text(content)
    with unchanged(tmp_path):
        result = bigdeconv(command, output)
    assert result.exit_code == 3
    assert "plan.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_validate_names_what_is_wrong(tmp_path):
    result = bigdeconv("validate", tmp_path / "none.zarr")
    assert result.exit_code == 3
    assert "none.zarr does not exist" in result.stdout
    assert result.stdout.endswith("\nnot valid\n")
    image = make.volume(tmp_path / "in.zarr", make.scene(4, 8, 8))
    shutil.rmtree(image / "0")
    result = bigdeconv("validate", image, "--json")
    assert result.exit_code == 3
    printed = one_object(result.stdout)
    assert printed["valid"] is False
    assert any("'0'" in problem for problem in printed["problems"])


def test_only_a_deep_look_finds_a_damaged_chunk(tmp_path):
    image = make.volume(tmp_path / "in.zarr", make.scene(4, 8, 8))
    flip(image / "0" / "c" / "0" / "0" / "0")
    assert bigdeconv("validate", image).exit_code == 0
    result = bigdeconv("validate", image, "--deep")
    assert result.exit_code == 3
    assert "cannot decode array '0'" in result.stdout


# --- output that exists -----------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_an_existing_output_is_kept_and_both_ways_on_are_named(source, finished, tmp_path, no_cluster):
    output = copied(finished, tmp_path)
    job = ("run", source[0], output, "--psf", source[1], *TWO_BLOCKS)
    with unchanged(tmp_path):
        result = bigdeconv(*job)
        assert result.exit_code == 3
        for words in (str(output), "--resume", "--overwrite"):
            assert words in result.stderr
        printed = one_object(bigdeconv(*job, "--json").stdout)
        assert printed["exit_code"] == 3
        assert "--overwrite" in printed["error"]


def test_a_ledger_alone_also_counts_as_an_output(source, finished, tmp_path, no_cluster):
    output = copied(finished, tmp_path)
    shutil.rmtree(output)
    with unchanged(tmp_path):
        result = bigdeconv("run", source[0], output, "--psf", source[1], *TWO_BLOCKS)
    assert result.exit_code == 3
    assert str(ledger_path(output)) in result.stderr


@pytest.mark.cluster
def test_overwrite_replaces_what_was_there(source, finished, tmp_path, cluster_address):
    output = make.volume(tmp_path / "out.zarr", np.full((4, 4, 4), 7, np.uint8))
    (output / "old").mkdir()
    job = (source[0], output, "--psf", source[1], *TWO_BLOCKS, "--scheduler", cluster_address)
    result = bigdeconv("run", *job, "--overwrite", "--json")
    assert result.exit_code == 0
    assert make.snapshot(output) == make.snapshot(finished)
    result = bigdeconv("run", *job, "--overwrite", "--iterations", "4")
    assert result.exit_code == 0
    assert make.plan_of(output)["config"]["iterations"] == 4
    assert (make.pixels(output) != make.pixels(finished)).any()
    assert {p.name for p in tmp_path.iterdir()} == {"out.zarr", "out.zarr.bigdeconv"}


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file"])
def test_overwrite_refuses_what_is_no_zarr(kind, source, tmp_path, no_cluster):
    output = tmp_path / "precious"
    if kind == "file":
        output.write_text("thesis")
    else:
        output.mkdir()
    if kind == "folder":
        (output / "thesis.tex").write_text("thesis")
    with unchanged(tmp_path):
        result = bigdeconv("run", source[0], output, "--psf", source[1], *TWO_BLOCKS, "--overwrite")
    assert result.exit_code == 3
    assert "precious" in result.stderr
    assert "not a zarr group" in result.stderr
    assert "another path" in result.stderr


@pytest.mark.parametrize("relation", ["same", "link", "inside", "above"])
def test_overwrite_never_removes_the_input(relation, tmp_path, no_cluster):
    above = make.volume(tmp_path / "above.zarr", make.scene(4, 8, 8))
    image, psf = make.volume(above / "in.zarr", make.scene(8, 32, 64)), make.psf_tiff(tmp_path / "psf.tif")
    (tmp_path / "link.zarr").symlink_to(image)
    make.volume(image / "inside.zarr", make.scene(4, 8, 8))
    output = {"same": image, "link": tmp_path / "link.zarr", "inside": image / "inside.zarr", "above": above}[relation]
    with unchanged(tmp_path):
        result = bigdeconv("run", image, output, "--psf", psf, *TWO_BLOCKS, "--overwrite")
    assert result.exit_code == 3
    assert "input" in result.stderr
    assert "another path" in result.stderr


def test_an_output_below_a_file_is_an_error_that_names_it(source, tmp_path, no_cluster):
    (tmp_path / "file").write_text("")
    with unchanged(tmp_path):
        result = bigdeconv("run", source[0], tmp_path / "file" / "out.zarr", "--psf", source[1], *TWO_BLOCKS)
    assert result.exit_code == 3
    assert "output" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_disk_that_is_full_from_the_start_leaves_nothing_behind(source, tmp_path, monkeypatch, cluster_address):
    def save_file(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bigdeconv.storage.ledger.save_file", save_file)
    with unchanged(tmp_path):
        result = bigdeconv(
            "run", source[0], tmp_path / "out.zarr", "--psf", source[1], *TWO_BLOCKS, "--scheduler", cluster_address
        )
    assert result.exit_code == 3
    assert "No space left on device" in result.stderr


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.cluster
@pytest.mark.parametrize("way", ["run --resume", "resume"])
def test_resuming_a_complete_run_does_nothing(way, source, finished, tmp_path, no_cluster):
    job = ("run", source[0], finished, "--psf", source[1], *TWO_BLOCKS, "--resume")
    with unchanged(finished.parent):
        result = bigdeconv(*(job if way == "run --resume" else ("resume", finished)))
    assert result.exit_code == 0
    assert result.stdout.startswith("2 of 2 blocks")


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("change", "words"),
    {
        "iterations": (("--iterations", "4"), "iterations (was 3, is 4)"),
        "method": (("--method", "rltv"), "method (was rl, is rltv)"),
        "blocks": (("--block-shape", "8,32,64"), "block_shape (was [8, 32, 32], is [8, 32, 64])"),
    }.values(),
)
def test_resuming_with_other_settings_names_the_difference(change, words, source, finished, no_cluster):
    with unchanged(finished.parent):
        job = (source[0], finished, "--psf", source[1], *TWO_BLOCKS, *change)
        result = bigdeconv("run", *job, "--resume")
        printed = one_object(bigdeconv("run", *job, "--resume", "--json").stdout)
    assert result.exit_code == printed["exit_code"] == 3
    for said in (result.stderr, printed["error"]):
        assert words in said
        assert "--overwrite" in said


@pytest.mark.cluster
def test_resuming_with_another_psf_or_other_data_names_it(source, finished, tmp_path, no_cluster):
    image, psf = source
    other_psf = make.psf_tiff(tmp_path / "psf.tif", np.ones((3, 3, 3), np.float32))
    other_image = make.volume(tmp_path / "in.zarr", make.scene(8, 32, 64, seed=1))
    with unchanged(finished.parent):
        result = bigdeconv("run", image, finished, "--psf", other_psf, *TWO_BLOCKS, "--resume")
        assert result.exit_code == 3
        assert "differs in psf;" in result.stderr
        result = bigdeconv("run", other_image, finished, "--psf", psf, *TWO_BLOCKS, "--resume")
        assert result.exit_code == 3
        assert "differs in input;" in result.stderr


def test_resuming_what_no_run_has_begun_does_not_suggest_to_resume(source, tmp_path, no_cluster):
    output = make.volume(tmp_path / "out.zarr", make.scene(4, 8, 8))
    with unchanged(tmp_path):
        result = bigdeconv("run", source[0], output, "--psf", source[1], *TWO_BLOCKS, "--resume")
    assert result.exit_code == 3
    assert "no ledger" in result.stderr
    assert "--overwrite" in result.stderr


@pytest.mark.cluster
def test_an_output_that_was_deleted_is_not_taken_for_done(finished, tmp_path, no_cluster):
    output = copied(finished, tmp_path)
    shutil.rmtree(output)
    with unchanged(tmp_path):
        result = bigdeconv("resume", output)
    assert result.exit_code == 3
    assert str(output) in result.stderr
    assert "--overwrite" in result.stderr


@pytest.mark.cluster
@pytest.mark.parametrize("change", ["shape", "gone"])
def test_an_input_that_has_changed_is_not_resumed(change, finished, tmp_path, cluster_address):
    image, psf = make.volume(tmp_path / "in.zarr", make.scene(8, 32, 64)), make.psf_tiff(tmp_path / "psf.tif")
    output = tmp_path / "out.zarr"
    job = (image, output, "--psf", psf, *TWO_BLOCKS, "--scheduler", cluster_address)
    assert bigdeconv("run", *job).exit_code == 0
    forget_last_block(output)
    shutil.rmtree(image)
    if change == "shape":
        make.volume(image, make.scene(8, 32, 60))
    with unchanged(tmp_path):
        result = bigdeconv("resume", output, "--scheduler", cluster_address)
    assert result.exit_code == 3
    assert str(image) in result.stderr
    assert ("shape was (8, 32, 64), is (8, 32, 60)" if change == "shape" else "does not exist") in result.stderr


def forget_last_block(output):
    """Cut the journal back to the first block, as if the driver had died then."""
    journal = ledger_path(output) / "journal.jsonl"
    journal.write_text(journal.read_text().splitlines(keepends=True)[0])


def flip(chunk):
    """Damage one byte in the middle of a file; doing it twice repairs it."""
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 0xFF
    chunk.write_bytes(bytes(content))


@pytest.mark.cluster
@pytest.mark.parametrize("blend", ["0,0,0", "0,0,4"], ids=["cropped", "blended"])
def test_an_unreadable_chunk_costs_its_blocks_and_no_more(blend, long_source, cluster_address, tmp_path):
    image = shutil.copytree(long_source[0], tmp_path / "in.zarr")
    job = ("--psf", long_source[1], *RL, "--block-shape", "8,32,32", "--blend", blend, "--output-scale", "8")
    job = (*job, "--scheduler", cluster_address)
    assert bigdeconv("run", image, tmp_path / "whole.zarr", *job).exit_code == 0
    chunk, output = image / "0" / "c" / "0" / "0" / "2", tmp_path / "out.zarr"
    flip(chunk)

    result = bigdeconv("run", image, output, *job)
    assert result.exit_code == 4
    assert re.search(r"bigdeconv: block 2: .*cannot read array '0' of .*in\.zarr", result.stderr)
    assert f"bigdeconv resume {output}" in result.stdout
    status = one_object(bigdeconv("status", output, "--json").stdout)
    assert status["state"] == "incomplete"
    assert status["blocks_total"] == 8
    assert status["blocks_failed"] >= 1
    assert 4 <= status["blocks_done"] < 8
    assert re.match(r"incomplete: \d of 8 blocks, \d failed\n", bigdeconv("status", output).stdout)
    # What is finished is already as it will be.
    whole, now = make.pixels(tmp_path / "whole.zarr"), make.pixels(output)
    for block in [r["block"] for r in make.journal_of(output) if "block" in r]:
        core = np.s_[:, :, 32 * block : 32 * block + 32]
        assert np.array_equal(now[core], whole[core])

    still = bigdeconv("resume", output, "--scheduler", cluster_address, "--json")
    assert still.exit_code == 4
    printed = one_object(still.stdout)
    assert printed["complete"] is False
    assert any("block 2" in error for error in printed["errors"])

    flip(chunk)
    done = bigdeconv("resume", output, "--scheduler", cluster_address, "--json")
    assert done.exit_code == 0
    printed = one_object(done.stdout)
    assert (printed["complete"], printed["blocks_done"], printed["blocks_failed"]) == (True, 8, 0)
    assert one_object(bigdeconv("status", output, "--json").stdout)["state"] == "complete"
    assert make.snapshot(output) == make.snapshot(tmp_path / "whole.zarr")
    assert not (ledger_path(output) / "scratch").exists()


@pytest.mark.cluster
def test_a_chunk_that_is_cut_short_and_sampled_does_not_stop_the_rest(long_source, cluster_address, tmp_path):
    """Small volumes are sampled whole before the first block: the samples must survive a bad chunk as the blocks do."""
    image = shutil.copytree(long_source[0], tmp_path / "in.zarr")
    chunk = image / "0" / "c" / "0" / "0" / "7"
    chunk.write_bytes(chunk.read_bytes()[:20])
    job = (image, tmp_path / "out.zarr", "--psf", long_source[1], *RL, "--block-shape", "8,32,32")
    result = bigdeconv("run", *job, "--scheduler", cluster_address, "--json")
    assert result.exit_code == 4
    assert one_object(result.stdout)["blocks_done"] >= 4


@pytest.mark.cluster
def test_a_second_driver_is_refused_while_the_first_lives(source, finished, tmp_path):
    output = copied(finished, tmp_path)
    job = (source[0], output, "--psf", source[1], *TWO_BLOCKS)
    with Ledger(output).writing(), unchanged(tmp_path):
        for command in (("resume", output), ("run", *job, "--resume"), ("run", *job, "--overwrite")):
            result = bigdeconv(*command)
            assert result.exit_code == 3
            assert "another run is writing" in result.stderr
            assert "wait for it or stop it" in result.stderr
        assert json.loads(bigdeconv("status", output, "--json").stdout)["state"] == "running"
    assert json.loads(bigdeconv("status", output, "--json").stdout)["state"] == "complete"


# --- models -----------------------------------------------------------------------------------------------------------


def test_model_show_describes_what_is_shipped():
    result = bigdeconv("model", "show")
    assert result.exit_code == 0
    assert re.search(r"^name +compact$", result.stdout, re.MULTILINE)
    assert "channels     1 → 4 → 8 → 16" in result.stdout


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published model is not at hand")
def test_a_published_model_is_imported_and_shown_and_planned_with(source, tmp_path):
    file = tmp_path / "tubes.safetensors"
    result = bigdeconv("model", "import", PUBLISHED, file)
    assert result.exit_code == 0
    assert result.stdout == f"Wrote {file}\n"
    shown = bigdeconv("model", "show", file).stdout
    assert "1 → 4 → 8 → 64" in shown
    assert re.search(r"μ +83\d", shown)
    assert "pyxudeconv checkpoint_40180.pth" in shown
    plan = json.loads(bigdeconv("plan", source[0], "--psf", source[1], "--model", file, "--json").stdout)
    assert not any("stand-in" in w for w in plan["warnings"])
    with unchanged(tmp_path):
        again = bigdeconv("model", "import", PUBLISHED, file)
        assert again.exit_code == 3
        assert "exists" in again.stderr
    nowhere = bigdeconv("model", "import", PUBLISHED, tmp_path / "no" / "folder" / "m.safetensors")
    assert nowhere.exit_code in (0, 3)
    assert "Traceback" not in nowhere.stderr


class Touch:
    """Something that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_model_import_runs_no_code_from_a_checkpoint(tmp_path):
    folder, marker = tmp_path / "model", tmp_path / "was here"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "checkpoint_1.pth").write_bytes(pickle.dumps(Touch(marker), protocol=2))
    with unchanged(tmp_path):
        result = bigdeconv("model", "import", folder, tmp_path / "out.safetensors")
    assert result.exit_code == 3
    assert "checkpoint_1.pth" in result.stderr
    assert "will likely succeed" not in result.stderr  # torch's own advice: to run the code after all
    assert not marker.exists()


def test_model_import_names_what_a_folder_lacks(tmp_path):
    result = bigdeconv("model", "import", tmp_path, tmp_path / "out.safetensors")
    assert result.exit_code == 3
    assert "config.json and checkpoint_*.pth" in result.stderr


# --- whole processes --------------------------------------------------------------------------------------------------


def wait_until(condition, process, seconds=60):
    """Wait for something to happen while a process goes on."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def lines_of(process):
    """Collect what a process writes to standard error, in the background."""
    lines = []
    # ``extend`` takes them one by one, as they come.
    reader = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
    reader.start()
    return lines, reader


@pytest.mark.cluster
def test_ctrl_c_on_a_local_cluster_stops_in_order_and_resume_finishes(
    long_source, undisturbed, cluster_address, tmp_path, monkeypatch
):
    """One run with workers of its own: dashboard, loopback, plain progress lines, an interrupt from the terminal."""
    image, psf = long_source
    output = tmp_path / "out.zarr"
    # A relative output: a later resume may start from another folder.
    job = (image, "out.zarr", "--psf", psf, *SLOW, "--workers", "2")
    process = make.start("run", *job, cwd=tmp_path, own_group=True)
    lines, reader = lines_of(process)
    try:
        wait_until(lambda: any(line.startswith("dashboard: ") for line in lines), process)
        address = next(line for line in lines if line.startswith("dashboard: ")).split()[1]
        assert address.startswith("http://127.0.0.1:")
        with build_opener(ProxyHandler({})).open(address, timeout=20) as answer:
            assert answer.status == 200
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        listening = [c.laddr.ip for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        assert len(listening) >= 3  # scheduler, dashboard, workers
        assert set(listening) == {"127.0.0.1"}
        # The progress line comes a moment after the journal's.
        wait_until(lambda: any("/8 blocks, " in line for line in lines), process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 4, lines
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    reader.join(timeout=10)
    text = "".join(lines)
    assert "8 blocks of 8,32,32 voxels, rl, 250 iterations\n" in text
    assert re.search(r"^1/8 blocks, \d+\.\d\d Mvoxel/s, .* left$", text, re.MULTILINE)
    assert "\x1b" not in text
    assert text.rstrip().splitlines()[-1].startswith("bigdeconv: Stopped. What is finished is kept")
    assert "bigdeconv resume out.zarr" in text
    assert process.stdout.read() == ""
    status = json.loads(bigdeconv("status", output, "--json").stdout)
    assert status["state"] == "interrupted"
    assert 1 <= status["blocks_done"] < 8
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    result = bigdeconv("resume", output, "--scheduler", cluster_address)
    assert result.exit_code == 0, result.stderr
    assert make.snapshot(output) == undisturbed
    assert list(elsewhere.iterdir()) == []
    assert "Traceback" not in text


@pytest.mark.cluster
def test_sigterm_stops_in_order_and_resume_finishes(long_source, undisturbed, cluster_address, tmp_path):
    """What a batch system sends before it kills; with ``--json``, and a second driver that wants in meanwhile."""
    image, psf = long_source
    output = tmp_path / "out.zarr"
    job = (image, output, "--psf", psf, *SLOW, "--scheduler", cluster_address)
    process = make.start("run", *job, "--json", cwd=tmp_path)
    try:
        wait_until(lambda: make.journal_of(output), process)
        assert json.loads(bigdeconv("status", output, "--json").stdout)["state"] == "running"
        second = bigdeconv("resume", output, "--scheduler", cluster_address)
        assert second.exit_code == 3
        assert "another run is writing" in second.stderr
        process.terminate()
        printed, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 4
    error = one_object(printed)
    assert error["exit_code"] == 4
    assert f"bigdeconv resume {output}" in error["error"]
    assert said == ""
    status = json.loads(bigdeconv("status", output, "--json").stdout)
    assert (status["state"], status["blocks_done"] < 8) == ("interrupted", True)
    result = bigdeconv("run", *job, "--resume", "--json")
    assert result.exit_code == 0, result.stdout
    assert one_object(result.stdout)["blocks_done"] == 8
    assert make.snapshot(output) == undisturbed


@pytest.mark.cluster
def test_standard_output_of_a_run_is_one_json_object(source, finished, cluster_address, tmp_path):
    image, psf = source
    job = (image, tmp_path / "out.zarr", "--psf", psf, *TWO_BLOCKS, "--scheduler", cluster_address)
    process = make.start("run", *job, "--json", cwd=tmp_path)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 0
    summary = one_object(printed)
    assert summary.keys() >= {"output", "blocks_total", "blocks_done", "seconds", "warnings", "errors", "complete"}
    assert (summary["complete"], summary["blocks_done"]) == (True, 2)
    assert said == ""
    assert make.snapshot(tmp_path / "out.zarr") == make.snapshot(finished)


@pytest.mark.cluster
def test_a_process_of_its_own_exits_as_said(tmp_path):
    """Exit codes reach the shell, and errors of use cost no start of torch or Dask."""
    started = time.monotonic()
    process = make.start("run", "in.zarr", "out.zarr", "--memory", "lots", cwd=tmp_path)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert printed == ""
    assert said.startswith("bigdeconv: memory: got 'lots'")
    assert time.monotonic() - started < 5
    process = make.start("plan", "in.zarr", "--json", cwd=tmp_path)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 3
    assert one_object(printed)["exit_code"] == 3
    assert said == ""
