"""What was written is known: damage to an output, its ledger or its overlap slabs is named, and `repair` makes it whole again."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
import zarr

import bigdeconv
from bigdeconv import pipeline
from bigdeconv.config import make_config
from bigdeconv.errors import StoreError
from bigdeconv.jobs.open_run import OpenRun
from bigdeconv.storage import journal as journals
from bigdeconv.storage.ledger import Ledger, ledger_path
from bigdeconv.storage.seals import sealed_line, unsealed
from tests import make

pytestmark = [pytest.mark.cluster]

SHAPE = (24, 48, 48)


def snapshot(folder):
    """Return the files below a folder with their checksums; zarr leaves empty folders behind."""
    return {name: checksum for name, checksum in make.snapshot(folder).items() if checksum != "folder"}


def journal(output):
    return ledger_path(output) / "journal" / "000000.jsonl"


def plan_file(output):
    return ledger_path(output) / "plan.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cluster_address):
    """A folder with a finished run of twelve blocks, overlaps between them, a level of its own pass, and an empty block."""
    folder = tmp_path_factory.mktemp("whole")
    data = make.scene(*SHAPE)
    data[:, 22:] = 0
    volume = make.volume(folder / "in.zarr", data, chunk=(8, 16, 16))
    settings = {
        "input": str(volume),
        "output": str(folder / "out.zarr"),
        "psf": str(make.psf_tiff(folder / "psf.tif")),
        "scheduler": cluster_address,
        **{
            "method": "rl",
            "iterations": 2,
            "background": 20,
            "intensity_scale": 100,
            "output_scale": 8,
            "seam_probes": 0,
        },
        **{"block_shape": (16, 16, 24), "chunks": (8, 8, 8), "shards": (16, 16, 24), "levels": 4, "device": "cpu"},
    }
    assert bigdeconv.run(make_config(settings)).complete
    assert json.loads(plan_file(folder / "out.zarr").read_text())["facts"]["plans"][0]["blend"] != [0, 0, 0]
    return folder


@pytest.fixture
def output(finished, tmp_path):
    """The output of a copy of it, under the same path as seen from its ledger."""
    for name in ("out.zarr", "out.zarr.bigdeconv"):
        shutil.copytree(finished / name, tmp_path / name)
    return tmp_path / "out.zarr"


@pytest.fixture
def interrupted(output):
    """The same as the driver left it after five blocks: without slabs, as after a purge of the scratch folder."""
    cut_to(output, 5)
    return output


def cut_to(output, n_blocks):
    lines = journal(output).read_bytes().splitlines(keepends=True)
    journal(output).write_bytes(b"".join(lines[:n_blocks]))


def shards(output, level="0"):
    return sorted(p for p in (output / level / "c").rglob("*") if p.is_file())


def repair(output, cluster_address):
    return pipeline.repair(output, scheduler=cluster_address)


def resume(output, cluster_address, **options):
    return pipeline.resume(output, scheduler=cluster_address, **options)


def rewritten(output, edit):
    """Edit the records of the journal, and seal them again."""
    lines = journal(output).read_bytes().splitlines(keepends=True)
    journal(output).write_bytes(b"".join(map(sealed_line, edit([unsealed(line) for line in lines]))))


DAMAGE = {
    "a shard of no bytes": lambda out: shards(out)[3].write_bytes(b""),
    "a shard cut off": lambda out: shards(out)[3].write_bytes(shards(out)[3].read_bytes()[:-7]),
    "a shard deleted": lambda out: shards(out)[3].unlink(),
    "a bit of a shard": lambda out: make.flip(shards(out)[3]),
    "two shards swapped": lambda out: swap(*shards(out)[3:5]),
    "a shard of a coarse level": lambda out: shards(out, "1")[0].write_bytes(b""),
    "a shard of the coarsest level": lambda out: make.flip(shards(out, "3")[0]),
    "a shard of a block without light": lambda out: shutil.copy(shards(out)[0], unwritten(out)),
    "all shards": lambda out: [shutil.rmtree(out / level / "c") for level in "0123"],
    "the metadata of an array": lambda out: (out / "1" / "zarr.json").unlink(),
    "the metadata of the image": lambda out: (out / "zarr.json").write_text("{"),
}


def unwritten(output):
    """Return the place of a shard that the run did not write."""
    places = (output / "0" / "c" / str(z) / str(y) / str(x) for z in range(2) for y in range(3) for x in range(2))
    place = next(path for path in places if not path.exists())
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def swap(one, other):
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_of_a_finished_output_is_named_and_repaired_to_the_byte(finished, output, cluster_address, damage):
    DAMAGE[damage](output)
    assert pipeline.validate(output, deep=True)
    summary = repair(output, cluster_address)
    assert summary.complete
    assert snapshot(output) == snapshot(finished / "out.zarr")
    assert pipeline.validate(output, deep=True) == []
    assert bigdeconv.status(output)["state"] == "complete"


def edited(path, edit):
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: (out / "0" / "zarr.json").write_text("{}"),
        lambda out: edited(out / "1" / "zarr.json", lambda v: v.update(fill_value=7)),
        lambda out: edited(out / "zarr.json", lambda v: v["attributes"]["ome"].pop("multiscales")),
        lambda out: [(out / "0" / "zarr.json").unlink(), (out / "0" / "zarr.json").mkdir()],
        lambda out: replaced_by_a_folder(shards(out)[3]),
        lambda out: shutil.rmtree(out / "2"),
    ],
    ids=[
        "no array",
        "another fill value",
        "no multiscales",
        "a folder for metadata",
        "a folder for a shard",
        "no level",
    ],
)
def test_metadata_that_describe_other_arrays_are_made_again(finished, output, cluster_address, damage):
    damage(output)
    assert repair(output, cluster_address).complete
    assert snapshot(output) == snapshot(finished / "out.zarr")


def replaced_by_a_folder(path):
    path.unlink()
    path.mkdir()


def test_resume_makes_a_level_again_that_is_gone(finished, output, cluster_address):
    shutil.rmtree(output / "2")
    assert resume(output, cluster_address).complete
    assert snapshot(output) == snapshot(finished / "out.zarr")


def test_files_of_others_in_the_output_stay(output, cluster_address):
    """Labels lie inside an image by its format, and users add notes and attributes."""
    label = output / "labels" / "cells" / "0" / "c" / "0" / "0"
    label.parent.mkdir(parents=True)
    label.write_text("a label")
    (output / "README.md").write_text("notes")
    (output / "0" / "notes.txt").write_text("more notes")
    edited(output / "zarr.json", lambda v: v["attributes"].update(mine={"stain": "DAPI"}))
    before = snapshot(output)
    assert pipeline.validate(output, deep=True) == []
    assert repair(output, cluster_address).complete
    assert resume(output, cluster_address, verify=True).complete
    assert snapshot(output) == before


def test_only_repair_removes_chunks_that_nobody_wrote(finished, output, cluster_address):
    DAMAGE["a shard of a block without light"](output)
    before, seen = snapshot(output), []
    resume(output, cluster_address, verify=True, events=pipeline.Events(warned=seen.append))
    assert any("bigdeconv repair" in text for text in seen)
    assert snapshot(output) == before
    repair(output, cluster_address)
    assert snapshot(output) == snapshot(finished / "out.zarr")


def test_a_finished_journal_that_lost_any_line_is_made_whole(finished, output, cluster_address):
    """A later line that says `complete` does not make up for it, and no file is taken for nobody's."""
    whole = journal(output).read_bytes()
    lines = whole.splitlines(keepends=True)
    for n in range(0, len(lines), 3 if len(lines) > 12 else 1):
        journal(output).write_bytes(b"".join([*lines[:n], lines[n].replace(b": ", b":  ", 1), *lines[n + 1 :]]))
        summary = repair(output, cluster_address)
        assert summary.complete
        assert summary.blocks_done == summary.blocks_total
        assert snapshot(output) == snapshot(finished / "out.zarr")


