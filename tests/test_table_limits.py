"""A table that does not fit into memory: its sizes are named, by whatever library it was asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mt2st_fast import BagEncoder, InputError
from mt2st_fast.table_limits import naming_table

ROWS, DIM = 2**40, 2**10  # more than any allocator gives
SAID = "a table of 1,099,511,627,776 vectors of dimension 1,024 takes 4,503,600 GB, which is more than there is memory"


@pytest.mark.parametrize(
    "make", [lambda: np.zeros((ROWS, DIM), np.float32), lambda: torch.empty(ROWS, DIM, dtype=torch.float32)]
)
def test_the_sizes_of_a_table_are_named(make) -> None:
    with pytest.raises(InputError, match=SAID), naming_table(ROWS, DIM):
        make()


def test_an_encoder_says_so() -> None:
    with pytest.raises(InputError, match=SAID):
        BagEncoder(ROWS, DIM, sparse=True)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shape"), naming_table(2, 2):
        torch.empty(4, device="cpu").view(3)
