"""Groups of heads: every column of a row of logits is some program's own, which holds all of its columns."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from mt2st_fast import HeadLayout, HeadSpec, Kind
from mt2st_fast.kernels.heads.on_triton.groups import MOST_EQUAL, MOST_HEADS, group_heads


def layout_of(*sizes: int) -> HeadLayout:
    return HeadLayout(tuple(HeadSpec(Kind.SOFTMAX, size) for size in sizes))


@pytest.mark.parametrize(
    ("sizes", "columns"),
    [
        ((5,), 16),
        ((17, 12, 9, 5, 2), 64),
        ((17, 12, 9, 5, 18, 1), 64),
        ((18, 51, 52, 5, 19), 64),
        ((2,) * 40, 16),  # few heads to a program
        ((2,) * 10, 16),
        ((3, 3, *(5,) * 20, 2), 64),  # equal ones share a program, many of them if targets are side by side
        ((8, 5, 56), 64),  # the last one's program begins before it, and ends with the padding
        ((5, 64, 1), 128),  # no other way: it begins between two multiples of 8
    ],
)
def test_every_column_has_one_program_that_holds_it(sizes, columns):
    layout = layout_of(*sizes)
    n_columns = -(-layout.width // 8) * 8
    groups = group_heads(layout, range(len(sizes)), n_columns)
    bounds = [groups.bounds[i : i + 5] for i in range(0, len(groups.bounds), 5)]
    assert len(bounds) == groups.n
    assert [k for first, last, *_ in bounds for k in range(first, last)] == list(range(len(sizes)))
    assert [s for *_, first, last in bounds for s in range(first, last)] == list(range(n_columns))
    for _, _, begin, first, last in bounds:
        assert begin % 8 == 0
        assert begin <= first < last <= begin + groups.columns
    for first, last, *_ in bounds:
        alike = len(sizes) > 16 and len(set(sizes[first:last])) == 1
        assert last - first <= (MOST_EQUAL if alike else MOST_HEADS)
    if len(sizes) > 16:
        assert max(last - first for first, last, *_ in bounds) == MOST_EQUAL
    assert groups.columns == columns


def test_heads_apart_do_not_share_a_program():
    groups = group_heads(layout_of(3, 1000, 5, 7), (0, 2, 3), 1016)
    assert groups.bounds == (0, 1, 0, 0, 3, 2, 4, 1000, 1003, 1016)
    assert groups.columns == 16


def test_rows_that_do_not_end_at_a_multiple_are_refused():
    with pytest.raises(ValueError, match="a multiple of 8 columns, not 45"):
        group_heads(layout_of(45), (0,), 45)
