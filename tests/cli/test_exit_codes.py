"""Exit codes: one for each kind of error, as text and as JSON."""

from __future__ import annotations

import pytest

from bigdeconv.errors import BudgetError, ClusterLostError, InvalidInputError, OutputExistsError, StoreError
from tests import make, patience
from tests.cli.jobs import TWO_BLOCKS
from tests.make import RL, bigdeconv


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
        printed = make.one_object(result.stdout)
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
    from bigdeconv.engine.clusters import address

    monkeypatch.setattr(address, "JOIN_SECONDS", 0.5)
    output = make.copied(finished, tmp_path)
    with make.unchanged(tmp_path):
        for place, *flags in ([tmp_path / "new.zarr"], [output, "--overwrite"]):
            more = [*flags, *(["--json"] if as_json else [])]
            job = (source[0], place, "--psf", source[1], *TWO_BLOCKS, "--scheduler", "tcp://127.0.0.1:9")
            result = bigdeconv("run", *job, *more)
            assert result.exit_code == 5
            said = make.one_object(result.stdout)["error"] if as_json else result.stderr
            for words in ("tcp://127.0.0.1:9", "tcp://HOST:PORT", "start at least one worker"):
                assert words in said


@pytest.mark.cluster
def test_a_scheduler_file_that_leads_nowhere_is_named(source, tmp_path):
    (tmp_path / "text.json").write_text("no JSON")
    with make.unchanged(tmp_path):
        started = []
        for file in ("missing.json", "text.json"):
            job = (source[0], tmp_path / f"{file}.zarr", "--psf", source[1], *RL, "--scheduler", tmp_path / file)
            started.append((file, make.start("run", *job, cwd=tmp_path)))
        try:
            for file, process in started:
                _, said = patience.outcome(process, 20)
                assert process.returncode == 5
                assert file in said
                assert "Traceback" not in said
        finally:
            for _, process in started:
                process.kill()
