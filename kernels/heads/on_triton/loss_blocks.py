"""How the loss pass on a GPU is cut up: which heads a launch takes, rows and columns of a block, padding of a row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ...machine.launch import launch_options
from ..layout import HeadLayout
from .tables import (
    head_tables,
)

# Elements to whose multiples a row of logits is padded and an aligned head begins: 32 bytes of 16-bit ones.
ALIGNMENT = 16
# Heads of more outputs than this are swept in wide blocks of their own launch.
NARROW = 128


class Blocks(NamedTuple):
    """Rows and columns that one program of the loss pass holds at a time, its warps and registers."""

    rows: int
    columns: int
    warps: int
    registers: int  # a thread may use on NVIDIA
    aligned: bool = False  # the head lies so that accesses may be wide: see `segment_loss_kernel`

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told. AMD's knows no limit of registers."""
        return launch_options(self.warps, self.registers)


def choose_blocks(largest: int, aligned: bool = False) -> Blocks:
    """Blocks for heads of at most `largest` outputs.

    A table, not an autotuner: that needs a driver to choose and stalls inside a graph capture. Every thread
    holds 1 or 2 logits: more rows a thread spill mask registers on gfx942 (with 4 logits), and cost a Hopper
    multiprocessor a third of its warps. Threads of aligned heads hold 4 of a row side by side: 8 bytes or
    more an access. Left alone, ptxas spills a few scalars to win another warp: the limits stop that.
    """
    if aligned:
        return Blocks(1, 512, 4, 96, aligned=True)
    if largest <= 16:
        return Blocks(8, 16, 4, 64)
    if largest <= 32:
        return Blocks(8, 32, 4, 72)
    return Blocks(4, 64, 4, 80) if largest <= 64 else Blocks(8, 64, 8, 88)


class Group(NamedTuple):
    """Heads that one launch computes: their rows of the tables, and its blocks."""

    integers: Tensor  # (n_heads, N_INTEGERS) int64
    floats: Tensor  # (n_heads, N_FLOATS) float32
    blocks: Blocks


def head_group(layout: HeadLayout, members: Sequence[int], blocks: Blocks, device: torch.device) -> Group:
    """The heads `members` of a layout, computed by these blocks."""
    tables = head_tables(layout, device)
    # Cached for later calls, so never an inference tensor.
    with torch.inference_mode(False):
        rows = torch.tensor(members, dtype=torch.int64, device=device)
        return Group(tables.integers[rows], tables.floats[rows], blocks)


def is_aligned(layout: HeadLayout, k: int, row_stride: int) -> bool:
    """Whether head k begins at a multiple of ALIGNMENT and owns its columns up to the next multiple."""
    first = layout.offsets[k]
    if first % ALIGNMENT or row_stride % ALIGNMENT:
        return False
    return k == len(layout) - 1 or layout.heads[k].size % ALIGNMENT == 0


@lru_cache(maxsize=256)
def head_groups(layout: HeadLayout, row_stride: int, device: torch.device) -> tuple[Group, ...]:
    """Narrow heads together, wide ones by whether they are aligned: at most three launches."""
    narrow: list[int] = []
    aligned: list[int] = []
    ragged: list[int] = []
    for k, head in enumerate(layout.heads):
        if head.size <= NARROW:
            narrow.append(k)
        else:
            (aligned if is_aligned(layout, k, row_stride) else ragged).append(k)
    return tuple(
        head_group(layout, members, choose_blocks(max(layout.heads[k].size for k in members), wide), device)
        for members, wide in ((narrow, False), (aligned, True), (ragged, False))
        if members
    )


def padded_width(layout: HeadLayout) -> int:
    """Elements of a row of a logits buffer: the layout's outputs and what pads them to wide accesses.

    Narrow heads alone gain nothing from padding.
    """
    S = layout.width
    if max(head.size for head in layout.heads) <= NARROW:
        return S
    return triton.cdiv(S, ALIGNMENT) * ALIGNMENT


def rows_per_program(N: int, K: int) -> int:
    """Rows that one program takes, a block after the other: a multiple of 8, as few as fill a large GPU.

    8 to 64 rows keep the (n_blocks, S) partial bias gradients, written and read, at 2 to 12 % of what moves
    16-bit logits in and out.
    """
    return min(64, max(8, N * K // 2048)) // 8 * 8