def test_a_finished_journal_without_a_line_is_not_complete(finished, output, cluster_address):
    rewritten(output, lambda records: [r for r in records if r.get("block") != 3])
    assert bigdeconv.status(output)["state"] != "complete"
    assert resume(output, cluster_address).complete
    assert snapshot(output) == snapshot(finished / "out.zarr")


def test_nothing_is_done_where_nothing_is_damaged(finished, output, cluster_address):
    before = journal(output).read_bytes()
    assert pipeline.validate(output, deep=True) == []
    for _ in range(2):
        assert repair(output, cluster_address).complete
    assert journal(output).read_bytes() == before


def test_only_what_is_damaged_is_written_again(output, cluster_address):
    """The damaged shard's block, and the levels above it; its neighbours are solved for their slabs and not written."""
    victim = shards(output)[3]
    times = {path: path.stat().st_mtime_ns for level in "0123" for path in shards(output, level)}
    make.flip(victim)
    assert repair(output, cluster_address).complete
    changed = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed & set(shards(output)) == {victim}


@pytest.mark.parametrize("damage", ["a shard of no bytes", "a shard cut off", "a shard deleted", "all shards"])
def test_resume_computes_again_what_is_missing(finished, output, cluster_address, damage):
    DAMAGE[damage](output)
    summary = resume(output, cluster_address)
    assert summary.complete
    assert snapshot(output) == snapshot(finished / "out.zarr")


