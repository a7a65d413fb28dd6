"""Preparation of the weight of all heads for a product, and of its gradient after one: scaled, cast, padded.

Gradients of logits are kept unscaled. Their remaining factors (upstream gradient, task weight, 1 / denominator) differ
by head: they are applied to the rows of the weight before a product, or of its gradient after.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import Sample, Variant, cdiv, next_power_of_2, types_of

COLUMNS, WARPS = 512, 4


class Factors(NamedTuple):
    """Factors of the unscaled gradients, all on the device."""

    scale: Tensor  # (K,) float32, 1 / denominator
    task_weights: Tensor  # (K,) float32
    upstream: Tensor  # () of any floating dtype
    head_of_column: Tensor  # (S,) int64


@triton.jit
def column_scales(p_scale, p_task_weights, p_upstream, p_head_of_column, o_s, m_s):
    """Return the factor of the unscaled gradient of each column: upstream * task weight / denominator."""
    b_k = tl.load(p_head_of_column + o_s, mask=m_s, other=0)
    b_scale = tl.load(p_scale + b_k, mask=m_s, other=0.0)
    b_scale *= tl.load(p_task_weights + b_k, mask=m_s, other=0.0).to(tl.float32)
    return b_scale * tl.load(p_upstream).to(tl.float32)


@triton.jit
def _scale_of(p_scale, p_task_weights, p_upstream, i_k):
    """Return the factor of the unscaled gradient of one head."""
    scale = tl.load(p_scale + i_k) * tl.load(p_task_weights + i_k).to(tl.float32)
    return scale * tl.load(p_upstream).to(tl.float32)


@triton.jit(do_not_specialize=["S", "K", "n_columns"])
def scaled_rows_kernel(
    p_weight,  # (S, D)
    p_out,  # (rows, D), 0 from row S on
    p_scale,  # (K,) float32
    p_task_weights,  # (K,) float32
    p_upstream,  # ()
    p_head_of_column,  # (S,) int64
    p_largest,  # () float32, with IS_RELATIVE
    D,
    S,
    K,
    n_columns,  # blocks of D
    IS_SCALED: tl.constexpr,
    IS_RELATIVE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: a block of columns of one row, scaled.

    With IS_RELATIVE by its scale over the largest of all heads.
    """
    i_s = tl.program_id(0) // n_columns
    o_d = tl.program_id(0) % n_columns * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_w = tl.load(p_weight + i_s.to(tl.int64) * D + o_d, mask=m_d & (i_s < S), other=0.0).to(tl.float32)
    if IS_SCALED:
        o_k = tl.arange(0, BLOCK_K)
        upstream = tl.load(p_upstream).to(tl.float32)
        b_scale = tl.load(p_scale + o_k, mask=o_k < K, other=0.0)
        b_scale *= tl.load(p_task_weights + o_k, mask=o_k < K, other=0.0).to(tl.float32) * upstream
        largest = tl.max(tl.abs(b_scale), axis=0)
        i_k = tl.load(p_head_of_column + i_s, mask=i_s < S, other=0)
        scale = tl.sum(tl.where(o_k == i_k, b_scale, 0.0), axis=0)
        if IS_RELATIVE:
            b_w *= scale / tl.where(largest > 0.0, largest, 1.0)
            if tl.program_id(0) == 0:
                tl.store(p_largest, largest)
        else:
            b_w *= scale
    tl.store(p_out + i_s.to(tl.int64) * D + o_d, b_w.to(p_out.dtype.element_ty), mask=m_d)


