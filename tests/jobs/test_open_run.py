"""A stored run, opened: its plan is parsed and its journal read once, however it is continued or looked at."""

from __future__ import annotations

import errno
import fcntl
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import bigdeconv
from bigdeconv import pipeline
from bigdeconv.config import make_config
from bigdeconv.errors import StoreError
from bigdeconv.jobs.open_run import OpenRun
from bigdeconv.reporting.status import summarise
from bigdeconv.storage.journal import BEGINNING, Journal
from bigdeconv.storage.ledger import Ledger, ledger_path
from bigdeconv.storage.seals import sealed_line
from tests import make


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cluster_address):
    """Settings of a run of four blocks with a level of its own, that ended well."""
    folder = tmp_path_factory.mktemp("job")
    make.volume(folder / "in.zarr", make.scene(8, 64, 64), chunk=(8, 32, 32))
    config = make_config(
        {
            "input": str(folder / "in.zarr"),
            "output": str(folder / "out.zarr"),
            "psf": make.psf_tiff(folder / "psf.tif"),
            "method": "rl",
            "iterations": 3,
            "device": "cpu",
            "block_shape": (8, 32, 32),
            "blend": (0, 0, 0),  # so that a block needs nothing of a neighbour that is done
            "scheduler": cluster_address,
        }
    )
    assert bigdeconv.run(config).complete
    return config


@pytest.fixture
def interrupted(finished, tmp_path):
    """Settings of a copy of that run, of which the last blocks are forgotten."""
    output = make.copied(Path(finished.output), tmp_path)
    make.forget_last_block(output)
    return make_config(finished.model_dump() | {"output": str(output)})


@pytest.fixture
def reads(monkeypatch):
    """Counts of the records of a journal, by the byte where each ends, and of the plans that are read from here on."""
    found = Counter()
    records, plan = Journal.records, Ledger.plan

    def counted_records(self, start=BEGINNING):
        for record, end in records(self, start):
            found["record", end.byte] += 1
            yield record, end

    def counted_plan(self):
        found["plan"] += 1
        return plan(self)

    monkeypatch.setattr(Journal, "records", counted_records)
    monkeypatch.setattr(Ledger, "plan", counted_plan)
    return found


def ends_of(output):
    """Return where the records of a journal end, in bytes."""
    lines = (ledger_path(output) / "journal" / "000000.jsonl").read_bytes().splitlines(keepends=True)
    return np.cumsum([len(line) for line in lines]).tolist()


@pytest.mark.parametrize("way", ["resume", "run --resume"])
def test_a_resumed_run_reads_plan_and_journal_once(way, interrupted, cluster_address, reads):
    before = ends_of(interrupted.output)
    if way == "resume":
        summary = bigdeconv.resume(interrupted.output, scheduler=cluster_address)
    else:
        summary = bigdeconv.run(interrupted, resume=True)
    assert summary.complete
    assert summary.blocks_done == 4
    assert reads == {"plan": 1} | {("record", end): 1 for end in before}
    # What it has written itself it has not read again.
    assert len(ends_of(interrupted.output)) > len(before)


@pytest.mark.parametrize("look", [bigdeconv.status, bigdeconv.report, bigdeconv.resume], ids=lambda f: f.__name__)
def test_so_does_whoever_looks_at_a_finished_one(look, finished, reads):
    look(finished.output)
    assert reads == {"plan": 1} | {("record", end): 1 for end in ends_of(finished.output)}


def test_a_new_run_reads_nothing(finished, tmp_path, reads):
    assert bigdeconv.run(make_config(finished.model_dump() | {"output": str(tmp_path / "out.zarr")})).complete
    assert reads == {}


def test_resuming_with_run_calibrates_nothing_again(interrupted, monkeypatch):
    """The samples are read, for their checksum; background, scales and τ stand in the plan."""
    from bigdeconv.calibration import channel
    from bigdeconv.jobs import job

    def fail(*_, **__):
        raise AssertionError("it has calibrated again")

    numbers = make.plan_of(interrupted.output)["channels"]
    for owner, name in ((pipeline, "calibrate_job"), (job, "calibrate_job"), (channel, "calibrate")):
        monkeypatch.setattr(owner, name, fail)
    read = []
    digests = pipeline.sample_digests
    monkeypatch.setattr(pipeline, "sample_digests", lambda *job: read.append(job) or digests(*job))
    assert bigdeconv.run(interrupted, resume=True).complete
    assert len(read) == 2  # before the first block, and after the last
    assert make.plan_of(interrupted.output)["channels"] == numbers


