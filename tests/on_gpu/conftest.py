"""Every test here needs a GPU, and is skipped one by one without: imports, names and parameters are run everywhere."""

from __future__ import annotations

import pytest

from tests.on_gpu import helpers


@pytest.fixture(autouse=True)
def _on_a_gpu() -> None:
    if reason := helpers.obstacle():
        pytest.skip(reason)
