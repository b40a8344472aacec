"""The ledger survives what may happen to its driver at any byte."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bigdeconv.errors import OutputExistsError, StoreError
from bigdeconv.storage.ledger import Ledger, drop_rim, ledger_path, read_rim, write_rim

DOCUMENT = {"schema": 1, "core": [8, 8, 8], "unit": "µm"}
ARRAYS = {"psf": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "flags": np.array([1, 0], np.uint8)}
RECORDS = [{"block": 0, "max": 1.5}, {"block": 1, "note": "µ\n\r\u2028 σ"}, {"block": 2, "skipped": True}]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "restored.zarr"


@pytest.fixture
def ledger(output):
    ledger = Ledger.create(output, DOCUMENT, ARRAYS)
    with ledger.writing():
        for record in RECORDS:
            ledger.append(record)
    return ledger


class TestPlan:
    def test_comes_back_as_stored(self, output, ledger):
        opened = Ledger.open(output)
        assert opened.document() == DOCUMENT
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
        Ledger.create(output, DOCUMENT, ARRAYS)
        assert not output.exists()
        assert [p.name for p in output.parent.iterdir()] == ["restored.zarr.bigdeconv"]

    def test_is_never_replaced(self, output, ledger):
        with pytest.raises(
            OutputExistsError, match=r"^output: there is a ledger .*\.bigdeconv'; .*--resume.*--overwrite"
        ):
            Ledger.create(output, {"other": 1}, {})
        assert Ledger.open(output).document() == DOCUMENT

    def test_missing(self, output):
        with pytest.raises(StoreError, match=r"^output: '.*restored.zarr' has no ledger at .*; start it with"):
            Ledger.open(output)

    def test_appears_whole_or_not_at_all(self, output):
        with pytest.raises(TypeError, match="not JSON serializable"):
            Ledger.create(output, {"what": object()}, ARRAYS)
        assert not ledger_path(output).exists()
        with pytest.raises(StoreError, match="no ledger"):
            Ledger.open(output)
        assert Ledger.create(output, DOCUMENT, ARRAYS).document() == DOCUMENT

    def test_a_damaged_plan_is_an_error_of_the_store(self, output, ledger):
        (ledger.path / "plan.json").write_text('{"schema": 1, "co')
        with pytest.raises(StoreError, match=r"plan\.json"):
            Ledger.open(output).document()

    def test_removed(self, output, ledger):
        ledger.remove()
        assert not ledger.path.exists()
        assert Ledger.create(output, DOCUMENT, ARRAYS).document() == DOCUMENT


class TestJournal:
    def test_comes_back_in_order(self, output, ledger):
        assert list(Ledger.open(output).records()) == RECORDS
        assert list(Ledger.create(output.with_name("new"), {}, {}).records()) == []

    def test_goes_on_where_it_stopped(self, output, ledger):
        again = Ledger.open(output)
        with again.writing():
            again.append({"block": 3})
        assert list(again.records()) == [*RECORDS, {"block": 3}]

    def test_each_line_is_on_disk_at_once(self, ledger):
        with ledger.writing():
            ledger.append({"block": 3})
            assert list(Ledger.open(ledger.path.with_suffix("")).records())[-1] == {"block": 3}

    def test_cut_at_every_byte(self, output, ledger):
        """A crash may leave any part of the last line: it never counts, and the next line does not run into it."""
        path = ledger.path / "journal.jsonl"
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        assert len(lines) == 3
        for length in range(len(whole) - len(lines[-1]), len(whole) + 1):
            path.write_bytes(whole[:length])
            expected = RECORDS if length == len(whole) else RECORDS[:2]
            torn = Ledger.open(output)
            assert list(torn.records()) == expected
            with torn.writing():
                assert list(torn.records()) == expected
                torn.append({"block": 9})
            assert list(torn.records()) == [*expected, {"block": 9}]
            assert all(json.loads(line) for line in path.read_bytes().splitlines())

    def test_the_first_line_torn(self, output):
        ledger = Ledger.create(output, {}, {})
        (ledger.path / "journal.jsonl").write_bytes(b'{"blo')
        assert list(ledger.records()) == []
        with ledger.writing():
            ledger.append({"block": 0})
        assert list(ledger.records()) == [{"block": 0}]

    def test_a_damaged_line_in_the_middle_is_an_error_of_the_store(self, output, ledger):
        path = ledger.path / "journal.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(lines[0] + b'{"block": \n' + lines[2])
        with pytest.raises(StoreError, match=r"journal\.jsonl.*line 2"):
            list(Ledger.open(output).records())

    def test_append_only_while_writing(self, ledger):
        with pytest.raises(AssertionError, match=r"outside of `with ledger\.writing"):
            ledger.append({"block": 3})
        with pytest.raises(RuntimeError, match="stop"), ledger.writing():
            raise RuntimeError("stop")
        with pytest.raises(AssertionError, match=r"outside of `with ledger\.writing"):
            ledger.append({"block": 3})
        assert list(ledger.records()) == RECORDS


HOLD = """
import sys
from bigdeconv.storage.ledger import Ledger
with Ledger.open(sys.argv[1]).writing():
    print("held", flush=True)
    sys.stdin.readline()
