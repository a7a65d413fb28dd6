"""Every kind of training that bench.first_step times still trains."""

import pytest

from bench.first_step import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_first_step_runs(kind):
    KINDS[kind]()
