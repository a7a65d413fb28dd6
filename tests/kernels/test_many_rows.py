"""Calls with as many rows as a GPU's memory holds: no offset overflows 32 bits, and more rows are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind
from mt2st_fast.kernels.heads.on_triton.targets import MOST_ROWS, locate_targets
from tests.kernels.interpreter import run_interpreted


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What the last programs of such calls have stored."""
    out = tmp_path_factory.mktemp("rows") / "found.npz"
    run_interpreted("tests.kernels.interpret_many_rows", str(out))
    with np.load(out) as stored:
        return dict(stored)


@pytest.mark.parametrize(
    "case", ["tile", "tile-features", "tile-weight", "packed", "chunked", "many", "upstream", "draws"]
)
def test_the_last_rows_are_reached(computed, case):
    np.testing.assert_allclose(computed[case], computed[f"{case}/true"], rtol=2e-3, atol=1e-6)


def test_more_rows_than_kernels_count_are_refused():
    layout = HeadLayout((HeadSpec(Kind.SOFTMAX, 2),))
    with pytest.raises(ValueError, match=r"at most 2,147,479,552 rows, not 2,147,479,553: split the batch"):
        locate_targets([torch.zeros(1, dtype=torch.int64)], layout, MOST_ROWS + 1)