@triton.jit(do_not_specialize=["n_columns", "n_parts", "n_bias_parts", "rows", "bias_stride"])
def weight_gradient_kernel(
    p_parts,  # (n_parts, rows, D) float32
    p_bias_parts,  # (n_bias_parts, bias_stride) float32
    p_scale,  # (K,) float32
    p_task_weights,  # (K,) float32
    p_upstream,  # ()
    p_head_of_column,  # (S,) int64
    p_d_weight,  # (S, D)
    p_d_bias,  # (S,)
    D,
    rows,
    bias_stride,
    n_columns,  # blocks of D
    n_parts,
    n_bias_parts,
    NEED_WEIGHT: tl.constexpr,
    NEED_BIAS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: a block of columns of one row of the weight; or, after these, the bias of the row."""
    n_programs = n_columns
    if NEED_BIAS:
        n_programs += 1
    i_s = tl.program_id(0) // n_programs
    i_d = tl.program_id(0) % n_programs
    # The parts before the scale, which needs the head first: the program then waits for memory twice, not three times.
    i_k = tl.load(p_head_of_column + i_s)
    if NEED_WEIGHT and i_d < n_columns:
        o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
        m_d = o_d < D
        b_sum = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
        for o_first in range(0, n_parts, BLOCK_P):
            o_p = o_first + tl.arange(0, BLOCK_P)
            p_row = (o_p.to(tl.int64) * rows + i_s) * D
            m = (o_p < n_parts)[:, None] & m_d[None, :]
            b_sum += tl.load(p_parts + p_row[:, None] + o_d[None, :], mask=m, other=0.0)
        b_dw = tl.sum(b_sum, axis=0) * _scale_of(p_scale, p_task_weights, p_upstream, i_k)
        tl.store(p_d_weight + i_s.to(tl.int64) * D + o_d, b_dw.to(p_d_weight.dtype.element_ty), mask=m_d)
    if NEED_BIAS and i_d == n_columns:
        b_bias = tl.zeros((BLOCK_B,), tl.float32)
        for o_first in range(0, n_bias_parts, BLOCK_B):
            o_p = o_first + tl.arange(0, BLOCK_B)
            p_part = p_bias_parts + o_p.to(tl.int64) * bias_stride + i_s
            b_bias += tl.load(p_part, mask=o_p < n_bias_parts, other=0.0)
        b_db = tl.sum(b_bias, axis=0) * _scale_of(p_scale, p_task_weights, p_upstream, i_k)
        tl.store(p_d_bias + i_s, b_db.to(p_d_bias.dtype.element_ty))


def padded_weight(weight: Tensor, n_rows: int, dtype: torch.dtype) -> Tensor:
    """Return the weight (S, D) in `dtype`, padded with zero rows to (n_rows, D).

    The weight itself if nothing is to be done.
    """
    if len(weight) == n_rows and weight.dtype is dtype:
        return weight
    out = weight.new_empty(n_rows, weight.shape[1], dtype=dtype)
    _scale_rows(weight, out, None, None)
    return out


def scaled_weight(
    weight: Tensor, n_rows: int, dtype: torch.dtype, factors: Factors
) -> tuple[Tensor, Tensor | None]:
    """Return ((n_rows, D), largest ()): the rows times the scales of their heads, and a factor to apply to the product.

    1/N times a weight is subnormal in float16: there the largest scale is applied after the product. For other dtypes
    it is None.
    """
    out = weight.new_empty(n_rows, weight.shape[1], dtype=dtype)
    half = dtype is torch.float16
    largest = torch.empty((), dtype=torch.float32, device=weight.device) if half else None
    _scale_rows(weight, out, factors, largest)
    return out, largest


def _scale_rows(weight: Tensor, out: Tensor, factors: Factors | None, largest: Tensor | None) -> None:
    S, D = weight.shape
    K = 1 if factors is None else len(factors.scale)
    n_columns = cdiv(D, COLUMNS)
    _rows_variant(next_power_of_2(K), factors is not None, largest is not None).launch(
        len(out) * n_columns,
        (weight, out, *((weight,) * 4 if factors is None else factors), out if largest is None else largest),
        (D, S, K, n_columns),
        known=D,
    )


@cache
def _rows_variant(heads: int, is_scaled: bool, is_relative: bool) -> Variant:
    constexprs = {"IS_SCALED": is_scaled, "IS_RELATIVE": is_relative, "BLOCK_K": heads, "BLOCK_D": COLUMNS}
    return Variant(scaled_rows_kernel, constexprs, {"num_warps": WARPS})


def finish_weight(
    parts: Tensor | None, bias_parts: Tensor | None, factors: Factors, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of weight (S, D) and bias (S,) from unscaled parts; None if there are no parts.

    parts (n_parts, rows, D) float32 with rows >= S; bias_parts (n_bias_parts, columns) with columns >= S.
    """
    S, D = weight.shape
    need_weight, need_bias = parts is not None, bias_parts is not None and bias is not None
    d_weight = torch.empty_like(weight) if need_weight else None
    d_bias = torch.empty_like(bias) if need_bias and bias is not None else None
    n_parts, rows = (0, 0) if parts is None else parts.shape[:2]
    n_bias_parts, bias_stride = (0, 0) if bias_parts is None else bias_parts.shape
    blocks = GradientBlocks.of(n_parts, n_bias_parts)
    n_columns = cdiv(D, blocks.columns) if need_weight else 0
    # An argument that a variant never reads still needs a pointer of the same type.
    nothing = factors.scale
    if need_weight or need_bias:
        _gradient_variant(blocks, need_weight, need_bias).launch(
            S * (n_columns + need_bias),
            (
                nothing if parts is None else parts, nothing if bias_parts is None else bias_parts, *factors,
                weight if d_weight is None else d_weight, weight if d_bias is None else d_bias,
            ),
            (D, rows, bias_stride, n_columns, n_parts, n_bias_parts),
            known=D,
        )  # fmt: skip
    return d_weight, d_bias


class GradientBlocks(NamedTuple):
    """Parts, parts of the bias, and columns that a program adds at a time: each time waits for memory."""

    parts: int
    bias_parts: int
    columns: int

    @classmethod
    def of(cls, n_parts: int, n_bias_parts: int) -> GradientBlocks:
        """Return the blocks for so many parts. With a single one, a program takes a longer stretch of a row."""
        bias_parts = 128 if n_bias_parts <= 128 else 1024
        if n_parts <= 1:
            return cls(1, bias_parts, COLUMNS)
        return cls(8 if n_parts <= 8 else 32, bias_parts, 128)


@cache
def _gradient_variant(blocks: GradientBlocks, need_weight: bool, need_bias: bool) -> Variant:
    constexprs = {
        "NEED_WEIGHT": need_weight, "NEED_BIAS": need_bias, "BLOCK_P": blocks.parts, "BLOCK_B": blocks.bias_parts,
        "BLOCK_D": blocks.columns,
    }  # fmt: skip
    return Variant(weight_gradient_kernel, constexprs, {"num_warps": WARPS})


def samples() -> Iterator[Sample]:
    """Yield variants that are launched."""
    factors = types_of("*fp32 p_scale p_task_weights p_upstream", "*i64 p_head_of_column")
    for dtype in ("fp32", "bf16", "fp16"):
        types = types_of(f"*{dtype} p_weight p_out", "*fp32 p_largest", "i32 D S K n_columns")
        yield Sample(f"{dtype} scaled", _rows_variant(8, True, dtype == "fp16"), factors | types)
        types = types_of(
            f"*{dtype} p_d_weight p_d_bias", "*fp32 p_parts p_bias_parts",
            "i32 D rows bias_stride n_columns n_parts n_bias_parts",
        )  # fmt: skip
        for n_parts, n_bias_parts in ((1, 512), (8, 8), (40, 40)):
            variant = _gradient_variant(GradientBlocks.of(n_parts, n_bias_parts), True, True)
            name = f"{dtype} of {'one part' if n_parts == 1 else f'{n_parts} parts'}"
            yield Sample(name, variant, factors | types)
