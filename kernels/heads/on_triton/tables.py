"""What every Triton kernel of the package reads about heads and targets, and the formulas that they share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...machine.triton_elementary import log1p
from ..layout import HeadLayout, Kind

SOFTMAX: tl.constexpr = tl.constexpr(int(Kind.SOFTMAX))
BINARY: tl.constexpr = tl.constexpr(int(Kind.BINARY))
SQUARED: tl.constexpr = tl.constexpr(int(Kind.SQUARED))

# Columns of the two tables that describe a head to a kernel.
KIND: tl.constexpr = tl.constexpr(0)
OFFSET: tl.constexpr = tl.constexpr(1)
SIZE: tl.constexpr = tl.constexpr(2)
TARGET: tl.constexpr = tl.constexpr(3)  # row of the class targets, or first column of the dense ones
IGNORE: tl.constexpr = tl.constexpr(4)
INDEX: tl.constexpr = tl.constexpr(5)
N_INTEGERS: tl.constexpr = tl.constexpr(6)
SMOOTHING: tl.constexpr = tl.constexpr(0)
DELTA: tl.constexpr = tl.constexpr(1)
WEIGHT_SUM: tl.constexpr = tl.constexpr(2)
N_FLOATS: tl.constexpr = tl.constexpr(3)


@triton.jit
def dense_elements(b_z, b_y, b_q, m_valid, kind, delta):
    """(loss, gradient, 1 where a label is wrong) of each float target: BINARY, SQUARED or HUBER.

    b_y is finite; b_q holds pos_weight (BINARY). Loss and gradient are 0 where not m_valid.
    """
    if kind == BINARY:
        b_l = 1.0 + (b_q - 1.0) * b_y
        b_u = tl.exp(-tl.abs(b_z))
        b_loss = (1.0 - b_y) * b_z + b_l * (log1p(b_u) + tl.maximum(-b_z, 0.0))
        b_dz = b_l * (tl.where(b_z >= 0.0, 1.0, b_u) / (1.0 + b_u)) - b_q * b_y
        b_wrong = (((b_z > 0.0) != (b_y > 0.5)) & m_valid).to(tl.int32)
    else:
        b_error = b_z - b_y
        b_size = tl.abs(b_error)
        b_wrong = tl.zeros_like(b_error).to(tl.int32)
        if kind == SQUARED:
            b_loss = b_error * b_error
            b_dz = 2.0 * b_error
        else:
            m_far = b_size > delta
            b_loss = tl.where(m_far, delta * (b_size - 0.5 * delta), 0.5 * b_error * b_error)
            b_dz = tl.where(m_far, tl.where(b_error > 0.0, delta, -delta), b_error)
    return tl.where(m_valid, b_loss, 0.0), tl.where(m_valid, b_dz, 0.0), b_wrong


class HeadTables(NamedTuple):
    """A layout as a kernel reads it."""

    integers: Tensor  # (K, N_INTEGERS) int64
    floats: Tensor  # (K, N_FLOATS) float32
    column_weights: Tensor  # (S,) float32
    head_of_column: Tensor  # (S,) int64


@lru_cache(maxsize=64)
def head_tables(layout: HeadLayout, device: torch.device) -> HeadTables:
    """The tables of `layout` on `device`, copied there by the first call: make it before a graph capture."""
    integers: list[list[int]] = []
    floats: list[list[float]] = []
    column_weights: list[float] = []
    head_of_column: list[int] = []
    n_classes = n_dense = 0
    for k, (first, last, head) in enumerate(layout):
        target = n_classes if head.kind is Kind.SOFTMAX else n_dense
        n_classes += head.kind is Kind.SOFTMAX
        n_dense += 0 if head.kind is Kind.SOFTMAX else last - first
        integers.append([int(head.kind), first, head.size, target, head.ignore_index, k])
        floats.append([head.label_smoothing, head.delta, sum(head.column_weights)])
        column_weights.extend(head.column_weights)
        head_of_column.extend([k] * head.size)
    # Cached for later calls, so never an inference tensor.
    with torch.inference_mode(False):
        return HeadTables(
            torch.tensor(integers, dtype=torch.int64, device=device),
            torch.tensor(floats, dtype=torch.float32, device=device),
            torch.tensor(column_weights, dtype=torch.float32, device=device),
            torch.tensor(head_of_column, dtype=torch.int64, device=device),
        )


class PackedTargets(NamedTuple):
    """All heads' targets side by side; None where no head is of that sort."""

    classes: Tensor | None  # (classification heads, N) int64
    dense: Tensor | None  # (N, columns of the other heads) float32


def pack_targets(
    targets: Sequence[Tensor], layout: HeadLayout, N: int, device: torch.device
) -> PackedTargets:
    """The targets of `layout` in its order. Raises ValueError for a shape, dtype or device that does not fit."""
    classes, dense = [], []
    for name, head, target in zip(layout.names, layout.heads, targets, strict=True):
        expected = (N,) if head.kind is Kind.SOFTMAX else (N, head.size)
        if target.shape != expected or target.device != device:
            raise ValueError(
                f"the target of {name} must be {expected} on {device}, "
                f"not {tuple(target.shape)} on {target.device}"
            )
        if target.is_floating_point() is (head.kind is Kind.SOFTMAX):
            raise ValueError(f"the target of {name} is {target.dtype}, which {head.kind.name} cannot take")
        if head.kind is Kind.SOFTMAX:
            classes.append(target.to(torch.int64))
        else:
            dense.append(target.to(torch.float32))
    # A single head's target needs no copy.
    stacked = (
        (torch.stack(classes) if len(classes) > 1 else classes[0].contiguous()[None]) if classes else None
    )
    beside = (torch.cat(dense, dim=1) if len(dense) > 1 else dense[0].contiguous()) if dense else None
    return PackedTargets(stacked, beside)