def test_resume_reads_what_was_touched_since(finished, output, cluster_address):
    make.flip(shards(output)[3])
    assert resume(output, cluster_address).complete
    assert snapshot(output) == snapshot(finished / "out.zarr")


def test_resume_reads_contents_where_it_is_asked_to(finished, output, cluster_address):
    """A disk that rots changes bytes, and tells nobody when."""
    make.flip(shards(output)[3])
    os.utime(journal(output), (2**33, 2**33))
    resume(output, cluster_address)
    assert snapshot(output) != snapshot(finished / "out.zarr")
    assert resume(output, cluster_address, verify=True).complete
    assert snapshot(output) == snapshot(finished / "out.zarr")


@pytest.fixture
def in_segments(output, monkeypatch):
    """The output again, with a journal of many segments and its snapshots."""
    ledger = Ledger.open(output)
    records = [record for record, _ in ledger.journal.records()]
    shutil.rmtree(ledger.journal.folder)
    ledger.journal.create()
    monkeypatch.setattr(journals, "SEGMENT_BYTES", 500)
    run = OpenRun.open(output, with_files=True)
    with run.writing():
        for record in records:
            run.append(record)
    assert len(list(ledger.journal.folder.glob("*.jsonl"))) > 3
    assert len(list(ledger.journal.folder.glob("*.npz"))) == journals.KEPT_SNAPSHOTS
    return output


