"""Which kernels take the losses of a chunk of logits: wide heads are swept, each row of them by a program's own blocks.

    wide_softmax_kernel  a softmax head of more than NARROW outputs
    wide_values_kernel   an elementwise head of more
    narrow_kernel        all the others, neighbours together

All of them overwrite the logits of their own columns with the gradient, already multiplied by what `mean_scales` says.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from ...machine.launch import cdiv
from ..layout import HeadLayout
from . import narrow_rows, wide_rows, wide_values
from .chunk import Chunk
from .narrow_rows import Groups, narrow_groups

NARROW = 128  # outputs: wider heads are swept
ROWS = 8  # of a program that sweeps, so that its sums are one of a thousand or fewer
MOST_ROWS = 64


class Split(NamedTuple):
    """The heads of a layout by the kernel that takes them."""

    softmax: tuple[int, ...]
    values: tuple[int, ...]
    narrow: Groups | None


@cache
def split_heads(layout: HeadLayout, n_columns: int) -> Split:
    """Of a layout whose rows of logits are padded to n_columns."""
    wide = [k for k, head in enumerate(layout.heads) if head.size > NARROW]
    softmax = tuple(k for k in wide if layout.heads[k].kind.takes_classes)
    values = tuple(k for k in wide if k not in softmax)
    return Split(
        softmax, values, narrow_groups(layout, [k for k in range(len(layout)) if k not in wide], n_columns)
    )


def rows_per_program(N: int) -> int:
    """Rows whose sums a program that sweeps adds: a power of two."""
    return 1 << (min(MOST_ROWS, max(ROWS, N // 2048)).bit_length() - 1)


def n_sums(split: Split, n_rows: int, rows: int) -> int:
    """Blocks of rows that the kernels sum a chunk of n_rows by; `rows` to a program that sweeps."""
    blocks = cdiv(n_rows, rows) if split.softmax or split.values else 0
    return max(blocks, 0 if split.narrow is None else cdiv(n_rows, split.narrow.rows))


def take_losses(chunk: Chunk, split: Split, rows: int) -> None:
    """The sums of a chunk's rows; its logits become their gradient where one is needed, and what pads them 0."""
    for k in split.softmax:
        wide_rows.launch(chunk, k, rows)
    for k in split.values:
        wide_values.launch(chunk, k, rows)
    if split.narrow is not None:
        narrow_rows.launch(chunk, split.narrow, chunk.tables.head_of_column)
