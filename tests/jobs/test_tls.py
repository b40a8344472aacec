"""A cluster that speaks in the open is named, or refused."""

from __future__ import annotations

import pytest

from bigdeconv.errors import InvalidInputError
from bigdeconv.jobs.preconditions import require_tls


def test_it_is_warned_of():
    (sentence,) = require_tls("tcp://10.0.0.1:8786", wanted=False)
    assert "run code as you" in sentence
    assert "--protocol tls" in sentence


def test_it_is_refused_where_tls_is_demanded():
    with pytest.raises(InvalidInputError, match="require_tls"):
        require_tls("tcp://10.0.0.1:8786", wanted=True)


@pytest.mark.parametrize("address", ["tls://10.0.0.1:8786", "inproc://1/2"])
@pytest.mark.parametrize("wanted", [False, True])
def test_others_pass(address, wanted):
    assert require_tls(address, wanted=wanted) == []