class TestSegments:
    """What is known from a snapshot of the journal is what its lines say."""

    @pytest.mark.parametrize(
        "damage", ["a shard of no bytes", "a bit of a shard", "a shard of a coarse level", "all shards"]
    )
    @pytest.mark.parametrize("way", [resume, repair])
    def test_damage_is_found_and_mended(self, finished, in_segments, cluster_address, damage, way):
        assert bigdeconv.status(in_segments) == bigdeconv.status(finished / "out.zarr") | {"output": str(in_segments)}
        DAMAGE[damage](in_segments)
        assert way(in_segments, cluster_address).complete
        assert snapshot(in_segments) == snapshot(finished / "out.zarr")
        assert pipeline.validate(in_segments, deep=True) == []

    @pytest.mark.parametrize("n_kept", [0, 1, 2, 3])
    def test_a_run_that_stopped_between_segments_is_finished(self, finished, in_segments, cluster_address, n_kept):
        folder = Ledger.open(in_segments).journal.folder
        for path in folder.iterdir():
            if int(path.stem) > n_kept:
                path.unlink()
        if n_kept:  # and before the next one began
            (folder / f"{n_kept:06d}.jsonl").unlink()
        assert resume(in_segments, cluster_address).complete
        assert snapshot(in_segments) == snapshot(finished / "out.zarr")

    @pytest.mark.parametrize("gone", ["segment", "lines", "all"])
    def test_a_segment_that_is_lost_is_told_and_computed_again(self, finished, in_segments, cluster_address, gone):
        segment = Ledger.open(in_segments).journal.folder / "000001.jsonl"
        lines = segment.read_bytes().splitlines(keepends=True)
        segment.unlink() if gone == "segment" else segment.write_bytes(b"" if gone == "all" else b"".join(lines[1:]))
        if gone == "segment":
            with pytest.raises(StoreError, match=r"000001\.jsonl' is damaged .* `bigdeconv repair`"):
                bigdeconv.status(in_segments)
        else:
            assert bigdeconv.status(in_segments)["state"] != "complete"
        assert repair(in_segments, cluster_address).complete
        assert snapshot(in_segments) == snapshot(finished / "out.zarr")


def test_a_run_that_has_lost_its_slabs_is_finished(finished, interrupted, cluster_address):
    """The scratch folder was purged: the lower neighbours are solved again for their slabs."""
    assert not (ledger_path(interrupted) / "scratch").exists()
    assert resume(interrupted, cluster_address).complete
    assert snapshot(interrupted) == snapshot(finished / "out.zarr")


def test_slabs_that_are_all_damaged_are_all_made_again(finished, output, cluster_address):
    """As a power failure leaves them: present, and without bytes."""
    cut_to(output, 11)
    stored = json.loads(plan_file(output).read_text())
    folder = ledger_path(output) / "scratch" / stored["digest"] / "000000"
    folder.mkdir(parents=True)
    for block in range(12):
        for direction in ("001", "010", "011", "100", "101", "110", "111"):
            (folder / f"{block}-{direction}.slab").touch()
    assert resume(output, cluster_address).complete
    assert snapshot(output) == snapshot(finished / "out.zarr")


@pytest.mark.parametrize("gone", [[2], [0, 4], [1, 3]])
def test_a_run_whose_journal_lost_lines_is_finished(finished, interrupted, cluster_address, gone):
    rewritten(interrupted, lambda records: [r for n, r in enumerate(records) if n not in gone])
    assert resume(interrupted, cluster_address).complete
    assert snapshot(interrupted) == snapshot(finished / "out.zarr")


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0], b'{"block": -1}\n', *lines[1:]],
        lambda lines: [lines[0], lines[1].replace(b'"block": ', b'"block": 1'), *lines[2:]],
        lambda lines: [lines[0], b"\xff\xfe\n", *lines[1:]],
        lambda lines: [*lines, b'{"complete": true, "failed": 0}\n'],
        lambda lines: [*lines, b"\x00" * 64 + b"\n"],
        lambda lines: [b"5\n", *lines],
    ],
    ids=["a line by hand", "a changed line", "not UTF-8", "complete too early", "zeros", "a number"],
)
def test_a_damaged_journal_is_refused_and_repaired(finished, interrupted, cluster_address, damage):
    lines = journal(interrupted).read_bytes().splitlines(keepends=True)
    journal(interrupted).write_bytes(b"".join(damage(lines)))
    with pytest.raises(StoreError, match="bigdeconv repair"):
        resume(interrupted, cluster_address)
    assert repair(interrupted, cluster_address).complete
    assert snapshot(interrupted) == snapshot(finished / "out.zarr")


