"""The ledger survives what may happen to its driver at any byte."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bigdeconv.errors import DamagedOverlapError, OutputExistsError, StoreError
from bigdeconv.jobs import preconditions
from bigdeconv.storage import atomic
from bigdeconv.storage.journal import BEGINNING
from bigdeconv.storage.ledger import SCHEMA_VERSION, Ledger, ledger_path
from bigdeconv.storage.overlaps import drop_overlap, has_overlap, read_overlap, write_overlap

PLAN = {"schema_version": SCHEMA_VERSION, "core": [8, 8, 8], "unit": "µm"}
ARRAYS = {"psf": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "flags": np.array([1, 0], np.uint8)}
RECORDS = [{"block": 0, "max": 1.5}, {"block": 1, "note": "µ\n\r\u2028 σ"}, {"block": 2, "skipped": True}]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "restored.zarr"


def records_of(ledger, start=BEGINNING):
    """Return the records of a journal without the places where they end."""
    return [record for record, _ in ledger.journal.records(start)]


@pytest.fixture
def ledger(output):
    ledger = Ledger.create(output, PLAN, ARRAYS)
    with ledger.writing():
        for record in RECORDS:
            ledger.journal.append(record)
    return ledger


class TestPlan:
    def test_comes_back_as_stored(self, output, ledger):
        opened = Ledger.open(output)
        found = opened.sound_plan()
        assert {name: found[name] for name in PLAN} == PLAN
        arrays = opened.arrays()
        assert set(arrays) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(arrays[name], array)

    def test_arrays_of_any_layout(self, output):
        turned = ARRAYS["psf"].transpose(2, 0, 1)[::-1]
        np.testing.assert_array_equal(Ledger.create(output, {}, {"psf": turned}).arrays()["psf"], turned)

    def test_lies_beside_the_store(self, output):
        assert ledger_path(output) == output.parent / "restored.zarr.bigdeconv"
        assert ledger_path(f"{output}/") == ledger_path(output)
        Ledger.create(output, PLAN, ARRAYS)
        assert not output.exists()
        assert [p.name for p in output.parent.iterdir()] == ["restored.zarr.bigdeconv"]

    def test_is_never_replaced(self, output, ledger):
        with pytest.raises(
            OutputExistsError,
            match=r"^output: '.*\.bigdeconv' is the ledger of an earlier run; .*--resume.*--overwrite",
        ):
            Ledger.create(output, {"other": 1}, {})
        assert Ledger.open(output).plan().items() >= PLAN.items()

    def test_missing(self, output):
        with pytest.raises(
            StoreError, match=r"^output: '.*restored.zarr' cannot be continued: it has no ledger at .*; start it with"
        ):
            Ledger.open(output)

    def test_appears_whole_or_not_at_all(self, output):
        with pytest.raises(TypeError, match="not JSON serializable"):
            Ledger.create(output, {"what": object()}, ARRAYS)
        assert not ledger_path(output).exists()
        with pytest.raises(StoreError, match="no ledger"):
            Ledger.open(output)
        assert Ledger.create(output, PLAN, ARRAYS).plan().items() >= PLAN.items()

    def test_a_damaged_plan_is_an_error_of_the_store(self, output, ledger):
        (ledger.path / "plan.json").write_text('{"schema": 1, "co')
        with pytest.raises(StoreError, match=r"plan\.json"):
            Ledger.open(output).plan()

    @pytest.mark.parametrize("content", ["[]", "3", "null"])
    def test_so_is_one_that_is_no_plan(self, content, output, ledger):
        (ledger.path / "plan.json").write_text(content)
        with pytest.raises(StoreError, match=r"plan\.json' is damaged \(it holds a \w+, not a plan\)"):
            Ledger.open(output).plan()

    def test_removed_with_its_output(self, output, ledger):
        output.mkdir()
        preconditions.remove(output)
        assert list(output.parent.iterdir()) == []
        assert Ledger.create(output, PLAN, ARRAYS).plan().items() >= PLAN.items()

    def test_a_removal_that_is_cut_short_leaves_neither_under_its_name(self, output, ledger, monkeypatch):
        output.mkdir()
        (output / "zarr.json").write_text("{}")

        def rmtree(_):
            raise KeyboardInterrupt

        monkeypatch.setattr(preconditions.shutil, "rmtree", rmtree)
        with pytest.raises(KeyboardInterrupt):
            preconditions.remove(output)
        assert not output.exists()
        assert not ledger.path.exists()
        with pytest.raises(StoreError, match="no ledger"):
            Ledger.open(output)


class TestValues:
    """Plain values beside the plan: a certificate, a report."""

    def test_they_come_back(self, ledger):
        assert ledger.certificate() is None
        ledger.write_json("certificate", {"error": 1e-4, "unit": "µm"})
        assert ledger.certificate() == {"error": 1e-4, "unit": "µm"}

    def test_they_are_replaced_whole_or_not_at_all(self, ledger, monkeypatch):
        ledger.write_json("certificate", {"error": 1})
        with pytest.raises(TypeError, match="not JSON serializable"):
            ledger.write_json("certificate", {"error": object()})

        def replace(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", replace)
        with pytest.raises(OSError, match="No space left"):
            ledger.write_json("certificate", {"error": 2})
        assert ledger.certificate() == {"error": 1}
        assert not [p for p in ledger.path.iterdir() if "partial" in p.name]

    def test_a_damaged_certificate_is_none(self, ledger):
        (ledger.path / "certificate.json").write_text('{"error": ')
        assert ledger.certificate() is None


class TestJournal:
    def test_each_record_comes_with_the_place_where_it_ends(self, output, ledger):
        """Records up to there need not be read again."""
        whole = (ledger.journal.folder / "000000.jsonl").read_bytes()
        ends = [end for _, end in Ledger.open(output).journal.records()]
        assert [end.byte for end in ends] == [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
        for n, end in enumerate(ends, 1):
            assert records_of(ledger, end) == RECORDS[n:]
        with ledger.writing():
            end = ledger.journal.append({"block": 3})
            assert list(ledger.journal.records(ends[-1])) == [({"block": 3}, end)]
        assert (ledger.journal.folder / "000000.jsonl").stat().st_size == end.byte > len(whole)

    def test_comes_back_in_order(self, output, ledger):
        assert records_of(Ledger.open(output)) == RECORDS
        assert records_of(Ledger.create(output.with_name("new"), {}, {})) == []

    def test_goes_on_where_it_stopped(self, output, ledger):
        again = Ledger.open(output)
        with again.writing():
            again.journal.append({"block": 3})
        assert records_of(again) == [*RECORDS, {"block": 3}]

    def test_each_line_is_on_disk_at_once(self, ledger):
        with ledger.writing():
            ledger.journal.append({"block": 3})
            assert records_of(Ledger.open(ledger.path.with_suffix("")))[-1] == {"block": 3}

    def test_cut_at_every_byte(self, output, ledger):
        """A crash may leave any part of the last line: it never counts, and the next line does not run into it."""
        path = ledger.journal.folder / "000000.jsonl"
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        assert len(lines) == 3
        for length in range(len(whole) - len(lines[-1]), len(whole) + 1):
            path.write_bytes(whole[:length])
            expected = RECORDS if length == len(whole) else RECORDS[:2]
            torn = Ledger.open(output)
            assert records_of(torn) == expected
            with torn.writing():
                assert records_of(torn) == expected
                torn.journal.append({"block": 9})
            assert records_of(torn) == [*expected, {"block": 9}]
            assert all(json.loads(line) for line in path.read_bytes().splitlines())

    def test_the_first_line_torn(self, output):
        ledger = Ledger.create(output, {}, {})
        (ledger.journal.folder / "000000.jsonl").write_bytes(b'{"blo')
        assert records_of(ledger) == []
        with ledger.writing():
            ledger.journal.append({"block": 0})
        assert records_of(ledger) == [{"block": 0}]

    def test_a_damaged_line_in_the_middle_is_an_error_of_the_store(self, output, ledger):
        path = ledger.journal.folder / "000000.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(lines[0] + b'{"block": \n' + lines[2])
        with pytest.raises(StoreError, match=r"000000\.jsonl' is damaged before byte \d+ \(.*repair"):
            records_of(Ledger.open(output))

    def test_append_only_while_writing(self, ledger):
        with pytest.raises(AssertionError, match=r"outside of `with ledger\.writing"):
            ledger.journal.append({"block": 3})
        with pytest.raises(RuntimeError, match="stop"), ledger.writing():
            raise RuntimeError("stop")
        with pytest.raises(AssertionError, match=r"outside of `with ledger\.writing"):
            ledger.journal.append({"block": 3})
        assert records_of(ledger) == RECORDS


HOLD = """
import sys
from bigdeconv.storage import atomic
from bigdeconv.storage.ledger import Ledger
with Ledger.open(sys.argv[1]).writing():
    print("held", flush=True)
    sys.stdin.readline()
