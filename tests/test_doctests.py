"""The examples in docstrings do what they show."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import bigdeconv


def modules_with_examples():
    """Names of the modules whose source shows an example."""
    found = ["bigdeconv", *(m.name for m in pkgutil.walk_packages(bigdeconv.__path__, "bigdeconv."))]
    return [name for name in found if ">>> " in Path(find_spec(name).origin).read_text()]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name):
    result = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


def test_public_functions_show_an_example():
    """Those that need no files."""
    for name in ("deconvolve", "plan", "PSF", "JobConfig"):
        assert ">>> " in getattr(bigdeconv, name).__doc__, name
