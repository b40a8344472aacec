"""`bigdeconv status` and `validate`."""

from __future__ import annotations

import shutil

import pytest

from bigdeconv.storage.ledger import ledger_path
from tests import make
from tests.make import bigdeconv


def test_status_and_validate_of_a_finished_run(finished):
    before = make.snapshot(finished.parent)
    status = make.one_object(bigdeconv("status", finished, "--json").stdout)
    assert status == {
        "output": str(finished),
        "state": "complete",
        "blocks_total": 2,
        "blocks_done": 2,
        "blocks_skipped": 0,
        "blocks_failed": 0,
        "failures": [],
    }
    assert bigdeconv("status", finished).stdout == "complete: 2 of 2 blocks\n"
    assert bigdeconv("status", finished, "--watch").stdout == "complete: 2 of 2 blocks\n"
    assert bigdeconv("validate", finished, "--deep").stdout == "valid\n"
    assert make.one_object(bigdeconv("validate", finished, "--json").stdout) == {"valid": True, "problems": []}
    assert make.snapshot(finished.parent) == before


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("command", ["status", "resume"])
def test_without_a_ledger_there_is_nothing_to_tell_or_resume(command, as_json, source, no_cluster):
    for place in (source[0], source[0] / "nowhere"):
        result = bigdeconv(command, place, *(["--json"] if as_json else []))
        assert result.exit_code == 3
        said = make.one_object(result.stdout)["error"] if as_json else result.stderr
        assert str(place) in said
        assert "no ledger" in said
        assert "bigdeconv run" in said


@pytest.mark.parametrize("command", ["status", "resume"])
@pytest.mark.parametrize(
    "content", ["", '{"schema_version": 1', '{"schema_version": 99}'], ids=["empty", "cut", "newer"]
)
def test_a_ledger_that_cannot_be_read_is_an_error_that_names_it(content, command, finished, tmp_path, no_cluster):
    output = make.copied(finished, tmp_path)
    (ledger_path(output) / "plan.json").write_text(content)
    with make.unchanged(tmp_path):
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
    printed = make.one_object(result.stdout)
    assert printed["valid"] is False
    assert any("'0'" in problem for problem in printed["problems"])


def test_only_a_deep_look_finds_a_damaged_chunk(tmp_path):
    image = make.volume(tmp_path / "in.zarr", make.scene(4, 8, 8))
    make.flip(image / "0" / "c" / "0" / "0" / "0")
    assert bigdeconv("validate", image).exit_code == 0
    result = bigdeconv("validate", image, "--deep")
    assert result.exit_code == 3
    assert "cannot decode array '0'" in result.stdout


def test_many_problems_are_not_all_printed(finished, monkeypatch):
    monkeypatch.setattr("bigdeconv.pipeline.validate", lambda *_, **__: [f"{n}: {'x' * 5000}" for n in range(40)])
    printed = bigdeconv("validate", finished).stdout
    assert len(printed) < 20_000
    assert printed.endswith("and 25 more; --json lists them\nnot valid\n")
    assert len(make.one_object(bigdeconv("validate", finished, "--json").stdout)["problems"]) == 40
