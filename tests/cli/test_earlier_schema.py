"""Runs that an earlier version has begun: refused in one sentence that names both schemas, and replaced if asked to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bigdeconv.storage.ledger import ledger_path
from tests import make
from tests.cli.jobs import TWO_BLOCKS
from tests.make import bigdeconv

EXAMPLE = (Path(__file__).parent / "plan-schema-1.json").read_text()
"""Stored by commit 057a508 for `source` and `TWO_BLOCKS`; places are put in."""
SENTENCE = (
    "has schema 1, expected 5; finish the run with the version of bigdeconv that began it, "
    "or start it again with --overwrite."
)


def make_earlier(output, source, names=("",)):
    """Put a plan of schema 1 into the ledger of an output."""
    plan = json.loads(EXAMPLE.replace("OUTPUT", str(output)).replace("INPUT", str(source[0])))
    plan["config"]["psf"] = [str(source[1])]
    plan["images"]["names"] = list(names)
    (ledger_path(output) / "plan.json").write_text(json.dumps(plan))


@pytest.fixture
def earlier(source, finished, tmp_path):
    """An output with its journal, begun by an earlier version."""
    output = make.copied(finished, tmp_path)
    make.forget_last_block(output)
    make_earlier(output, source)
    return output


def test_the_example_is_of_the_form_that_is_meant():
    """Facts were not embedded, and what the user left open was a word."""
    plan = json.loads(EXAMPLE)
    assert plan["schema_version"] == 1
    assert "facts" not in plan
    assert plan["config"]["tau"] == plan["identity"]["parameters"]["tau"] == "auto"


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("command", ["resume", "status", "report", "run"])
def test_a_plan_of_an_earlier_schema_is_refused(command, as_json, source, earlier, tmp_path, no_cluster):
    run = ("run", source[0], earlier, "--psf", source[1], *TWO_BLOCKS, "--resume")
    with make.unchanged(tmp_path):
        result = bigdeconv(*(run if command == "run" else (command, earlier)), *(["--json"] if as_json else []))
    assert result.exit_code == 3
    said = make.one_object(result.stdout)["error"] if as_json else result.stderr
    assert said.rstrip().endswith(f"output: the plan '{ledger_path(earlier) / 'plan.json'}' {SENTENCE}")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("schema", [2, 3, 4, 6, None, "5"])
def test_so_is_one_of_any_other_schema(schema, finished, tmp_path, no_cluster):
    output = make.copied(finished, tmp_path)
    plan = make.plan_of(output) | {"schema_version": schema}
    (ledger_path(output) / "plan.json").write_text(json.dumps(plan))
    result = bigdeconv("status", output)
    assert result.exit_code == 3
    assert f"has schema {schema!r}, expected 5" in result.stderr


def test_a_run_without_resume_says_what_to_do_about_it(source, earlier, tmp_path, no_cluster):
    with make.unchanged(tmp_path):
        result = bigdeconv("run", source[0], earlier, "--psf", source[1], *TWO_BLOCKS)
    assert result.exit_code == 3
    assert "--overwrite" in result.stderr


def test_it_can_be_replaced(source, earlier, finished, cluster_address):
    job = (source[0], earlier, "--psf", source[1], *TWO_BLOCKS, "--scheduler", cluster_address)
    result = bigdeconv("run", *job, "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert make.plan_of(earlier)["schema_version"] == 5
    assert make.snapshot(earlier) == make.snapshot(finished)


def test_so_can_a_folder_of_images(source, finished, cluster_address, tmp_path):
    """The names of the images, which tell that nothing else lies in the folder, stood elsewhere in schema 1."""
    for name in ("a.zarr", "b.zarr"):
        make.volume(tmp_path / "data" / name, make.scene(8, 16, 16))
    job = (tmp_path / "data" / "*.zarr", tmp_path / "out", "--psf", source[1], *TWO_BLOCKS)
    job = (*job, "--scheduler", cluster_address)
    assert bigdeconv("run", *job).exit_code == 0
    make_earlier(tmp_path / "out", source, ("a.zarr", "b.zarr"))
    (tmp_path / "out" / "notes").mkdir()
    with make.unchanged(tmp_path):
        refused = bigdeconv("run", *job, "--overwrite")
    assert refused.exit_code == 3
    assert "not a zarr group" in refused.stderr
    (tmp_path / "out" / "notes").rmdir()
    result = bigdeconv("run", *job, "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.zarr", "b.zarr"}


def test_a_record_that_was_changed_is_refused(finished, tmp_path, no_cluster):
    output = make.copied(finished, tmp_path)
    plan = make.plan_of(output)
    del plan["facts"]["plans"][0]["core_shape"]
    (ledger_path(output) / "plan.json").write_text(json.dumps(plan))
    with make.unchanged(tmp_path):
        result = bigdeconv("resume", output)
    assert result.exit_code == 3
    assert "plan.json' was changed after the run began" in result.stderr
    assert "start the run again with --overwrite" in result.stderr
