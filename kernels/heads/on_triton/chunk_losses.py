"""Choose the kernels that compute the losses of a chunk of logits: wide heads are swept block by block along each row.

    wide_softmax_kernel  a softmax head of more than NARROW outputs
    wide_values_kernel   an elementwise head of more than NARROW outputs
    row_loss_kernel      all others, adjacent heads together

Each overwrites the logits of its own columns with the gradient, already multiplied by the factors of `mean_scales`.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from ...machine.launch import cdiv
from ..layout import HeadLayout
from . import wide_rows, wide_values
from .chunk import Chunk
from .groups import Groups, group_heads
from .row_blocks import BESIDE_WIDE
from .row_losses import take_row_losses

NARROW = 128  # outputs: wider heads are swept
ROWS = 8  # rows per sweeping program, so that there are a thousand partial sums or fewer
MOST_ROWS = 64


class Split(NamedTuple):
    """The heads of a layout, by the kernel that handles them."""

    softmax: tuple[int, ...]
    values: tuple[int, ...]
    narrow: Groups | None


@cache
def split_heads(layout: HeadLayout, n_columns: int) -> Split:
    """Split a layout whose rows of logits are padded to n_columns."""
    wide = [k for k, head in enumerate(layout.heads) if head.size > NARROW]
    softmax = tuple(k for k in wide if layout.heads[k].kind.takes_classes)
    values = tuple(k for k in wide if k not in softmax)
    narrow = [k for k in range(len(layout)) if k not in wide]
    return Split(softmax, values, group_heads(layout, narrow, n_columns) if narrow else None)


def rows_per_program(N: int) -> int:
    """Number of rows that a sweeping program sums: a power of two."""
    return 1 << (min(MOST_ROWS, max(ROWS, N // 2048)).bit_length() - 1)


def n_sums(split: Split, n_rows: int, rows: int) -> int:
    """Number of blocks of rows in the partial sums of a chunk of n_rows; `rows` per sweeping program."""
    blocks = cdiv(n_rows, rows) if split.softmax or split.values else 0
    return max(blocks, 0 if split.narrow is None else cdiv(n_rows, BESIDE_WIDE.rows(split.narrow.columns)))


def take_losses(chunk: Chunk, split: Split, rows: int) -> None:
    """Compute the sums of a chunk's rows.

    If a gradient is needed, logits become their gradient and padding becomes 0.
    """
    for k in split.softmax:
        wide_rows.launch(chunk, k, rows)
    for k in split.values:
        wide_values.launch(chunk, k, rows)
    if split.narrow is not None:
        take_row_losses(chunk, split.narrow, BESIDE_WIDE, in_chunks=True)