"""


class TestLock:
    REFUSED = r"^output: another run is writing it \(the lock '.*lock' is held\); wait for it or stop it"

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
                assert ledger.is_being_written()
                before = (ledger.path / "journal.jsonl").read_bytes()
                with pytest.raises(StoreError, match=self.REFUSED), ledger.writing():
                    pytest.fail("two drivers wrote one output")
                assert (ledger.path / "journal.jsonl").read_bytes() == before
            finally:
                holder.kill()  # as a crash would: nothing is tidied up
                holder.wait()
        assert not ledger.is_being_written()
        with ledger.writing():
            ledger.append({"block": 3})
        assert list(ledger.records()) == [*RECORDS, {"block": 3}]

    def test_one_driver_per_process(self, output, ledger):
        other = Ledger.open(output)
        with ledger.writing():
            assert other.is_being_written()
            with pytest.raises(StoreError, match=self.REFUSED), other.writing():
                pytest.fail("two drivers wrote one output")
            ledger.append({"block": 3})
        assert not other.is_being_written()

    def test_released_after_an_error(self, ledger):
        with pytest.raises(RuntimeError, match="stop"), ledger.writing():
            raise RuntimeError("stop")
        assert not ledger.is_being_written()
        with ledger.writing():
            ledger.append({"block": 3})
        assert len(list(ledger.records())) == 4


class TestRims:
    RIM = np.random.default_rng(0).random((2, 3, 4), np.float32)

    def test_round_trip(self, tmp_path):
        scratch = tmp_path / "scratch"
        for block in (0, 999, 1000, 123_456_789):
            write_rim(scratch, block, (0, 1, 1), block + self.RIM)
        for block in (0, 999, 1000, 123_456_789):
            found = read_rim(scratch, block, (0, 1, 1))
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, block + self.RIM)

    def test_an_empty_rim(self, tmp_path):
        write_rim(tmp_path, 5, (1, 0, 0), np.empty((0, 0, 0), np.float32))
        assert read_rim(tmp_path, 5, (1, 0, 0)).shape == (0, 0, 0)

    def test_each_block_and_direction_has_its_own(self, tmp_path):
        places = [(b, d) for b in (1, 10, 11, 110) for d in [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1)]]
        for n, place in enumerate(places):
            write_rim(tmp_path, *place, np.full((1, 1, 1), n, np.float32))
        assert [read_rim(tmp_path, *place).item() for place in places] == list(range(len(places)))

    def test_written_again_it_is_the_later_one(self, tmp_path):
        """A block that is solved again leaves its rims again."""
        write_rim(tmp_path, 5, (1, 0, 0), self.RIM)
        write_rim(tmp_path, 5, (1, 0, 0), self.RIM + 1)
        np.testing.assert_array_equal(read_rim(tmp_path, 5, (1, 0, 0)), self.RIM + 1)

    def test_no_half_written_rim_is_ever_read(self, tmp_path, monkeypatch):
        write_rim(tmp_path, 5, (1, 0, 0), self.RIM)

        def fails(file, array, **_):
            file.write(b"\x93NUMPY half")
            raise OSError("no space left")

        monkeypatch.setattr(np, "save", fails)
        for block in (5, 6):
            with pytest.raises(OSError, match="no space left"):
                write_rim(tmp_path, block, (1, 0, 0), self.RIM + 1)
        monkeypatch.undo()
        np.testing.assert_array_equal(read_rim(tmp_path, 5, (1, 0, 0)), self.RIM)
        with pytest.raises(FileNotFoundError, match="6-100"):
            read_rim(tmp_path, 6, (1, 0, 0))

    def test_dropped_once_or_twice(self, tmp_path):
        write_rim(tmp_path, 5, (1, 0, 0), self.RIM)
        write_rim(tmp_path, 5, (0, 1, 0), self.RIM)
        for _ in range(2):
            drop_rim(tmp_path, 5, (1, 0, 0))
            with pytest.raises(FileNotFoundError, match="5-100"):
                read_rim(tmp_path, 5, (1, 0, 0))
        np.testing.assert_array_equal(read_rim(tmp_path, 5, (0, 1, 0)), self.RIM)

    def test_scratch_goes_as_a_whole(self, ledger):
        ledger.drop_scratch()
        write_rim(ledger.path / "scratch", 5, (1, 0, 0), self.RIM)
        ledger.drop_scratch()
        assert not (ledger.path / "scratch").exists()
        assert list(ledger.records()) == RECORDS
