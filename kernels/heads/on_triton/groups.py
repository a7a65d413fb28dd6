"""Adjacent heads that one program computes: groups of columns, as compile-time constants of a kernel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import triton.language as tl

from ...machine.launch import next_power_of_2
from ..layout import HeadLayout
from .targets import MOST_ADDRESSES

# Positions in a group's constants.
FIRST_HEAD: tl.constexpr = tl.constexpr(0)
LAST_HEAD: tl.constexpr = tl.constexpr(1)
BEGIN: tl.constexpr = tl.constexpr(2)
FIRST_COLUMN: tl.constexpr = tl.constexpr(3)
LAST_COLUMN: tl.constexpr = tl.constexpr(4)
N_BOUNDS: tl.constexpr = tl.constexpr(5)

ALIGNED_COLUMNS = 8  # a program begins at a multiple: 16 bytes of 16-bit logits
GROUP_COLUMNS = 64  # heads of fewer outputs share a program
MOST_HEADS = 3  # of a program: with more, what it holds of all of them takes registers that it does not have
MOST_EQUAL = 8  # of equal heads, which a program loops over: as many as do not wait long for one another


class Groups(NamedTuple):
    """The heads and columns of each program, and the number of columns that the widest one holds."""

    n: int
    bounds: tuple[int, ...]  # N_BOUNDS per group, one group after another
    columns: int  # BLOCK_S


def stored_end(layout: HeadLayout, k: int, n_columns: int) -> int:
    """One past the columns that head k's program stores: its own, and after the last head a row's padding."""
    return n_columns if k == len(layout) - 1 else layout.offsets[k] + layout.sizes[k]


def group_heads(layout: HeadLayout, members: Sequence[int], n_columns: int) -> Groups:
    """Group those `members`, at least one, that are adjacent, up to GROUP_COLUMNS and MOST_HEADS or MOST_EQUAL.

    If the layout's last head is a member, its group also covers a row's padding up to n_columns. Raises ValueError for
    an n_columns that is not a multiple of ALIGNED_COLUMNS.
    """
    if n_columns % ALIGNED_COLUMNS:
        raise ValueError(f"rows of logits must have a multiple of {ALIGNED_COLUMNS} columns, not {n_columns}")
    side_by_side = len(layout) > MOST_ADDRESSES
    most = max(GROUP_COLUMNS, *(next_power_of_2(layout.sizes[k]) for k in members))
    bounds: list[list[int]] = []
    for k in members:
        first, last = layout.offsets[k], stored_end(layout, k, n_columns)
        earlier = range(bounds[-1][FIRST_HEAD.value], bounds[-1][LAST_HEAD.value]) if bounds else range(0)
        most_heads = MOST_EQUAL if side_by_side and _are_equal(layout, earlier, k) else MOST_HEADS
        is_next = earlier.stop == k and 0 < len(earlier) < most_heads
        # What a program holds begins at its first column's multiple, and so may be wider than its heads.
        if is_next and last - bounds[-1][BEGIN.value] <= most:
            bounds[-1][LAST_HEAD.value], bounds[-1][LAST_COLUMN.value] = k + 1, last
        else:
            bounds.append([k, k + 1, first // ALIGNED_COLUMNS * ALIGNED_COLUMNS, first, last])
    widest = max(bound[LAST_COLUMN.value] - bound[BEGIN.value] for bound in bounds)
    return Groups(len(bounds), tuple(itertools.chain(*bounds)), max(16, next_power_of_2(widest)))


def _are_equal(layout: HeadLayout, earlier: range, k: int) -> bool:
    return all(layout.heads[j] == layout.heads[k] for j in earlier)