def test_resuming_plans_nothing_at_all(interrupted, cluster_address, monkeypatch):
    monkeypatch.setattr(pipeline, "plan_job", lambda *_: pytest.fail("it has planned again"))
    assert bigdeconv.resume(interrupted.output, scheduler=cluster_address).complete


def test_what_another_driver_has_appended_counts_once_the_lock_is_taken(interrupted, reads):
    """Between opening and writing, somebody else may have gone on."""
    run, other = OpenRun.open(interrupted.output), OpenRun.open(interrupted.output)
    done = run.journal.blocks_finished
    missing = run.journal.finished.index(0)
    with other.writing():
        other.append({"block": missing})
    assert run.journal.blocks_finished == done
    reads.clear()
    with run.writing():
        assert run.journal.blocks_finished == done + 1
        assert run.journal.finished[missing]
        run.append({"failure": {"block": 3, "place": "z 0:8", "cause": "unread"}})
        run.append({"complete": False, "seconds": 2.0})
    assert reads == {("record", ends_of(interrupted.output)[-3]): 1}
    assert (run.state, run.journal.blocks_failed) == ("incomplete", 1)
    again = OpenRun.open(interrupted.output)
    assert again.journal.finished == run.journal.finished
    assert again.journal.snapshot()["plain"].tobytes() == run.journal.snapshot()["plain"].tobytes()


def test_a_journal_of_another_plan_is_named(interrupted):
    with (ledger_path(interrupted.output) / "journal" / "000000.jsonl").open("ab") as journal:
        journal.write(sealed_line({"block": 4}))
    with pytest.raises(StoreError, match=r"the journal names block 4, but the plan has 4 blocks"):
        OpenRun.open(interrupted.output)


class TestMeanwhile:
    """Between the opening of a run and its lock, another driver may have come."""

    def test_a_run_in_the_place_of_another_is_not_written(self, interrupted):
        opened = OpenRun.open(interrupted.output)
        plan = opened.ledger.path / "plan.json"
        other = plan.with_name("other.json")
        other.write_bytes(plan.read_bytes())
        other.replace(plan)
        with pytest.raises(StoreError, match="another run has replaced"), opened.writing():
            pass

    def test_records_of_another_driver_are_added_up(self, interrupted):
        first, second = (OpenRun.open(interrupted.output) for _ in range(2))
        missing = first.journal.finished.index(0)
        with second.writing():
            second.append({"block": missing, "voxels": 5})
        assert not first.journal.finished[missing]
        with first.writing():
            assert first.journal.finished[missing]
        assert first.journal.blocks_finished == second.journal.blocks_finished

    def test_probing_whether_a_run_is_written_takes_a_shared_lock(self, finished, monkeypatch):
        """A network file system grants no other to who may only read, and two that look at once do not disturb each other."""
        wanted = []
        monkeypatch.setattr("bigdeconv.storage.lock.fcntl.flock", lambda _, how: wanted.append(how))
        assert not Ledger.open(finished.output).lock.is_held()
        assert wanted == [fcntl.LOCK_SH | fcntl.LOCK_NB]

    def test_a_file_system_without_locks_is_an_error_of_the_store(self, finished, monkeypatch):
        def no_locks(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("bigdeconv.storage.lock.fcntl.flock", no_locks)
        with pytest.raises(StoreError, match=r"lock .* cannot be looked at .*No locks"):
            OpenRun.open(finished.output)


class TestCertificate:
    def test_probes_that_all_fail_leave_the_certificate_and_say_so(self, finished, tmp_path, monkeypatch):
        output = make.copied(Path(finished.output), tmp_path)
        ledger = Ledger.open(output)
        ledger.write_json("certificate", good := {**ledger.certificate(), "error": 1e-5})
        monkeypatch.setattr(pipeline, "run_probes", lambda *_: ([], ["seam probe 0: out of order"]))
        values = bigdeconv.report(output, probes_count=2)
        assert ledger.certificate()["error"] == good["error"]
        assert "seam probe 0: out of order" in values["warnings"]


def test_blocks_that_a_gpu_had_no_memory_for_are_told(interrupted):
    run = OpenRun.open(interrupted.output)
    assert not any("GPU" in sentence for sentence in summarise(run).warnings)
    run.journal.blocks_out_of_memory = 2
    assert any("2 blocks found the memory of a GPU full" in sentence for sentence in summarise(run).warnings)
