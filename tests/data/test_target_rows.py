"""The targets of rows are those of the columns, whatever lies beside each other."""

import numpy as np
import pytest
import torch

from mt2st_fast.data import target_rows
from mt2st_fast.data.target_rows import TargetRows

N = 50


def columns(**largest: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    found = {task: generator.integers(0, top + 1, N) for task, top in largest.items()}
    for task, top in largest.items():
        found[task][:3] = (-100, top, 0)
    found["scores"] = generator.random((N, 2), np.float32)
    found["last"] = generator.integers(0, 2, N)
    return found


@pytest.mark.parametrize("top", [5, 2**15 - 1, 2**15, 2**31 - 1, 2**31])
def test_targets_are_those_of_the_columns(top):
    given, rows = columns(a=4, b=top), np.array([1, 0, 2, 2, N - 1])
    found = TargetRows(given)(rows)
    assert list(found) == list(given)
    for task, column in given.items():
        assert torch.equal(found[task], torch.from_numpy(column[rows]))
        assert found[task].dtype == torch.from_numpy(column).dtype
        assert found[task].is_contiguous()


def test_a_large_corpus_has_no_second_copy_of_its_classes(monkeypatch):
    given, rows = columns(a=4, b=9), np.arange(4)
    monkeypatch.setattr(target_rows, "MOST_BYTES", N)
    targets = TargetRows(given)
    assert targets._classes == ()
    assert torch.equal(targets(rows)["b"], torch.from_numpy(given["b"][rows]))


def test_a_row_out_of_range_is_refused():
    with pytest.raises(IndexError):
        TargetRows(columns(a=4))(np.array([N]))


def test_a_targets_memory_is_its_own():
    rows, targets = np.arange(4), TargetRows(columns(a=4))
    first = targets(rows)
    before = first["a"].clone()
    targets(rows + 1)
    first["last"].fill_(7)
    assert torch.equal(first["a"], before)
