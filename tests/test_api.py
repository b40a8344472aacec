"""The public functions: keywords or a `JobConfig`, errors and results by name."""

from __future__ import annotations

import inspect
from dataclasses import asdict

import pytest

import bigdeconv
from bigdeconv import errors
from bigdeconv.config import JobConfig
from tests import make


@pytest.fixture
def settings(tmp_path):
    """Keywords of a small job of two blocks."""
    return {
        "input": str(make.volume(tmp_path / "in.zarr", make.scene(8, 32, 64))),
        "output": str(tmp_path / "out.zarr"),
        "psf": str(make.psf_tiff(tmp_path / "psf.tif")),
        "method": "rl",
        "iterations": 3,
        "block_shape": "8,32,32",
        "background": "auto",
        "device": "cpu",
    }


@pytest.mark.cluster
class TestRun:
    @pytest.fixture(autouse=True)
    def _on_the_shared_cluster(self, settings, cluster_address):
        settings["scheduler"] = cluster_address

    def test_keywords_do_what_a_config_does(self, settings, tmp_path):
        by_keywords = bigdeconv.run(**settings)
        by_config = bigdeconv.run(bigdeconv.make_config(settings | {"output": str(tmp_path / "config" / "out.zarr")}))
        assert isinstance(by_keywords, bigdeconv.RunSummary)
        assert make.snapshot(tmp_path / "out.zarr") == make.snapshot(tmp_path / "config" / "out.zarr")
        differing = {"output", "seconds"}
        one, other = ({k: v for k, v in asdict(s).items() if k not in differing} for s in (by_keywords, by_config))
        assert one == other
        assert (by_keywords.complete, by_keywords.blocks_done, by_keywords.output) == (True, 2, settings["output"])

    def test_keywords_go_before_a_config(self, settings, tmp_path):
        config = bigdeconv.make_config(settings)
        summary = bigdeconv.run(config, output=str(tmp_path / "other.zarr"), iterations="2")
        assert summary.complete
        assert not (tmp_path / "out.zarr").exists()
        stored = make.plan_of(tmp_path / "other.zarr")["facts"]["config"]
        assert stored["iterations"] == 2
        assert {k: v for k, v in stored.items() if k not in {"output", "iterations"}} == {
            k: v for k, v in config.model_dump(mode="json").items() if k not in {"output", "iterations"}
        }

    def test_the_other_functions_take_what_run_has_written(self, settings):
        bigdeconv.run(**settings)
        output = settings["output"]
        with pytest.raises(bigdeconv.OutputExistsError, match=r"out\.zarr' exists"):
            bigdeconv.run(**settings)
        assert bigdeconv.run(**settings, resume=True).complete
        assert bigdeconv.resume(output).complete
        assert bigdeconv.status(output) == {
            "output": output,
            "state": "complete",
            "blocks_total": 2,
            "blocks_done": 2,
            "blocks_skipped": 0,
            "blocks_failed": 0,
            "failures": [],
        }
        assert bigdeconv.validate(output, deep=True) == []
        assert bigdeconv.report(output)["good"] is True
        assert bigdeconv.run(**settings | {"iterations": 2}, overwrite=True).complete


class TestPlan:
    def test_keywords_do_what_a_config_does(self, settings):
        by_keywords, by_config = bigdeconv.plan(**settings), bigdeconv.plan(bigdeconv.make_config(settings))
        assert isinstance(by_keywords, bigdeconv.JobPlan)
        assert by_keywords.facts == by_config.facts
        assert by_keywords.facts.n_blocks == 2

    def test_it_needs_no_output(self, settings):
        del settings["output"]
        assert bigdeconv.plan(**settings).facts.n_blocks == 2

    def test_of_a_volume_to_come(self, settings):
        planned = bigdeconv.plan(**settings | {"input": "to-come.zarr"}, tczyx_shape=(2, 3, 8, 32, 64))
        assert planned.facts.n_blocks == 2 * 2 * 3


@pytest.mark.parametrize("function", [bigdeconv.run, bigdeconv.plan], ids=lambda f: f.__name__)
def test_a_wrong_keyword_is_named(function, settings):
    with pytest.raises(bigdeconv.InvalidInputError, match=r"^blok_shape: no such setting"):
        function(**settings, blok_shape="8,8,8")
    with pytest.raises(bigdeconv.InvalidInputError, match=r"^iterations: got 'many'; "):
        function(**settings | {"iterations": "many"})
    with pytest.raises(bigdeconv.InvalidInputError, match=r"^input: missing"):
        function(**{k: v for k, v in settings.items() if k != "input"})


def test_no_setting_has_the_name_of_another_argument():
    """Else a keyword would be taken from the settings."""
    for function in (bigdeconv.run, bigdeconv.plan):
        own = {n for n, p in inspect.signature(function).parameters.items() if p.kind is not p.VAR_KEYWORD}
        assert own & set(JobConfig.model_fields) == set()


def test_every_error_is_public_and_one_of_pythons_own_kinds():
    raised = {n: e for n, e in vars(errors).items() if inspect.isclass(e) and issubclass(e, Exception)}
    assert len(raised) == 8
    for name, error in raised.items():
        assert getattr(bigdeconv, name) is error
        assert name in bigdeconv.__all__
        assert issubclass(error, bigdeconv.BigdeconvError)
        if error is not bigdeconv.BigdeconvError:
            assert any(issubclass(error, kind) for kind in (ValueError, OSError, MemoryError))


def test_what_the_functions_return_and_take_is_public():
    for name in ("RunSummary", "JobPlan", "Events", "JobConfig", "PSF"):
        assert inspect.isclass(getattr(bigdeconv, name))
        assert name in bigdeconv.__all__
        assert name in dir(bigdeconv)
    assert inspect.signature(bigdeconv.run).return_annotation == "RunSummary"
    assert inspect.signature(bigdeconv.resume).return_annotation == "RunSummary"
    assert inspect.signature(bigdeconv.plan).return_annotation == "JobPlan"
