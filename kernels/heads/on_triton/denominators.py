"""What each head's mean divides by, counted from the targets alone: before any gradient has to be scaled.

The sum of the class weights w_y over the valid rows (SOFTMAX), the number of targets that are not NaN (the
others), 0 for a skipped head. Partial sums of a fixed number of parts: no atomics, the same bits every call.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import on_device_of
from ..layout import HeadLayout
from .tables import (
    IGNORE,
    KIND,
    N_INTEGERS,
    OFFSET,
    SIZE,
    SOFTMAX,
    TARGET,
    PackedTargets,
    head_tables,
)

# Parts of a head: enough to count a million rows at memory speed, few enough to add up in one block.
MAX_PARTS = 64
ROWS_PER_PART = 1024
BLOCK = 512
WARPS = 4


@triton.jit(do_not_specialize=["N", "class_stride", "n_dense", "n_parts", "per_part"])
def count_kernel(
    p_classes,  # (classification heads, class_stride) int64
    p_dense,  # (N, n_dense) float32
    p_integers,  # (K, N_INTEGERS) int64
    p_weights,  # (S,) float32
    p_task_weights,  # (K,) float32
    p_parts,  # (K, n_parts) float32
    N,
    class_stride,
    n_dense,
    n_parts,
    per_part,
    SKIP_ZERO_WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: per_part rows of one head."""
    i_k = tl.program_id(0) // n_parts
    first = (tl.program_id(0) % n_parts).to(tl.int64) * per_part
    last = tl.minimum(first + per_part, N)
    if SKIP_ZERO_WEIGHTS:
        last = tl.where(tl.load(p_task_weights + i_k) != 0.0, last, first)
    offset = tl.load(p_integers + i_k * N_INTEGERS + OFFSET)
    C = tl.load(p_integers + i_k * N_INTEGERS + SIZE)
    target = tl.load(p_integers + i_k * N_INTEGERS + TARGET)
    b_sum = tl.zeros((BLOCK,), tl.float32)
    if tl.load(p_integers + i_k * N_INTEGERS + KIND) == SOFTMAX:
        ignore_index = tl.load(p_integers + i_k * N_INTEGERS + IGNORE)
        p_y = p_classes + target * class_stride
        for o_first in range(first, last, BLOCK):
            o_n = o_first + tl.arange(0, BLOCK)
            b_y = tl.load(p_y + o_n, mask=o_n < last, other=-1)
            m_valid = (o_n < last) & (b_y != ignore_index) & (b_y >= 0) & (b_y < C)
            b_sum += tl.load(p_weights + offset + b_y, mask=m_valid, other=0.0)
    else:
        p_rows = p_dense + first * n_dense + target
        n_elements = (last - first) * C
        for o_first in range(0, n_elements, BLOCK):
            o_e = o_first + tl.arange(0, BLOCK)
            o_y = o_e // C * n_dense + o_e % C
            b_y = tl.load(p_rows + o_y, mask=o_e < n_elements, other=float("nan"))
            b_sum += (b_y == b_y).to(tl.float32)
    tl.store(p_parts + tl.program_id(0), tl.sum(b_sum, axis=0))


def count_parts(targets: PackedTargets, layout: HeadLayout, N: int, skip_by: Tensor | None) -> Tensor:
    """(K, n_parts) float32, whose rows add up to the heads' denominators; 0 where skip_by (K,) is 0."""
    some = targets.classes if targets.classes is not None else targets.dense
    assert some is not None
    tables = head_tables(layout, some.device)
    n_parts = min(MAX_PARTS, max(1, triton.cdiv(N, ROWS_PER_PART)))
    parts = torch.empty(len(layout), n_parts, dtype=torch.float32, device=some.device)
    classes, dense = targets
    with on_device_of(some):
        count_kernel[(len(layout) * n_parts,)](
            tables.integers if classes is None else classes,
            tables.floats if dense is None else dense,
            tables.integers,
            tables.column_weights,
            tables.floats if skip_by is None else skip_by.contiguous(),
            parts,
            N,
            0 if classes is None else classes.shape[1],
            0 if dense is None else dense.shape[1],
            n_parts,
            triton.cdiv(N, n_parts),
            SKIP_ZERO_WEIGHTS=skip_by is not None,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return parts


def mean_scale(parts: Tensor) -> Tensor:
    """(K,) float32, 1 / denominator, 0 where that is 0; from what `count_parts` returned."""
    denominator = parts.double().sum(1)
    return torch.where(denominator > 0, 1 / denominator, 0.0).float()


def _variants() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    signature = {
        **dict.fromkeys(("p_classes", "p_integers"), "*i64"),
        **dict.fromkeys(("p_dense", "p_weights", "p_task_weights", "p_parts"), "*fp32"),
        **dict.fromkeys(("N", "class_stride", "n_dense", "n_parts", "per_part"), "i32"),
    }
    constexprs = {"SKIP_ZERO_WEIGHTS": True, "BLOCK": BLOCK}
    return [("denominators", count_kernel, signature, constexprs, {"num_warps": WARPS})]


VARIANTS = _variants()