@pytest.mark.parametrize("name", ["journal/000000.jsonl", "lock"])
@pytest.mark.parametrize("kind", ["gone", "a folder"])
def test_a_missing_file_of_the_ledger_is_made_again(finished, interrupted, cluster_address, name, kind):
    path = ledger_path(interrupted) / name
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    assert repair(interrupted, cluster_address).complete
    assert snapshot(interrupted) == snapshot(finished / "out.zarr")


@pytest.mark.parametrize("kind", ["a line twice", "a line of another kind"])
def test_lines_that_say_nothing_new_do_no_harm(finished, interrupted, cluster_address, kind):
    extra = {
        "a line twice": lambda r: [*r, r[0]],
        "a line of another kind": lambda r: [*r, {"note": "by a later version"}],
    }
    rewritten(interrupted, extra[kind])
    assert resume(interrupted, cluster_address).complete
    assert snapshot(interrupted) == snapshot(finished / "out.zarr")


@pytest.mark.parametrize(
    "record", [{"block": -1}, {"block": 12}, {"block": "3"}, {"block": None}, {"level": 1}, {"failure": {"block": 12}}]
)
def test_a_record_that_cannot_be_is_refused(interrupted, cluster_address, record):
    rewritten(interrupted, lambda records: [*records, record])
    with pytest.raises(StoreError, match=r"the journal (names block|holds a record)"):
        resume(interrupted, cluster_address)


@pytest.mark.parametrize("edit", ["background", "output_scale", "halo", "iterations", "seal", "array", "deep", "empty"])
def test_a_changed_plan_is_refused(interrupted, cluster_address, edit):
    """Blocks of two kinds would meet in one volume."""
    text = plan_file(interrupted).read_text()
    if edit == "array":
        make.flip(ledger_path(interrupted) / "arrays.safetensors")
    elif edit in ("deep", "empty"):
        plan_file(interrupted).write_text("[" * 100_000 if edit == "deep" else "")
    elif edit == "seal":
        plan_file(interrupted).write_text(re.sub(r',\s*"seal": "\w+"', "", text))
    else:
        changed, n = re.subn(rf'("{edit}": \[?\s*)(\d+)', lambda m: f"{m[1]}{int(m[2]) + 1}", text, count=1)
        assert n == 1
        plan_file(interrupted).write_text(changed)
    before = snapshot(interrupted)
    for command in (resume, repair):
        with pytest.raises(StoreError, match=r"start the run again with --overwrite"):
            command(interrupted, cluster_address)
    assert snapshot(interrupted) == before


def test_an_output_that_is_gone_is_not_begun_anew_without_being_asked(finished, output, cluster_address):
    """It may lie on a disk that is not mounted."""
    shutil.rmtree(output)
    with pytest.raises(StoreError, match=r"is gone .* `bigdeconv repair`"):
        resume(output, cluster_address)
    assert repair(output, cluster_address).complete
    assert snapshot(output) == snapshot(finished / "out.zarr")


def test_counts_are_those_of_one_computation(finished, output, cluster_address):
    """Blocks that were computed twice count once."""
    before = pipeline.report(output)["work"]
    for path in shards(output)[2:5]:
        path.unlink()
    repair(output, cluster_address)
    after = pipeline.report(output)["work"]
    assert {k: v for k, v in after.items() if "seconds" not in k} == {
        k: v for k, v in before.items() if "seconds" not in k
    }


