"""Sizes of a program that makes losses of logits in memory: the packed plan, and narrow heads of the chunked one.

A thread holds 8 logits of one row. Without a limit, the compiler takes up to 105 registers for that, so that a
multiprocessor of 65,536 holds two programs of 8 warps, all of which wait for their rows at the same time; with one of
80 it holds three, and nothing spills on an A100 or H100. With weights of classes, label smoothing or targets side by
side it would, on a B200 whatever the heads are, and on an A100 with 4 warps: these have ENOUGH_REGISTERS. Which of
these is fastest has not been measured: `mt2st-fast tune` times them on a GPU, and its table decides there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from ...machine.launch import launch_options
from ..kind import HeadSpec, Kind
from ..layout import HeadLayout
from ..plans import ROW_BLOCKS, Shape, tuned_choice
from .targets import MOST_ADDRESSES

ENOUGH_REGISTERS = 200  # without any limit, ptxas spills a few scalars to fit another program


class RowBlocks(NamedTuple):
    """Logits and warps of a program, and the most registers per thread on NVIDIA; None: no limit."""

    elements: int
    warps: int
    registers: int | None

    def options(self, layout: HeadLayout, family: str) -> dict[str, int]:
        """Options for the compiler, for heads of this layout on a family of GPUs."""
        is_heavy = len(layout) > MOST_ADDRESSES or any(_spreads(head) for head in layout.heads)
        is_enough = is_heavy or family == "blackwell" or (family == "ampere" and self.warps == 4)
        return launch_options(self.warps, ENOUGH_REGISTERS if is_enough else self.registers)

    def rows(self, columns: int) -> int:
        """Number of rows of a program that holds this many columns."""
        return max(1, self.elements // columns)


def _spreads(head: HeadSpec) -> bool:
    """Return whether a row's loss takes more than its target's logit and the sum of exponentials."""
    is_smoothed = head.kind is Kind.SOFTMAX and head.label_smoothing > 0
    return is_smoothed or head.options.column_weights is not None


DEFAULT = "8 warps, 80 registers"
CHOICES = {
    DEFAULT: RowBlocks(2048, 8, 80),
    "4 warps, 96 registers": RowBlocks(1024, 4, 96),
    "8 warps": RowBlocks(2048, 8, None),
}
assert tuple(CHOICES) == ROW_BLOCKS
# Of heads beside wide ones, whose gradient is scaled: a limit of 80 registers, at which a multiprocessor would hold as
# many warps, spills here.
BESIDE_WIDE = RowBlocks(1024, 4, 96)

_requested: list[str] = []


@contextmanager
def use(name: str) -> Iterator[None]:
    """Have the calls meanwhile use these sizes of CHOICES, whatever a table says."""
    _requested.append(name)
    try:
        yield
    finally:
        _requested.pop()


def row_blocks(shape: Shape, device: torch.device) -> RowBlocks:
    """Return the sizes for heads of this shape: those that were fastest nearby on this device, or the default."""
    if _requested:
        return CHOICES[_requested[-1]]
    tuned = tuned_choice("triton rows", shape, CHOICES, device)
    return CHOICES[DEFAULT if tuned is None else tuned.name]
