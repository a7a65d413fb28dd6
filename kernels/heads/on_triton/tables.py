"""What Triton kernels of the heads read about heads and targets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..kind import Kind
from ..layout import HeadLayout

SOFTMAX: tl.constexpr = tl.constexpr(Kind.SOFTMAX.code)

# Columns of the table that describes a head to a kernel which is not compiled for its layout (see constants.py).
KIND: tl.constexpr = tl.constexpr(0)
OFFSET: tl.constexpr = tl.constexpr(1)
SIZE: tl.constexpr = tl.constexpr(2)
TARGET: tl.constexpr = tl.constexpr(3)  # row of the class targets, or first column of the dense targets
IGNORE: tl.constexpr = tl.constexpr(4)
N_INTEGERS: tl.constexpr = tl.constexpr(5)


class HeadTables(NamedTuple):
    """A layout in the form that kernels read."""

    integers: Tensor  # (K, N_INTEGERS) int64
    column_weights: Tensor  # (S,) float32
    head_of_column: Tensor  # (S,) int64


# Never freed: a CUDA graph may read them.
@cache
def head_tables(layout: HeadLayout, device: torch.device) -> HeadTables:
    """Return the tables of `layout` on `device`. The first call copies them there: make it before a graph capture."""
    integers: list[list[int]] = []
    column_weights: list[float] = []
    head_of_column: list[int] = []
    n_classes = n_dense = 0
    for k, (first, last, head) in enumerate(layout):
        target = n_classes if head.kind.takes_classes else n_dense
        n_classes += head.kind.takes_classes
        n_dense += 0 if head.kind.takes_classes else last - first
        ignore_index = head.ignore_index if head.kind is Kind.SOFTMAX else 0
        integers.append([head.kind.code, first, head.size, target, ignore_index])
        column_weights.extend(head.column_weights)
        head_of_column.extend([k] * head.size)
    # Cached for later calls, so it must not be an inference tensor.
    with torch.inference_mode(False):
        return HeadTables(
            torch.tensor(integers, dtype=torch.int64, device=device),
            torch.tensor(column_weights, dtype=torch.float32, device=device),
            torch.tensor(head_of_column, dtype=torch.int64, device=device),
        )


class PackedTargets(NamedTuple):
    """All heads' targets side by side; None if no head has targets of that type."""

    classes: Tensor | None  # (classification heads, N) int64
    dense: Tensor | None  # (N, columns of the other heads) float32


def pack_targets(
    targets: Sequence[Tensor], layout: HeadLayout, N: int, device: torch.device
) -> PackedTargets:
    """Pack the targets of `layout`, in its order. Raises ValueError for a shape, dtype or device that does not fit."""
    classes, dense = [], []
    for name, head, target in zip(layout.names, layout.heads, targets, strict=True):
        expected = head.target_shape(N)
        if target.shape != expected or target.device != device:
            raise ValueError(
                f"the target of {name} must be {expected} on {device}, "
                f"not {tuple(target.shape)} on {target.device}"
            )
        if target.is_floating_point() is head.kind.takes_classes:
            raise ValueError(
                f"the target of {name} is {target.dtype}, which {head.kind.name} does not support"
            )
        if head.kind.takes_classes:
            classes.append(target.to(torch.int64))
        else:
            dense.append(target.to(torch.float32))
    # A single head's target needs no copy.
    stacked = (
        (torch.stack(classes) if len(classes) > 1 else classes[0].contiguous()[None]) if classes else None
    )
    beside = (torch.cat(dense, dim=1) if len(dense) > 1 else dense[0].contiguous()) if dense else None
    return PackedTargets(stacked, beside)
