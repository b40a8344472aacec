"""Devices of a job: those of the workers, whatever the driver's own machine has."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bigdeconv import pipeline
from bigdeconv.config import make_config
from bigdeconv.engine import machine
from bigdeconv.engine.machine import Gpu
from bigdeconv.errors import InvalidInputError
from bigdeconv.jobs.job import calibrate_job, plan_job
from bigdeconv.jobs.resources import find_resources, local_workers
from bigdeconv.planning.resources import Resources
from tests import make


@pytest.fixture
def settings(tmp_path):
    make.volume(tmp_path / "in.zarr", make.scene(8, 32, 32))
    places = {"input": str(tmp_path / "in.zarr"), "output": str(tmp_path / "out.zarr")}
    return places | {"psf": str(make.psf_tiff(tmp_path / "psf.tif")), "method": "rl", "iterations": 3}


@pytest.fixture
def gpus(monkeypatch):
    """Let the driver's machine have so many GPUs, of 8 GiB each."""

    def have(count):
        monkeypatch.setattr(machine, "n_cuda_devices", lambda: count)
        monkeypatch.setattr(machine, "cuda_memory_bytes", lambda: 8 * 2**30)

    return have


def test_a_driver_without_a_gpu_plans_and_calibrates_for_workers_with_gpus(settings, gpus):
    gpus(0)
    config = make_config(settings | {"device": "cuda", "scheduler": "tcp://127.0.0.1:1"})
    plan = plan_job(config)
    assert plan.facts.settings.device == "cuda"
    job = calibrate_job(plan)
    assert job.calibrations[0].numbers.settings.device == "cuda"


def test_workers_without_gpus_decide_beside_a_driver_with_one(settings, gpus):
    gpus(1)
    config = make_config(settings | {"scheduler": "tcp://127.0.0.1:1"})
    assert find_resources(config).device == "cuda"
    assert find_resources(config, [None]).device == "cpu"
    assert find_resources(config, [None]).device_budget_bytes is None


def test_a_gpu_that_is_not_there_is_refused(settings, gpus):
    gpus(0)
    with pytest.raises(InvalidInputError, match="device: got cuda, but torch finds no CUDA device here"):
        find_resources(make_config(settings | {"device": "cuda"}))
    assert find_resources(make_config(settings)).device == "cpu"


@pytest.mark.parametrize(
    ("found", "device"),
    [([40, 24], "cuda"), ([40, None], "cpu"), ([None], "cpu")],
    ids=["all have", "some have", "none has"],
)
def test_auto_asks_the_workers_of_a_running_cluster(cluster_address, settings, monkeypatch, gpus, found, device):
    """And plans with the least free memory of their GPUs, whatever this machine has."""
    gpus(0)
    cards = {str(i): None if gib is None else Gpu("a card", str(i), gib * 2**30) for i, gib in enumerate(found)}
    monkeypatch.setattr(pipeline, "gpus", lambda _: cards)
    monkeypatch.setattr(
        pipeline, "cuda_devices", lambda _: {name: int(card is not None) for name, card in cards.items()}
    )
    resources = pipeline._resources(make_config(settings | {"scheduler": cluster_address}))
    assert resources.device == device
    assert resources.device_budget_bytes == (int(0.85 * 24 * 2**30) if device == "cuda" else None)
    assert pipeline._resources(make_config(settings)).device == "cpu"
    gpus(1)
    assert pipeline._resources(make_config(settings | {"device": "cpu", "scheduler": cluster_address})).device == "cpu"


def test_a_run_is_resumed_on_fewer_gpus_and_refused_on_none(gpus):
    planned = Resources(4, device="cuda", device_budget_bytes=2**30)
    gpus(8)
    assert local_workers(planned) == planned
    gpus(2)
    assert local_workers(planned) == replace(planned, workers=2)
    gpus(0)
    with pytest.raises(
        InvalidInputError, match=r"planned for GPUs, and torch finds no CUDA device here; .*--scheduler"
    ):
        local_workers(planned)
    assert local_workers(replace(planned, device="cpu")).workers == 4


def test_the_record_says_which(cluster_address, settings):
    assert make.bigdeconv(
        "run", settings["input"], settings["output"], "--psf", settings["psf"], "--method", "rl", "--iterations", 3,
        "--scheduler", cluster_address,
    ).exit_code == 0  # fmt: skip
    plan = json.loads(json.dumps(make.plan_of(settings["output"])))
    assert plan["facts"]["settings"]["device"] == plan["facts"]["resources"]["device"] == "cpu"
