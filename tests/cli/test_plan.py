"""`bigdeconv plan`: what it prints, what it costs, and what it warns of."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from bigdeconv.engine.machine import process_bytes
from bigdeconv.psf import gaussian
from tests import make
from tests.cli.jobs import TWO_BLOCKS
from tests.make import RL, bigdeconv

PLAN_KEYS = {
    *("n_blocks", "block_shape", "halo", "blend", "fft_shape", "chunk_shape", "shard_shape", "levels"),
    *("peak_bytes_per_worker", "rim_bytes", "read_amplification", "compute_amplification"),
    *("estimated_seconds", "predicted_seam_error"),
}


def test_plan_as_json_has_what_scripts_rely_on(source, no_cluster):
    result = bigdeconv(
        "plan", source[0], "--psf", source[1], *TWO_BLOCKS, "--halo", "3,6,6", "--blend", "2,2,2", "--json"
    )
    assert result.exit_code == 0
    plan = make.one_object(result.stdout)
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
        found = make.one_object(bigdeconv(*job).stdout)
        warning = next((w for w in found["warnings"] if w.startswith("Reading decodes")), "")
        return found["decode_amplification"], warning

    now, warning = plan(data.shape, "16,64,64")
    said, better, then = re.search(
        r"decodes ([\d.]+) .* of 16,256,256; with ([\d,]+) it would be ([\d.]+)\.$", warning
    ).groups()
    assert float(said) == now == 16  # every one of 16 blocks decodes all
    now, warning = plan(tuple(int(n) for n in better.split(",")), "16,64,64")
    assert round(now, 1) == float(then)
    assert "Larger blocks (--block-shape, or more --memory) or a larger region help" in warning
    assert plan(data.shape, "16,256,256") == (1, "")


@pytest.mark.parametrize(
    ("mib_beside_process", "flags", "named"),
    [
        (50, ("--iterations", "40"), {"--memory", "--block-shape", "--iterations"}),
        (150, ("--block-shape", "128,128,128"), {"--memory", "--block-shape"}),
        (30, ("--halo", "40,40,40", "--block-shape", "16,16,16"), {"--memory", "--halo"}),
    ],
    ids=["halo", "block", "given-halo"],
)
def test_what_a_refusal_for_memory_advises_works(tmp_path, mib_beside_process, flags, named):
    flags = (*flags, "--memory", f"{process_bytes() // 2**20 + mib_beside_process}MiB", "--json")
    psf = make.psf_tiff(tmp_path / "psf.tif", gaussian((1.5, 1.0, 1.0)))
    job = ("plan", "--shape", "1,1,512,512,512", "--psf", psf, "--method", "rl", "--device", "cpu", *flags)
    refused = bigdeconv(*job)
    assert refused.exit_code == 3
    advice = dict(re.findall(r"(--[a-z-]+) ([\w.,]+) would fit", json.loads(refused.stdout)["error"]))
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
    assert "trained on voxels 1.5 to 4 times as long in z as in y and x; those of this volume are 1 times" in flat
    (noisy,) = warnings("--sigma", "0.4")
    assert "trained on noise up to --sigma 0.196, got 0.4" in noisy
    assert warnings("--voxel-um", "0.1,0.1,0.1", "--method", "rltv") == []


def test_plan_says_when_the_model_is_not_trained(source):
    job = ("plan", source[0], "--psf", source[1])
    result = bigdeconv(*job, "--model", "finite-differences", "--json")
    assert any(
        "hand-set finite differences, not trained" in w and "--model" in w
        for w in json.loads(result.stdout)["warnings"]
    )
    assert "warning: The learned prior is hand-set" in bigdeconv(*job, "--model", "finite-differences").stdout
    assert json.loads(bigdeconv(*job, "--json").stdout)["warnings"] == []


def test_a_volume_that_does_not_exist_yet_is_planned_like_one_that_does(source, tmp_path):
    """The same extent, type and voxel size give the same blocks, memory and costs."""
    options = ("--psf", source[1], *TWO_BLOCKS, "--json")
    stored = make.one_object(bigdeconv("plan", source[0], *options).stdout)
    shape = (stored["timepoints"], stored["channels"], *stored["volume_shape"])
    voxel = ",".join(str(v) for v in make.VOXEL_UM.values())
    hypothetical = bigdeconv("plan", "--shape", ",".join(map(str, shape)), "--voxel-um", voxel, *options)
    differing = {"read_amplification", "warnings"}  # the chunks to come are not known
    assert {k: v for k, v in make.one_object(hypothetical.stdout).items() if k not in differing} == {
        k: v for k, v in stored.items() if k not in differing
    }
    assert make.snapshot(tmp_path) == {}


def test_without_a_psf_the_plan_says_which_one_it_takes():
    plan = make.one_object(bigdeconv("plan", "--shape", "2,3,9,200,200", "--method", "rl", "--json").stdout)
    assert (plan["timepoints"], plan["channels"], plan["volume_shape"]) == (2, 3, [9, 200, 200])
    assert plan["psf_shape"] == [9, 33, 33]
    assert any("PSF box of 9,33,33" in w for w in plan["warnings"])


@pytest.mark.cluster
def test_a_million_blocks_are_planned_within_20_cpu_seconds_and_500_mb(tmp_path):
    # What a block costs here is measured once, and needs memory of its own.
    assert bigdeconv("plan", "--shape", "1,1,64,64,64").exit_code == 0
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
    assert make.one_object(done.stdout)["n_blocks"] == 10**6
    assert cpu_seconds < 20
    # While it is loaded, a torch built for CUDA takes 406 MiB more than one for CPUs.
    assert peak_bytes < 500e6 + (430e6 if torch.version.cuda else 0)


def test_a_dry_run_prints_the_plan_and_writes_nothing(source, tmp_path, no_cluster):
    job = (source[0], tmp_path / "deep" / "out.zarr", "--psf", source[1], *TWO_BLOCKS)
    as_json, as_text = bigdeconv("run", *job, "--dry-run", "--json"), bigdeconv("run", *job, "--dry-run")
    assert as_json.exit_code == as_text.exit_code == 0
    assert make.one_object(as_json.stdout) == make.one_object(
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
    assert planned()["iterations"] == 120
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
