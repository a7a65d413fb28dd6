"""The segmented loss pass on a GPU: logits of all heads (N, S) to losses and, in place, to their gradient.

Head k owns the columns from its offset on, C of them; `triton_loss_rows` has the formulas. Sums are float32 in a
fixed order: partial sums of a block of rows here, then `triton_loss_sums` adds the blocks. No atomics, so two calls
give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import on_device_of
from ..layout import HeadLayout
from .loss_blocks import Blocks, choose_blocks, head_group, head_groups, rows_per_program
from .loss_rows import dense_rows, softmax_rows
from .loss_sums import LossParts, SegmentLoss, finalize
from .tables import (
    IGNORE,
    INDEX,
    KIND,
    N_FLOATS,
    N_INTEGERS,
    OFFSET,
    SIZE,
    SMOOTHING,
    SOFTMAX,
    TARGET,
    WEIGHT_SUM,
    PackedTargets,
    head_tables,
    pack_targets,
)


# Sizes stay unspecialized: they differ between the last batch, phases and layouts; what a divisible row
# stride tells, ALIGNED says.
@triton.jit(
    do_not_specialize=[
        "N", "first_row", "row_stride", "class_stride", "n_dense", "S", "K", "n_heads", "n_trips",
    ]
)  # fmt: skip
def segment_loss_kernel(
    p_logits,  # (N, row_stride), overwritten with its gradient if NEED_GRADIENT
    p_bias,  # (S,)
    p_classes,  # (classification heads, class_stride) int64
    p_dense,  # (class_stride, n_dense) float32
    p_integers,  # (n_heads, N_INTEGERS) int64: the heads that this launch computes
    p_floats,  # (n_heads, N_FLOATS) float32
    p_weights,  # (S,) float32
    p_task_weights,  # (K,) float32
    p_parts,  # (blocks of all launches, K, 3) float32: loss, denominator, correct
    p_bias_parts,  # (blocks of this launch, S) float32
    N,
    first_row,  # the row of the targets that row 0 of the logits belongs to
    row_stride,
    class_stride,
    n_dense,
    S,
    K,
    n_heads,
    n_trips,
    HAS_BIAS: tl.constexpr,
    NEED_GRADIENT: tl.constexpr,
    NEED_BIAS_GRADIENT: tl.constexpr,
    SKIP_ZERO_WEIGHTS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: one head of n_trips blocks of BLOCK_N rows, one block after the other.

    ALIGNED: the row stride and the heads' offsets are multiples of 16, and so is the number of columns up to
    the next head or the end of the row: loads and stores are as wide as the hardware's.
    """
    # One grid axis: the others end at 65,535. Heads vary fastest, so neighbours share rows in cache.
    i_head = tl.program_id(0) % n_heads
    i_n = (tl.program_id(0) // n_heads).to(tl.int64)
    i_k = tl.load(p_integers + i_head * N_INTEGERS + INDEX)
    kind = tl.load(p_integers + i_head * N_INTEGERS + KIND).to(tl.int32)
    offset = tl.load(p_integers + i_head * N_INTEGERS + OFFSET)
    C = tl.load(p_integers + i_head * N_INTEGERS + SIZE).to(tl.int32)
    target = tl.load(p_integers + i_head * N_INTEGERS + TARGET)
    C_load = C
    if ALIGNED:
        # Nothing changes but what the compiler knows: it widens an access only by proven divisors.
        row_stride = row_stride // 16 * 16
        offset = offset // 16 * 16
        C_load = (C + 15) // 16 * 16
    N_active = N
    if SKIP_ZERO_WEIGHTS:
        N_active = tl.where(tl.load(p_task_weights + i_k) != 0.0, N, 0)
    p_bias_part = p_bias_parts + i_n * S + offset

    loss = 0.0
    denominator = 0.0
    correct = 0.0
    for i_trip in range(n_trips):
        o_n = (i_n * n_trips + i_trip) * BLOCK_N + tl.arange(0, BLOCK_N)
        m_n = o_n < N
        m_active = o_n < N_active
        p_rows = p_logits + o_n * row_stride + offset
        if kind == SOFTMAX:
            block_loss, block_denominator, block_correct = softmax_rows(
                p_rows,
                p_bias + offset,
                p_weights + offset,
                p_classes + target * class_stride + first_row + o_n,
                p_bias_part,
                m_n,
                m_active,
                i_trip,
                C,
                C_load,
                tl.load(p_integers + i_head * N_INTEGERS + IGNORE),
                tl.load(p_floats + i_head * N_FLOATS + SMOOTHING),
                tl.load(p_floats + i_head * N_FLOATS + WEIGHT_SUM),
                HAS_BIAS,
                NEED_GRADIENT,
                NEED_BIAS_GRADIENT,
                ALIGNED,
                BLOCK_N,
                BLOCK_C,
            )
        else:
            block_loss, block_denominator, block_correct = dense_rows(
                p_rows,
                p_bias + offset,
                p_weights + offset,
                p_dense + (first_row + o_n) * n_dense + target,
                p_bias_part,
                m_n,
                m_active,
                i_trip,
                C,
                C_load,
                kind,
                p_floats + i_head * N_FLOATS,
                HAS_BIAS,
                NEED_GRADIENT,
                NEED_BIAS_GRADIENT,
                ALIGNED,
                BLOCK_N,
                BLOCK_C,
            )
        loss += block_loss
        denominator += block_denominator
        correct += block_correct
        # The next block adds to the bias gradient that other threads may have written.
        tl.debug_barrier()
    i_block = first_row // (n_trips * BLOCK_N) + i_n
    p_part = p_parts + (i_block * K + i_k) * 3
    tl.store(p_part, loss)
    tl.store(p_part + 1, denominator)
    tl.store(p_part + 2, correct)


def segment_loss(
    logits: Tensor,
    bias: Tensor | None,
    targets: Sequence[Tensor],
    layout: HeadLayout,
    *,
    need_gradient: bool,
    need_bias_gradient: bool | None = None,
    skip_by: Tensor | None = None,
    blocks: Blocks | None = None,
) -> SegmentLoss:
    """Losses of all heads from their logits (N, S), bias (S,) not yet added; see `SegmentLoss`.

    `targets` are K tensors: integers (N,) for SOFTMAX heads, floats (N, C) for the others, NaN = missing.
    With `need_gradient`, `logits` is overwritten with its unscaled gradient, else it is left alone and there
    is no bias gradient; `need_bias_gradient` says so apart where it differs. A head k with skip_by[k] == 0
    (K task weights, float32) has loss 0, correct 0, scale 0 and gradient 0. `blocks` overrides the table.

    A row of `logits` may be longer than S (`padded_width`): a view of the first S columns of a buffer. What
    lies between may be overwritten. The first call of a layout on a device copies its tables there: make it
    before a graph capture.
    Raises ValueError for shapes that do not fit the layout and for rows that are not contiguous.
    """
    N = logits.shape[0]
    need_bias_gradient = need_gradient if need_bias_gradient is None else need_bias_gradient
    per_program = rows_per_program(N, len(layout))
    n_blocks = triton.cdiv(N, per_program)
    sums = torch.empty(n_blocks, len(layout), 3, dtype=torch.float32, device=logits.device)
    bias_parts = run_loss_pass(
        logits,
        bias,
        pack_targets(targets, layout, N, logits.device),
        layout,
        sums,
        per_program,
        need_gradient=need_gradient,
        need_bias_gradient=need_bias_gradient,
        skip_by=skip_by,
        blocks=blocks,
    )
    return finalize(LossParts(sums, bias_parts), layout)


def run_loss_pass(
    logits: Tensor,
    bias: Tensor | None,
    targets: PackedTargets,
    layout: HeadLayout,
    sums: Tensor,
    per_program: int,
    *,
    need_gradient: bool,
    need_bias_gradient: bool,
    skip_by: Tensor | None,
    first_row: int = 0,
    blocks: Blocks | None = None,
) -> Tensor | None:
    """The sums of the rows of `logits`, which are rows first_row.. of `targets`; the bias gradient's parts.

    `per_program` rows (of `rows_per_program`) make a block. Their sums go to the blocks of `sums`
    from first_row / per_program on, so first_row must be a multiple of that. Raises as `segment_loss` does.
    """
    N, S, K = logits.shape[0], layout.width, len(layout)
    if logits.dim() != 2 or logits.shape[1] != S or logits.stride(1) != 1 or logits.stride(0) < S:
        raise ValueError(
            f"logits must be (N, {S}) of contiguous rows, not {tuple(logits.shape)} with strides {logits.stride()}"
        )
    if bias is not None and bias.shape != (S,):
        raise ValueError(f"bias must be ({S},), not {tuple(bias.shape)}")
    if first_row % per_program:
        raise ValueError(f"first_row {first_row} is not a multiple of {per_program}")
    n_blocks = triton.cdiv(N, per_program)
    bias_parts = None
    if need_bias_gradient:
        bias_parts = torch.empty(n_blocks, S, dtype=torch.float32, device=logits.device)
    if not N:
        return bias_parts
    tables = head_tables(layout, logits.device)
    groups = head_groups(layout, logits.stride(0), logits.device)
    if blocks is not None:
        groups = (head_group(layout, range(K), blocks, logits.device),)
    classes, dense = targets
    # An argument that a variant never reads still needs a pointer of the same type.
    with on_device_of(logits):
        for integers, floats, block in groups:
            segment_loss_kernel[(n_blocks * len(integers),)](
                logits,
                tables.column_weights if bias is None else bias.contiguous(),
                tables.integers if classes is None else classes,
                tables.floats if dense is None else dense,
                integers,
                floats,
                tables.column_weights,
                tables.floats if skip_by is None else skip_by.contiguous(),
                sums,
                sums if bias_parts is None else bias_parts,
                N,
                first_row,
                logits.stride(0),
                0 if classes is None else classes.shape[1],
                0 if dense is None else dense.shape[1],
                S,
                K,
                len(integers),
                per_program // block.rows,
                HAS_BIAS=bias is not None,
                NEED_GRADIENT=need_gradient,
                NEED_BIAS_GRADIENT=need_bias_gradient,
                SKIP_ZERO_WEIGHTS=skip_by is not None,
                ALIGNED=block.aligned,
                BLOCK_N=block.rows,
                BLOCK_C=block.columns,
                **block.options,
            )
    return bias_parts


def _variants() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """What `run_loss_pass` launches: (name, kernel, signature, constexprs, options) for each variant."""
    wide, ragged = choose_blocks(1000, aligned=True), choose_blocks(1000)
    cases = [
        *((dtype, choose_blocks(C), "") for dtype in ("fp32", "bf16", "fp16") for C in (16, 64)),
        *((dtype, wide, "") for dtype in ("fp32", "bf16", "fp16")),
        ("bf16", choose_blocks(32), ""),
        ("bf16", ragged, ""),
        ("bf16", choose_blocks(64), "no bias"),
        ("bf16", wide, "no bias gradient"),
        ("bf16", ragged, "no gradient"),
    ]
    variants = []
    for dtype, blocks, without in cases:
        has_bias, need_gradient = without != "no bias", without != "no gradient"
        signature = {
            "p_logits": f"*{dtype}",
            "p_bias": f"*{dtype}" if has_bias else "*fp32",
            **dict.fromkeys(("p_classes", "p_integers"), "*i64"),
            **dict.fromkeys(("p_dense", "p_floats", "p_weights", "p_task_weights"), "*fp32"),
            **dict.fromkeys(("p_parts", "p_bias_parts"), "*fp32"),
            **dict.fromkeys(("N", "first_row", "row_stride", "class_stride", "n_dense"), "i32"),
            **dict.fromkeys(("S", "K", "n_heads", "n_trips"), "i32"),
        }
        constexprs = {
            "HAS_BIAS": has_bias,
            "NEED_GRADIENT": need_gradient,
            "NEED_BIAS_GRADIENT": has_bias and need_gradient and not without,
            "SKIP_ZERO_WEIGHTS": True,
            "ALIGNED": blocks.aligned,
            "BLOCK_N": blocks.rows,
            "BLOCK_C": blocks.columns,
        }
        name = " ".join([dtype, f"{blocks.rows}x{blocks.columns}", *(["aligned"] * blocks.aligned), without])
        variants.append((name.rstrip(), segment_loss_kernel, signature, constexprs, blocks.options))
    return variants


VARIANTS = _variants()
