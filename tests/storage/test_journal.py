"""Snapshots of a journal say what its lines say, whatever happens to them; files are known by their places."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigdeconv.errors import StoreError
from bigdeconv.storage import journal as journals
from bigdeconv.storage.absent import AbsentFiles, as_ranges
from bigdeconv.storage.arrays import write_region
from bigdeconv.storage.journal import BEGINNING, Journal, Position
from bigdeconv.storage.journal_summary import JournalSummary
from bigdeconv.storage.output import LevelSpec, OutputSpec, create_output
from bigdeconv.storage.seals import checksum_of
from bigdeconv.storage.written_files import WrittenFiles

N_BLOCKS = 40
GRIDS = (((2, 4, 5), (1, 2, 3)), ((1, 3, 3),))


def summary(*, with_files=True):
    """Return an empty sum for two volumes of 20 blocks."""
    return JournalSummary(
        N_BLOCKS,
        volume_of=lambda index: index // 20,
        written=WrittenFiles(GRIDS, "c/") if with_files else None,
        absent=AbsentFiles((100, 9)),
    )


@st.composite
def records(draw):
    """Draw the records of a run: blocks, some forgotten and done again, levels and closings."""
    found, done = [], {}
    for _ in range(draw(st.integers(0, 30))):
        kind = draw(
            st.sampled_from(["block", "block", "block", "forgotten", "level", "present", "complete", "failure"])
        )
        if kind == "block":
            found.append(draw(blocks()))
            done.setdefault(found[-1]["block"], found[-1])
        elif kind == "forgotten" and done:
            found.append({"forgotten": done.pop(draw(st.sampled_from(sorted(done))))})
        elif kind == "level":
            found.append({"volume": 0, "level": 1, "files": [["1/c/0/1/2", 5, 6]]})
        elif kind == "present":
            found.append({"volume": 0, "present": [[3, 50]]})
        elif kind == "complete":
            found.append({"complete": True, "seconds": 2.0})
        elif kind == "failure":
            found.append({"failure": {"block": draw(st.integers(0, N_BLOCKS - 1)), "cause": "unread"}})
    return found


@st.composite
def blocks(draw):
    """Draw the record of a block."""
    index = draw(st.integers(0, N_BLOCKS - 1))
    record = {"block": index, "voxels": draw(st.integers(0, 9)), "solve_seconds": 1.0}
    place = draw(st.tuples(*(st.integers(0, n - 1) for n in GRIDS[index // 20][0])))
    if draw(st.booleans()):
        record["files"] = [
            [f"0/c/{'/'.join(map(str, place))}", draw(st.integers(1, 9)), draw(st.integers(0, 2**32 - 1))]
        ]
    if draw(st.booleans()):
        record["out_of_memory"] = 1
    if draw(st.booleans()):
        record["absent"] = as_ranges(draw(st.lists(st.integers(0, 8), min_size=1)))
    return record


def summed(journal, found, start=BEGINNING):
    for record, _ in journal.records(start):
        found.add(record)
    return found


def assert_same(one, other):
    first, second = one.snapshot(), other.snapshot()
    bits = [{v: b for v, b in s.absent.bits.items() if b.any()} for s in (one, other)]
    assert bits[0].keys() == bits[1].keys()
    for name in ("plain", "finished", *(("n_bytes", "checksum", "writer") if one.written else ())):
        np.testing.assert_array_equal(first[name], second[name])
    for volume in bits[0]:
        np.testing.assert_array_equal(bits[0][volume], bits[1][volume])


@settings(max_examples=60, deadline=None)
@given(found=records(), per_segment=st.integers(1, 900), with_files=st.booleans())
def test_a_snapshot_and_the_lines_after_it_are_all_lines(found, per_segment, with_files, tmp_path_factory):
    journal = Journal(tmp_path_factory.mktemp("run") / "journal")
    journal.create()
    living = summary()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journals, "SEGMENT_BYTES", per_segment)
        for part in (found[:10], found[10:]):  # two drivers
            with journal.appending():
                for record in part:
                    journal.append(record)
                    living.add(record)
                    if journal.is_segment_full:
                        journal.begin_segment(living.snapshot())
    assert [record for record, _ in journal.records()] == [_plain(record) for record in found]
    every_line = summed(journal, summary())
    assert_same(every_line, living)
    restored, stored = summary(with_files=with_files), None
    if (stored := journal.snapshot(restored._unwanted)) is not None:
        restored.restore(stored[1])
        assert with_files or not {"n_bytes", "checksum", "writer"} & stored[1].keys()
    assert_same(
        summed(journal, restored, stored[0] if stored else BEGINNING), living if with_files else every_line_of(journal)
    )


def every_line_of(journal):
    return summed(journal, summary(with_files=False))


def _plain(record):
    """Return a record as JSON gives it back."""
    return {
        name: [list(pair) for pair in value]
        if name in ("absent", "present")
        else _plain(value)
        if name == "forgotten"
        else value
        for name, value in record.items()
    }


def replaced(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new))


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """A journal of five segments with two snapshots."""
    monkeypatch.setattr(journals, "SEGMENT_BYTES", 100)
    found, living = Journal(tmp_path / "journal"), summary()
    found.create()
    with found.appending():
        for index in range(10):
            record = {"block": index, "voxels": 1, "absent": [[index, index + 1]]}
            found.append(record)
            living.add(record)
            if found.is_segment_full:
                found.begin_segment(living.snapshot())
    assert sorted(p.name for p in found.folder.iterdir()) == [
        *(f"00000{n}.{suffix}" for n, suffix in [(0, "jsonl"), (1, "jsonl"), (2, "jsonl"), (3, "jsonl")]),
        "000004.jsonl",
        "000004.npz",
        "000005.jsonl",
        "000005.npz",
    ]
    return found


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "000005.npz").unlink(),
        lambda folder: (folder / "000005.npz").write_bytes(b""),
        lambda folder: (folder / "000005.npz").write_bytes((folder / "000005.npz").read_bytes()[:-30]),
        lambda folder: (folder / "000005.npz").write_bytes(
            (folder / "000005.npz").read_bytes().replace(b'"levels"', b'"Levels"')
        ),
        lambda folder: np.savez(folder / "000005.npz", other=np.arange(3)),
        lambda folder: np.savez(folder / "000005.npz", segment_bytes=np.array([{}], object)),
    ],
)
def test_a_snapshot_that_cannot_be_read_is_passed_over(journal, damage):
    damage(journal.folder)
    position, arrays = journal.snapshot()
    assert position == (4, 0)
    restored = summary()
    restored.restore(arrays)
    assert_same(summed(journal, restored, position), summed(journal, summary()))


def test_a_snapshot_of_other_segments_does_not_count(journal):
    segment = journal.folder / "000002.jsonl"
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[1:]))
    assert journal.snapshot() is None
    assert summed(journal, summary()).blocks_finished == 9


@pytest.mark.parametrize("damage", ["a segment is gone", "a torn line before the last segment", "a changed line"])
def test_a_damaged_segment_is_told_and_mended(journal, damage):
    segment = journal.folder / "000002.jsonl"
    content = segment.read_bytes()
    if damage == "a segment is gone":
        segment.unlink()
    else:
        segment.write_bytes(content[:-9] if damage.startswith("a torn") else content.replace(b"4", b"5", 1))
    with pytest.raises(StoreError, match=r"000002\.jsonl' is damaged before byte \d+ .*`bigdeconv repair`"):
        list(journal.records())
    assert journal.mend() == 1
    assert journal.snapshot() is None
    missing = {4, 5} if damage == "a segment is gone" else {4} if damage == "a changed line" else {5}
    assert {record["block"] for record, _ in journal.records()} == set(range(10)) - missing
    assert journal.mend() == 0


def test_a_driver_that_ended_after_a_snapshot_is_followed(journal):
    (journal.folder / "000005.jsonl").unlink()
    assert list(journal.records(Position(5))) == []
    with journal.appending():
        journal.append({"block": 10})
    assert [record for record, _ in journal.records(Position(5))] == [{"block": 10}]


class TestWrittenFiles:
    @pytest.fixture
    def folders(self, tmp_path):
        return [tmp_path / "a.zarr", tmp_path / "b.zarr"]

    @pytest.fixture
    def written(self, folders):
        """Files of two volumes, as they lie on disk."""
        found = WrittenFiles(GRIDS, "c/")
        for volume, name in [(0, "0/c/1/3/4"), (0, "0/c/0/0/0"), (0, "1/c/0/1/2"), (1, "0/c/0/2/1")]:
            path = folders[volume] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{volume} {name}".encode())
            found.note(volume, 1 if name.startswith("1") else 7, [[name, path.stat().st_size, checksum_of(path)]])
        return found

    def test_all_is_as_it_was(self, folders, written):
        for reads in (True, False):
            found = written.compare(folders, reads=reads)
            assert (len(found.damaged), len(found.foreign), found.problems) == (0, 0, [])

    @pytest.mark.parametrize("name", ["0/c/1/3/4", "0/c/0/0/0", "1/c/0/1/2"])
    def test_what_is_damaged_has_its_name(self, folders, written, name):
        (folders[0] / name).unlink()
        found = written.compare(folders, reads=False, since_ns=2**62)
        assert [written.place(int(n)) for n in found.damaged] == [(0, int(name[0]), name)]
        assert found.problems == [f"{name} is missing"]
        (folders[0] / name).mkdir()
        assert written.compare(folders, reads=False).problems == [f"{name} is no file"]

    def test_contents_are_compared_where_a_file_was_touched(self, folders, written):
        path = folders[1] / "0/c/0/2/1"
        path.write_bytes(path.read_bytes()[::-1])
        assert written.compare(folders, reads=False, since_ns=path.stat().st_ctime_ns).problems == []
        for options in ({"reads": True, "since_ns": 2**62}, {"reads": False, "since_ns": path.stat().st_ctime_ns - 1}):
            assert written.compare(folders, **options).problems == ["0/c/0/2/1 holds other bytes than were written"]

    def test_foreign_files_are_those_in_places_of_the_grid(self, folders, written):
        for name in ("0/c/1/0/0", "0/c/2/0/0", "0/c/01/0/1", "0/c/x/0/0", "labels/c/0/0/0", "0/c/1/0/1.partial"):
            (folders[0] / name).parent.mkdir(parents=True, exist_ok=True)
            (folders[0] / name).write_bytes(b"mine")
        found = written.compare(folders, reads=False)
        assert [written.place(int(n))[2] for n in found.foreign] == ["0/c/1/0/0"]

    @pytest.mark.parametrize("name", ["0/c/2/0/0", "0/c/1/0", "2/c/0/0/0", "zarr.json", "0/c/-1/0/0", ""])
    def test_a_name_that_the_output_does_not_have(self, written, name):
        with pytest.raises(ValueError, match="the output has no file"):
            written.note(0, 2, [[name, 1, 1]])

    def test_sentences_have_a_limit(self, folders, written, monkeypatch):
        monkeypatch.setattr("bigdeconv.storage.written_files.MAX_SENTENCES", 2)
        for folder in folders:
            for path in folder.rglob("*"):
                if path.is_file():
                    path.unlink()
        found = written.compare(folders, reads=False)
        assert len(found.damaged) == 4
        assert found.problems == ["0/c/0/0/0 is missing", "0/c/1/3/4 is missing", "and 2 files more"]


@given(numbers=st.sets(st.integers(0, 40_000)), gone=st.sets(st.integers(0, 40_000)))
@settings(max_examples=30, deadline=None)
def test_absent_files_are_a_set(numbers, gone):
    found = AbsentFiles((50_001,))
    found.note(0, as_ranges(numbers))
    found.found(0, as_ranges(gone))
    assert [int(n) for batch in found.batches(0) for n in batch] == sorted(numbers - gone)
    assert found.count(0) == len(numbers - gone)


def test_shards_that_their_own_checksums_allow_have_checksums_apart(tmp_path):
    """Chunks and index of a shard end with their CRC-32C, which makes the CRC-32C of any shard the same number."""
    level = LevelSpec((8, 8, 8), (4, 4, 4), (8, 8, 8), scale=(1.0,) * 3, translation=(0.0,) * 3)
    spec = OutputSpec(("z", "y", "x"), (None,) * 3, "uint16", (level,), "0.5", "noise", (), {})
    found = {}
    for seed in range(3):
        path = tmp_path / f"{seed}.zarr"
        create_output(path, spec)
        noise = np.random.default_rng(seed).integers(0, 2**16, (8, 8, 8)).astype(np.uint16)
        write_region(path, "0", (slice(0, 8),) * 3, noise)
        file = path / "0" / "c" / "0" / "0" / "0"
        found[checksum_of(file)] = file.stat().st_size
    assert len(found) == 3
    assert len(set(found.values())) == 1
