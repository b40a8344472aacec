"""Help and errors come at once: what is heavy loads only when it is used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "dask", "distributed", "zarr", "numpy", "scipy", "numba", "llvmlite"}


def loaded_by(code):
    """Names of the top-level modules that a fresh interpreter has after running ``code``."""
    code = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=60
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import bigdeconv, bigdeconv_cli.main",
        "import bigdeconv.planner, bigdeconv.config",
        "from bigdeconv_cli.main import app; app(['run', '--help'], standalone_mode=False)",
    ],
    ids=["packages", "planning", "help"],
)
def test_nothing_heavy_is_loaded(code):
    modules = loaded_by(code)
    assert "bigdeconv" in modules
    assert modules & HEAVY == set()


def test_planning_needs_the_standard_library_alone():
    third_party = loaded_by("import bigdeconv.planner") - loaded_by("pass") - set(sys.stdlib_module_names)
    assert third_party == {"bigdeconv"}


def test_the_compiler_comes_with_the_prior_that_needs_it():
    modules = loaded_by("import bigdeconv.pipeline, bigdeconv.engine.block")
    assert "torch" in modules
    assert modules & {"numba", "llvmlite"} == set()


def test_the_probe_sees_what_is_loaded():
    assert "numpy" in loaded_by("import bigdeconv.blending")


def test_every_public_name_is_there():
    import bigdeconv

    for name in bigdeconv.__all__:
        assert getattr(bigdeconv, name) is not None
    with pytest.raises(AttributeError, match="'bigdeconv' has no attribute 'deconvolution_of'"):
        bigdeconv.deconvolution_of  # noqa: B018