class TestAbsentInput:
    """By zarr's convention an absent chunk is fill; a broken mount looks the same."""

    CHUNK = "0/c/1/1/1"

    @pytest.fixture
    def job(self, tmp_path, cluster_address):
        volume = make.volume(tmp_path / "in.zarr", make.scene(*SHAPE), chunk=(8, 16, 16))
        return {
            "input": str(volume),
            "output": str(tmp_path / "out.zarr"),
            "psf": str(make.psf_tiff(tmp_path / "psf.tif")),
            "scheduler": cluster_address,
            **{"method": "rl", "iterations": 2, "background": 20, "intensity_scale": 100, "output_scale": 8},
            **{"block_shape": (16, 16, 24), "chunks": (8, 8, 8), "levels": 3, "device": "cpu", "seam_probes": 0},
        }

    def test_it_is_counted_and_said(self, job, tmp_path):
        (tmp_path / "in.zarr" / self.CHUNK).unlink()
        summary = bigdeconv.run(**job)
        assert summary.complete
        (sentence,) = [w for w in summary.warnings if "absent" in w]
        assert sentence.startswith("1 of 27 files of ")
        assert self.CHUNK in sentence
        values = pipeline.report(job["output"])
        assert values["absent_input_files"] == 1
        (absent,) = values["absent_input"]
        assert (absent["files"], absent["of"], len(absent["places"])) == (1, 27, 1)
        assert "Files that the input lacks" in (ledger_path(job["output"]) / "report.html").read_text()

    def test_a_whole_input_says_nothing(self, job):
        summary = bigdeconv.run(**job)
        assert not any("absent" in w for w in summary.warnings)
        assert pipeline.report(job["output"])["absent_input_files"] == 0

    def test_a_sparse_volume_is_no_cause_for_a_warning(self, job, tmp_path):
        for path in sorted((tmp_path / "in.zarr" / "0" / "c").rglob("*")):
            if path.is_file() and not str(path).endswith("/c/1/1/1"):
                path.unlink()
        summary = bigdeconv.run(**job)
        assert summary.complete
        assert not any("absent" in w for w in summary.warnings)
        assert pipeline.report(job["output"])["absent_input_files"] == 26

    def test_it_can_be_refused(self, job, tmp_path):
        (tmp_path / "in.zarr" / self.CHUNK).unlink()
        summary = bigdeconv.run(**job, missing="error")
        assert not summary.complete
        assert all(re.search(r"0/c/1/1/1 of .* is absent; restore it", error) for error in summary.errors)

    def test_a_chunk_of_no_bytes_is_an_error(self, job, tmp_path):
        (tmp_path / "in.zarr" / self.CHUNK).write_bytes(b"")
        with pytest.raises(StoreError, match="cannot read array"):
            bigdeconv.run(**job)

    def test_a_shard_of_no_bytes_is_an_error(self, job, tmp_path):
        """zarr reads it as fill."""
        shutil.rmtree(tmp_path / "in.zarr")
        make.volume(tmp_path / "in.zarr", make.scene(*SHAPE), chunk=(8, 8, 8), shard=(8, 16, 16))
        (tmp_path / "in.zarr" / self.CHUNK).write_bytes(b"")
        with pytest.raises(StoreError, match=r"0/c/1/1/1' has no bytes"):
            bigdeconv.run(**job)
        assert not (tmp_path / "out.zarr").exists()

    def test_a_shard_that_is_cut_to_no_bytes_in_mid_run_fails_its_blocks(self, job, tmp_path, monkeypatch):
        shutil.rmtree(tmp_path / "in.zarr")
        make.volume(tmp_path / "in.zarr", make.scene(*SHAPE), chunk=(8, 8, 8), shard=(8, 16, 16))

        def cut(*_, **__):
            (tmp_path / "in.zarr" / self.CHUNK).write_bytes(b"")
            return []

        monkeypatch.setattr(pipeline, "require_space", cut)
        summary = bigdeconv.run(**job)
        assert not summary.complete
        assert any("0/c/1/1/1' has no bytes" in error for error in summary.errors)

    def test_a_neighbour_that_is_solved_again_notes_what_it_lacks(self, job, tmp_path):
        """Its slab goes into a block whose own window may not touch the absent file."""
        bigdeconv.run(**job)
        out, whole = tmp_path / "out.zarr", snapshot(tmp_path / "out.zarr")
        lines = [line for line in journal(out).read_bytes().splitlines(keepends=True) if "block" in unsealed(line)]
        last = max(lines, key=lambda line: unsealed(line)["block"])
        journal(out).write_bytes(b"".join(line for line in lines if line != last))
        away = tmp_path / "away"
        (tmp_path / "in.zarr" / "0" / "c").rename(away)
        shutil.copytree(away, tmp_path / "in.zarr" / "0" / "c")
        for path in (tmp_path / "in.zarr" / "0" / "c" / "0").rglob("*"):
            if path.is_file():
                path.unlink()
        resume(out, job["scheduler"])
        assert pipeline.report(out)["absent_input_files"] > 0
        shutil.rmtree(tmp_path / "in.zarr" / "0" / "c")
        away.rename(tmp_path / "in.zarr" / "0" / "c")
        assert repair(out, job["scheduler"]).complete
        assert snapshot(out) == whole

    def test_a_finished_run_does_not_need_its_input(self, job, tmp_path):
        (tmp_path / "in.zarr" / self.CHUNK).unlink()
        assert bigdeconv.run(**job).complete
        (tmp_path / "in.zarr").rename(tmp_path / "archived.zarr")
        assert resume(tmp_path / "out.zarr", job["scheduler"]).complete

    @pytest.mark.parametrize("when", ["in the run", "after the run"])
    def test_what_comes_back_is_read_again(self, job, tmp_path, when):
        """The result is that of a whole input, to the byte."""
        bigdeconv.run(**{**job, "output": str(tmp_path / "whole.zarr")})
        chunk, away = tmp_path / "in.zarr" / self.CHUNK, tmp_path / "away"
        chunk.rename(away)

        def back(*_):
            if when == "in the run" and away.exists():
                away.rename(chunk)

        seen = []

        def progressed(progress):
            if progress.blocks_finished == progress.blocks_total:
                back()

        assert bigdeconv.run(**job, events=pipeline.Events(progressed=progressed, warned=seen.append)).complete
        if when == "after the run":
            away.rename(chunk)
            assert repair(tmp_path / "out.zarr", job["scheduler"]).complete
        else:
            assert any("was absent, and is there now" in text for text in seen)
        for level in "012":
            assert snapshot(tmp_path / "out.zarr" / level) == snapshot(tmp_path / "whole.zarr" / level)
        assert pipeline.report(job["output"])["absent_input_files"] == 0