"""


class TestLock:
    REFUSED = r"^output: another run is writing it \(the lock '.*lock' is held\); wait for it or stop it"

    @pytest.mark.cluster
    def test_one_process_at_a_time(self, output, ledger):
        root = str(Path(__file__).parents[1])
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, str(output)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": root},
        ) as holder:
            try:
                assert holder.stdout.readline().strip() == b"held"
                assert ledger.lock.is_held()
                before = (ledger.journal.folder / "000000.jsonl").read_bytes()
                with pytest.raises(StoreError, match=self.REFUSED), ledger.writing():
                    pytest.fail("two drivers wrote one output")
                assert (ledger.journal.folder / "000000.jsonl").read_bytes() == before
            finally:
                holder.kill()  # as a crash would: nothing is tidied up
                holder.wait()
        assert not ledger.lock.is_held()
        with ledger.writing():
            ledger.journal.append({"block": 3})
        assert records_of(ledger) == [*RECORDS, {"block": 3}]

    def test_one_driver_per_process(self, output, ledger):
        other = Ledger.open(output)
        with ledger.writing():
            assert other.lock.is_held()
            with pytest.raises(StoreError, match=self.REFUSED), other.writing():
                pytest.fail("two drivers wrote one output")
            ledger.journal.append({"block": 3})
        assert not other.lock.is_held()

    def test_released_after_an_error(self, ledger):
        with pytest.raises(RuntimeError, match="stop"), ledger.writing():
            raise RuntimeError("stop")
        assert not ledger.lock.is_held()
        with ledger.writing():
            ledger.journal.append({"block": 3})
        assert len(records_of(ledger)) == 4


class TestOverlaps:
    SLAB = np.random.default_rng(0).random((2, 3, 4), np.float32)

    def test_round_trip(self, tmp_path):
        scratch = tmp_path / "scratch"
        for block in (0, 999, 1000, 123_456_789):
            write_overlap(scratch, block, (0, 1, 1), block + self.SLAB)
        for block in (0, 999, 1000, 123_456_789):
            found = read_overlap(scratch, block, (0, 1, 1))
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, block + self.SLAB)

    def test_an_empty_slab(self, tmp_path):
        write_overlap(tmp_path, 5, (1, 0, 0), np.empty((0, 0, 0), np.float32))
        assert read_overlap(tmp_path, 5, (1, 0, 0)).shape == (0, 0, 0)

    def test_each_block_and_direction_has_its_own(self, tmp_path):
        places = [(b, d) for b in (1, 10, 11, 110) for d in [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1)]]
        for n, place in enumerate(places):
            write_overlap(tmp_path, *place, np.full((1, 1, 1), n, np.float32))
        assert [read_overlap(tmp_path, *place).item() for place in places] == list(range(len(places)))

    def test_written_again_it_is_the_later_one(self, tmp_path):
        """A block that is solved again leaves its slabs again."""
        write_overlap(tmp_path, 5, (1, 0, 0), self.SLAB)
        write_overlap(tmp_path, 5, (1, 0, 0), self.SLAB + 1)
        np.testing.assert_array_equal(read_overlap(tmp_path, 5, (1, 0, 0)), self.SLAB + 1)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: content[:-3],
            lambda content: b"",
            lambda content: content + b"0000",
            lambda content: content.replace(b"[2, 3, 4]", b"[4, 3, 2]"),
            lambda content: content.replace(b"[2, 3, 4]", b"[1, 1, 1]"),
            lambda content: content.replace(b'"block": 5', b'"block": 4'),
            lambda content: content.replace(b"[1, 0, 0]", b"[0, 1, 0]"),
            lambda content: content[:-1] + bytes([content[-1] ^ 1]),
            lambda content: b"[" * 5000,
            lambda content: b"5\n" + content,
        ],
    )
    def test_a_damaged_slab_is_known_and_removed(self, tmp_path, damage):
        write_overlap(tmp_path, 5, (1, 0, 0), self.SLAB)
        (file,) = tmp_path.rglob("*.slab")
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(DamagedOverlapError, match="5-100") as found:
            read_overlap(tmp_path, 5, (1, 0, 0))
        assert found.value.blocks == (5,)
        assert pickle.loads(pickle.dumps(found.value)).blocks == (5,)
        assert not has_overlap(tmp_path, 5, (1, 0, 0))

    def test_no_half_written_slab_is_ever_read(self, tmp_path, monkeypatch):
        write_overlap(tmp_path, 5, (1, 0, 0), self.SLAB)

        def fails(path):
            raise OSError("no space left")

        monkeypatch.setattr(atomic, "synced", fails)
        for block in (5, 6):
            with pytest.raises(OSError, match="no space left"):
                write_overlap(tmp_path, block, (1, 0, 0), self.SLAB + 1)
        monkeypatch.undo()
        np.testing.assert_array_equal(read_overlap(tmp_path, 5, (1, 0, 0)), self.SLAB)
        with pytest.raises(DamagedOverlapError, match="6-100"):
            read_overlap(tmp_path, 6, (1, 0, 0))
        assert [path.name for path in tmp_path.rglob("*.slab")] == ["5-100.slab"]

    def test_dropped_once_or_twice(self, tmp_path):
        write_overlap(tmp_path, 5, (1, 0, 0), self.SLAB)
        write_overlap(tmp_path, 5, (0, 1, 0), self.SLAB)
        for _ in range(2):
            drop_overlap(tmp_path, 5, (1, 0, 0))
            with pytest.raises(DamagedOverlapError, match="5-100"):
                read_overlap(tmp_path, 5, (1, 0, 0))
        np.testing.assert_array_equal(read_overlap(tmp_path, 5, (0, 1, 0)), self.SLAB)

    def test_scratch_goes_as_a_whole(self, ledger):
        ledger.drop_scratch()
        write_overlap(ledger.path / "scratch", 5, (1, 0, 0), self.SLAB)
        ledger.drop_scratch()
        assert not (ledger.path / "scratch").exists()
        assert records_of(ledger) == RECORDS
