"""Tuples that kernels read from memory."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numba
import numpy as np
import pytest

from mt2st_fast.kernels.machine.held import Floats2, Held, Ints1, reader
from mt2st_fast.kernels.machine.jit import entry

RECORD = np.dtype([("count", np.int64), ("rate", np.float32)])


class Inner(NamedTuple):
    """Within another tuple."""

    table: Floats2
    number: int


class Outer(NamedTuple):
    """Everything that a field may be."""

    number: int
    inner: Inner
    counts: Ints1
    records: Annotated[np.ndarray, RECORD, 1]


read_outer = reader(Outer)


@entry
def _total(address):
    outer = read_outer(address)
    total = 1000.0 * outer.number + outer.inner.number
    for i in range(outer.inner.table.shape[0]):
        for j in range(outer.inner.table.shape[1]):
            total += outer.inner.table[i, j] * outer.counts[j]
    for record in outer.records:
        total += record["count"] * record["rate"]
    outer.counts[0] += 1
    outer.records[1]["count"] = len(outer.inner.table)
    return total


@entry
def _itself(address):
    return read_outer(address)


def outer(rows: int = 2) -> Outer:
    records = np.array([(2, 0.5), (3, 2.0)], RECORD)
    return Outer(7, Inner(np.arange(3 * rows, dtype=np.float32).reshape(rows, 3), 5), np.arange(3), records)


def test_a_kernel_reads_and_writes_what_is_held():
    held = Held(outer())
    table = held.value.inner.table
    assert _total(held.address) == 7005 + (table * np.arange(3)).sum() + 1 + 6
    assert held.value.counts.tolist() == [1, 1, 2]
    assert held.value.records["count"].tolist() == [2, 2]


def test_it_has_the_type_of_an_argument():
    held = Held(outer())
    assert _itself.compile("(int64,)") is not None
    [compiled] = _itself.overloads.values()
    assert compiled.signature.return_type == numba.typeof(held.value)


def test_an_empty_array_is_read():
    assert _total(Held(outer(0)).address) == 7005 + 1 + 6


@pytest.mark.parametrize(
    "wrong",
    [np.zeros(3, np.float32), np.zeros((2, 3)), np.zeros((3, 2), np.float32).T],
    ids=["axes", "dtype", "order"],
)
def test_an_array_that_is_not_as_annotated_is_refused(wrong):
    with pytest.raises(TypeError, match=r"table is float.* not 2 axes of .*float32.* in C order"):
        Held(outer()._replace(inner=Inner(wrong, 5)))
