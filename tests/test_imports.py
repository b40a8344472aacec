"""Help and errors come at once, since what is heavy loads only when it is used; and folders are told alike everywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest

from tests.make import ROOT
from tests.patience import seconds

HEAVY = {"torch", "dask", "distributed", "zarr", "numpy", "scipy", "numba", "llvmlite"}


def loaded_by(code):
    """Names of the top-level modules that a fresh interpreter has after running ``code``."""
    code = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=seconds(20))
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.cluster
class TestLoading:
    @pytest.mark.parametrize(
        "code",
        [
            "import bigdeconv, bigdeconv_cli.main",
            "import bigdeconv.planning.planner, bigdeconv.config",
            "from bigdeconv_cli.main import app; app(['run', '--help'], standalone_mode=False)",
        ],
        ids=["packages", "planning", "help"],
    )
    def test_nothing_heavy_is_loaded(self, code):
        modules = loaded_by(code)
        assert "bigdeconv" in modules
        assert modules & HEAVY == set()

    def test_planning_needs_the_standard_library_alone(self):
        third_party = loaded_by("import bigdeconv.planning.planner") - loaded_by("pass") - set(sys.stdlib_module_names)
        assert third_party == {"bigdeconv"}

    def test_the_compiler_comes_with_the_prior_that_needs_it(self):
        modules = loaded_by("import bigdeconv.pipeline, bigdeconv.engine.block")
        assert "torch" in modules
        assert modules & {"numba", "llvmlite"} == set()

    def test_what_writes_metadata_comes_with_the_first_output(self):
        modules = loaded_by("import bigdeconv.pipeline, bigdeconv.engine.tasks, bigdeconv.engine.worker_preload")
        assert modules & {"ome_zarr", "skimage", "ome_zarr_models", "matplotlib", "pandas"} == set()

    def test_the_probe_sees_what_is_loaded(self):
        assert "numpy" in loaded_by("import bigdeconv.numerics.blending")


def test_every_public_name_is_there():
    import bigdeconv

    for name in bigdeconv.__all__:
        assert getattr(bigdeconv, name) is not None
    assert dir(bigdeconv) == sorted(bigdeconv.__all__)
    with pytest.raises(AttributeError, match="'bigdeconv' has no attribute 'deconvolution_of'"):
        bigdeconv.deconvolution_of  # noqa: B018


def enforced_layers():
    """Return the layers that import-linter enforces, from above: sets of names of folders and modules."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [{short(name) for name in layer.split("|")} for layer in layers]


def told_layers(document):
    """Return the lines of a document's block of layers, from above: sets of names, without the phrases beside them."""
    (block,) = re.findall(r"^```layers\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    return [{short(name) for name in re.split(r"\s{2,}", line.strip())[0].split(" | ")} for line in block.splitlines()]


def short(name):
    return name.strip().removeprefix("bigdeconv.").removeprefix("bigdeconv_").removesuffix("/").removesuffix(".py")


class TestLayers:
    @pytest.mark.parametrize("place", ["README.md", ".github/CONTRIBUTING.md"])
    def test_documents_tell_those_that_are_enforced(self, place):
        """In the same order; what stands in one layer may stand on one line, with ``|``, or on lines of its own."""
        told = told_layers((ROOT / place).read_text())
        for layer in enforced_layers():
            found = set()
            while told and not layer <= found:
                line = told.pop(0)
                assert line <= layer, (line, layer)
                found |= line
            assert found == layer
        assert told == []

    def test_each_line_has_a_phrase(self):
        (block,) = re.findall(r"^```layers\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
        for line in block.splitlines():
            assert re.fullmatch(r" *\w+(?: \| \w+)*  +\S.*", line), line

    def test_every_folder_and_module_is_in_one_layer(self):
        names = [name for layer in enforced_layers() for name in layer]
        assert len(set(names)) == len(names)
        package = ROOT / "bigdeconv"
        found = {p.name for p in package.iterdir() if (p / "__init__.py").exists()}
        found |= {p.stem for p in package.glob("*.py") if p.stem != "__init__"}
        assert set(names) == found | {"cli"}

    def test_the_reading_of_a_block(self):
        text = "```layers\nbigdeconv_cli   parses\n  a | b   two  rooms\n  c.py\n```\n"
        assert told_layers(text) == [{"cli"}, {"a", "b"}, {"c"}]
