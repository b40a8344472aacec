"""Fixtures of the tests of the storage."""

from __future__ import annotations

import pytest

from tests.storage.images import LAYOUTS


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def layout(request):
    return request.param