@pytest.mark.parametrize("way", ["run", "resume"])
def test_an_input_that_changes_under_a_run_is_told(finished, tmp_path, cluster_address, monkeypatch, way):
    """The numbers that the data decided rest on other voxels then: by the end of the run, or of the one that goes on with it."""
    plan = json.loads(plan_file(finished / "out.zarr").read_text())["facts"]["config"]
    image = shutil.copytree(finished / "in.zarr", tmp_path / "in.zarr")
    config = make_config(plan | {"input": str(image), "output": str(tmp_path / "out.zarr"), "psf": [plan["psf"][0]]})

    def change(*_):
        zarr.open_array(image / "0", mode="r+")[:] += 3

    if way == "run":
        monkeypatch.setattr(pipeline, "require_space", lambda *_, **__: change() or [])
        summary = bigdeconv.run(config)
    else:
        assert not any("input has changed" in text for text in bigdeconv.run(config).warnings)
        cut_to(tmp_path / "out.zarr", 5)
        change()
        summary = resume(tmp_path / "out.zarr", cluster_address)
    assert summary.complete
    assert any("The input has changed since the run began" in text for text in summary.warnings)
    values = pipeline.report(tmp_path / "out.zarr")
    assert values["good"] is False
    assert any("The input has changed" in text for text in values["warnings"])


def test_resume_may_repair(finished, output, cluster_address):
    """`resume --repair` is the same function."""
    make.flip(shards(output)[3])
    os.utime(journal(output), (2**33, 2**33))
    assert make.bigdeconv("resume", output, "--repair", "--scheduler", cluster_address).exit_code == 0
    assert snapshot(output) == snapshot(finished / "out.zarr")
