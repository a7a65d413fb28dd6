"""Several processes that divide batches have all of their rows together, each once, and stand alike."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from mt2st_fast.data import BagBatches, TokenBatches
from mt2st_fast.data.word_batches import WordBatches
from tests.training.processes.runs import corpus

COUNT = 3


def windows():
    return TokenBatches(corpus("token"), 25, 1, "main")


def bags():
    return BagBatches(corpus("document"), 16, "main", fixed_batches=True)


def pairs():
    numbers = np.random.default_rng(1).permutation(80).reshape(40, 2)
    return WordBatches(numbers, np.arange(40, dtype=np.float32), "similarity", 9, 1, 5)


def rows_of(batch):
    """The inputs of each row, as far as they go."""
    inputs, _ = batch
    if isinstance(inputs, tuple):
        types, offsets = inputs
        return [tuple(types[a:b].tolist()) for a, b in pairwise(offsets.tolist())]
    return [tuple(row) for row in inputs.tolist()]


@pytest.mark.parametrize("make", [windows, bags, pairs])
def test_parts_are_the_batch(make):
    whole, parts = make(), [make() for _ in range(COUNT)]
    for rank, part in enumerate(parts):
        part.take_part(rank, COUNT)
    for batch, *of_parts in zip(whole, *parts, strict=True):
        rows = [rows_of(part) for part in of_parts]
        assert sorted(sum(rows, start=[])) == sorted(rows_of(batch))  # noqa: RUF017 (a few)
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
    assert all(part.state_dict() == whole.state_dict() for part in parts)


@pytest.mark.parametrize("make", [windows, bags, pairs])
def test_batches_that_were_divided_are_whole_again(make):
    whole, part = make(), make()
    part.take_part(1, COUNT)
    next(iter(whole)), next(iter(part))
    part.take_part(0, 1)
    assert rows_of(next(iter(part))) == rows_of(next(iter(whole)))
