"""The tile plan on a GPU, for heads with few outputs in total: four launches, and logits never leave the chip.

    tile_forward_kernel   a tile of rows: logits, losses and the unscaled gradient of the logits, dz (N, BLOCK_S)
    mean_kernel           mean losses, their total, and the factor of each head's gradient
    tile_backward_kernel  the feature gradient of a tile; and the part of the weight gradient from a stretch of rows
    weight_gradient_kernel  the gradients of weight and bias from their parts, in a fixed order

The upstream gradient, a scalar on the device, goes into the factors of the backward launches: scaling the loss costs
nothing, and dz is rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import Sample, Variant, cdiv, gpu_family, types_of
from ..call import Forward, Gradients, HeadsCall, Residual
from ..layout import HeadLayout
from .constants import constants_of
from .head_losses import head_losses
from .means import take_means
from .sample_heads import heads_of
from .tables import head_tables
from .targets import ADDRESSES, locate_targets
from .tile_blocks import (
    ALIGNED_FEATURES,
    Blocks,
    backward_blocks,
    columns_of,
    forward_blocks,
    precision_of,
    rows_per_part,
)
from .weights import Factors, column_scales, finish_weight

WIDEST = 64  # most outputs of all heads together


@triton.jit(do_not_specialize=["N", "S", "row_floats", *ADDRESSES])
def tile_forward_kernel(
    p_features,  # (N, D)
    p_weight,  # (S, D)
    p_bias,  # (S,)
    p_weights,  # (S,) float32
    p_task_weights,  # (K,) float32
    p_dz,  # (N, BLOCK_S)
    p_sums,  # (n_blocks, K, 3) float32
    N, D, S, row_floats,
    address_0, address_1, address_2, address_3, address_4, address_5, address_6, address_7,
    address_8, address_9, address_10, address_11, address_12, address_13, address_14, address_15,
    HAS_BIAS: tl.constexpr, NEED_GRADIENT: tl.constexpr, HEADS: tl.constexpr, N_HEADS: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr, SKIP_ZERO_WEIGHTS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N rows."""
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_s = tl.arange(0, BLOCK_S)
    o_d = tl.arange(0, BLOCK_D)
    m_n, m_s = o_n < N, o_s < S
    p_x = p_features + o_n.to(tl.int64)[:, None] * D + o_d[None, :]
    p_w = p_weight + o_s.to(tl.int64)[None, :] * D + o_d[:, None]
    b_z = tl.zeros((BLOCK_N, BLOCK_S), tl.float32)
    for first in range(0, D, BLOCK_D):
        m_d = first + o_d < D
        b_x = tl.load(p_x + first, mask=m_n[:, None] & m_d[None, :], other=0.0)
        b_w = tl.load(p_w + first, mask=m_s[None, :] & m_d[:, None], other=0.0).to(b_x.dtype)
        b_z = tl.dot(b_x, b_w, b_z, input_precision=PRECISION)
    if HAS_BIAS:
        b_z += tl.load(p_bias + o_s, mask=m_s, other=0.0).to(tl.float32)[None, :]
    addresses = (
        address_0, address_1, address_2, address_3, address_4, address_5, address_6, address_7,
        address_8, address_9, address_10, address_11, address_12, address_13, address_14, address_15,
    )  # fmt: skip
    b_dz = head_losses(
        b_z, o_n, m_n, o_s, p_weights, p_task_weights, p_sums + tl.program_id(0).to(tl.int64) * N_HEADS * 3,
        addresses, N, row_floats, HEADS, 0, N_HEADS, SIDE_BY_SIDE, SKIP_ZERO_WEIGHTS,
    )  # fmt: skip
    if NEED_GRADIENT:
        p_out = p_dz + o_n.to(tl.int64)[:, None] * BLOCK_S + o_s[None, :]
        tl.store(p_out, b_dz.to(p_dz.dtype.element_ty), mask=m_n[:, None])


@triton.jit(do_not_specialize=["N", "S", "n_parts", "n_columns", "per_part"])
def tile_backward_kernel(
    p_dz,  # (N, BLOCK_S)
    p_features,  # (N, D)
    p_weight,  # (S, D)
    p_scale,  # (K,) float32
    p_task_weights,  # (K,) float32
    p_upstream,  # () of any floating dtype
    p_head_of_column,  # (S,) int64
    p_d_features,  # (N, D)
    p_parts,  # (n_parts, BLOCK_S, D) float32, of the weight's gradient, unscaled
    p_bias_parts,  # (n_parts, BLOCK_S) float32
    N,
    D,
    S,
    n_parts,  # parts of the weight's gradient; 0 if it is not needed
    n_columns,  # blocks of D
    per_part,  # rows per part, a multiple of BLOCK_N
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The first programs compute the weight's gradient, each for a block of columns of a part: they take longest.

    The rest, the features', each for a block of columns of a tile.
    """
    i = tl.program_id(0)
    o_s = tl.arange(0, BLOCK_S)
    o_d = i % n_columns * BLOCK_D + tl.arange(0, BLOCK_D)
    m_s, m_d = o_s < S, o_d < D
    i_row = i // n_columns
    if i_row < n_parts:
        first = i_row * per_part
        b_dw = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
        b_db = tl.zeros((BLOCK_S,), tl.float32)
        for o_first in range(first, first + tl.minimum(per_part, N - first), BLOCK_N):
            o_n = o_first + tl.arange(0, BLOCK_N)
            m_n = o_n < N
            b_dz = tl.load(
                p_dz + o_n.to(tl.int64)[None, :] * BLOCK_S + o_s[:, None], mask=m_n[None, :], other=0.0
            )
            b_x = tl.load(
                p_features + o_n.to(tl.int64)[:, None] * D + o_d[None, :],
                mask=m_n[:, None] & m_d[None, :],
                other=0.0,
            )
            b_dw = tl.dot(b_dz, b_x, b_dw, input_precision=PRECISION)
            b_db += tl.sum(b_dz.to(tl.float32), axis=1)
        p_dw = p_parts + (i_row * BLOCK_S + o_s).to(tl.int64)[:, None] * D + o_d[None, :]
        tl.store(p_dw, b_dw, mask=m_s[:, None] & m_d[None, :])
        if i % n_columns == 0:
            tl.store(p_bias_parts + i_row * BLOCK_S + o_s, b_db, mask=m_s)
    else:
        o_n = (i_row - n_parts) * BLOCK_N + tl.arange(0, BLOCK_N)
        m_n = o_n < N
        # Blocks before scales, which wait for one another: the program then waits for memory twice, not three times.
        b_dz = tl.load(
            p_dz + o_n.to(tl.int64)[:, None] * BLOCK_S + o_s[None, :], mask=m_n[:, None], other=0.0
        )
        p_w = p_weight + o_s.to(tl.int64)[:, None] * D + o_d[None, :]
        b_w = tl.load(p_w, mask=m_s[:, None] & m_d[None, :], other=0.0)
        b_scale = column_scales(p_scale, p_task_weights, p_upstream, p_head_of_column, o_s, m_s)
        # 1/N times a weight is subnormal in float16: the largest scale is applied after the product.
        largest = tl.max(tl.abs(b_scale), axis=0)
        b_relative = b_scale / tl.where(largest > 0.0, largest, 1.0)
        b_dz = (b_dz.to(tl.float32) * b_relative[None, :]).to(b_dz.dtype)
        b_dx = tl.dot(b_dz, b_w.to(b_dz.dtype), input_precision=PRECISION) * largest
        p_dx = p_d_features + o_n.to(tl.int64)[:, None] * D + o_d[None, :]
        tl.store(p_dx, b_dx.to(p_d_features.dtype.element_ty), mask=m_n[:, None] & m_d[None, :])


def _precision(features: Tensor) -> str:
    return precision_of(features.dtype is torch.float32, gpu_family(features.device))


@cache
def _forward_variant(
    layout: HeadLayout,
    has_bias: bool,
    need_gradient: bool,
    side_by_side: bool,
    skip_zero_weights: bool,
    precision: str,
    blocks: Blocks,
    columns: int,
) -> Variant:
    constexprs = {
        "HAS_BIAS": has_bias, "NEED_GRADIENT": need_gradient, "HEADS": constants_of(layout),
        "N_HEADS": len(layout), "SIDE_BY_SIDE": side_by_side, "SKIP_ZERO_WEIGHTS": skip_zero_weights,
        "PRECISION": precision, "BLOCK_N": blocks.rows, "BLOCK_S": columns, "BLOCK_D": blocks.features,
    }  # fmt: skip
    return Variant(tile_forward_kernel, constexprs, blocks.options)


@cache
def _backward_variant(precision: str, blocks: Blocks, columns: int) -> Variant:
    constexprs = {
        "PRECISION": precision, "BLOCK_N": blocks.rows, "BLOCK_S": columns, "BLOCK_D": blocks.features,
    }  # fmt: skip
    return Variant(tile_backward_kernel, constexprs, blocks.options)


RESIDUAL_IS_GRADIENT = False


def forward(call: HeadsCall) -> Forward:
    """Compute the losses of all heads; the residual is (dz (N, BLOCK_S), scale (K,)), or nothing if none is needed."""
    features, weight, layout = call.features.contiguous(), call.weight.contiguous(), call.layout
    if layout.width > WIDEST:
        raise ValueError(
            f"plan=tile supports at most {WIDEST} outputs, but these heads have {layout.width:,}; use plan=auto"
        )
    (N, D), S, K = features.shape, layout.width, len(layout)
    device = features.device
    blocks = forward_blocks(N, D, features.element_size(), layout, gpu_family(device))
    tables = head_tables(layout, device)
    targets = locate_targets(call.targets, layout, N)
    n_blocks = cdiv(N, blocks.rows)
    sums = torch.empty(n_blocks, K, 3, dtype=torch.float32, device=device)
    need_gradient = any(call.needs)
    dz = features.new_empty((N, columns_of(S)) if need_gradient else 0)
    _forward_variant(
        layout, call.bias is not None, need_gradient, targets.side_by_side, call.skip_zero_weights,
        _precision(features), blocks, columns_of(S),
    ).launch(
        n_blocks,
        (
            features, weight, tables.column_weights if call.bias is None else call.bias.contiguous(),
            tables.column_weights, call.task_weights, dz, sums,
        ),
        (N, D, S, targets.row_floats, *targets.addresses),
        known=D,
    )  # fmt: skip
    means = take_means(sums, call.task_weights)
    residual: Residual = (dz, means.scale) if need_gradient else ()
    return Forward(means.losses, means.correct, residual, means.total)


def residual_like(call: HeadsCall) -> Residual:
    """Return empty tensors of the shapes and dtypes of the residual."""
    features, layout = call.features, call.layout
    if not any(call.needs):
        return ()
    dz = features.new_empty(features.shape[0], columns_of(layout.width))
    return dz, features.new_empty(len(layout), dtype=torch.float32)


def backward(call: HeadsCall, residual: Residual, grad_total: Tensor, *, own: bool) -> Gradients:
    """Return (d_features, d_weight, d_bias), each None if not needed; the residual is not modified."""
    del own
    dz, scale, *_ = residual
    features, weight, layout = call.features.contiguous(), call.weight.contiguous(), call.layout
    need_features, need_weight, need_bias = call.needs
    (N, D), S = features.shape, layout.width
    blocks, columns = backward_blocks(D, features.element_size(), gpu_family(features.device)), columns_of(S)
    per_part, n_columns = rows_per_part(N, D, blocks), cdiv(D, blocks.features)
    n_parts = max(1, cdiv(N, per_part)) if need_weight or need_bias else 0
    n_tiles = cdiv(N, blocks.rows) if need_features else 0
    d_features = torch.empty_like(features) if need_features else None
    parts = torch.empty(n_parts, columns, D, dtype=torch.float32, device=features.device)
    bias_parts = torch.empty(n_parts, columns, dtype=torch.float32, device=features.device)
    factors = Factors(
        scale, call.task_weights, grad_total, head_tables(layout, features.device).head_of_column
    )
    _backward_variant(_precision(features), blocks, columns).launch(
        (n_tiles + n_parts) * n_columns,
        (
            dz, features, weight, *factors, features if d_features is None else d_features, parts, bias_parts,
        ),
        (N, D, S, n_parts, n_columns, per_part),
        known=D,
    )  # fmt: skip
    found = finish_weight(
        parts if need_weight else None, bias_parts if need_bias else None, factors, weight, call.bias
    )
    return d_features, *found


# Outputs, rows and kinds of heads for which the forward kernel is compiled ahead of time.
SHAPES = (
    (45, 8192, ""), (45, 512, ""), (45, 8192, "smoothed"), (45, 8192, "weighted"), (45, 8192, "values"),
    (17, 4096, "values"), (45, 4096, "weighted"), (60, 8192, "several"), (60, 4096, "several"), (60, 4096, "many"),
    (60, 8192, "many"),
)  # fmt: skip


def samples_for(family: str) -> Iterator[Sample]:
    """Yield variants that are launched on a family of GPUs."""
    for (dtype, itemsize), D in product((("fp32", 4), ("bf16", 2), ("fp16", 2)), (768, 100)):
        precision = precision_of(dtype == "fp32", family)
        known = "i32:16 D" if D % ALIGNED_FEATURES == 0 else "i32 D"
        for S, N, what in SHAPES:
            layout = HeadLayout(heads_of((S - 15, 7, 5, 3), what))
            blocks = forward_blocks(N, D, itemsize, layout, family)
            variant = _forward_variant(
                layout, True, True, what == "many", True, precision, blocks, columns_of(S)
            )
            types = types_of(
                f"*{dtype} p_features p_weight p_bias p_dz", "*fp32 p_weights p_task_weights p_sums",
                known, "i32 N S row_floats", f"i64 {' '.join(ADDRESSES)}",
            )  # fmt: skip
            name = f"{dtype} {blocks.rows}x{columns_of(S)} D={D} {what}".rstrip()
            yield Sample(name, variant, types)
        for S in (45, 17):
            variant = _backward_variant(precision, backward_blocks(D, itemsize, family), columns_of(S))
            types = types_of(
                f"*{dtype} p_dz p_features p_weight p_d_features", "*fp32 p_scale p_task_weights p_upstream",
                "*i64 p_head_of_column", "*fp32 p_parts p_bias_parts",
                known, "i32 N S n_parts n_columns per_part",
            )  # fmt: skip
            yield Sample(f"{dtype} {columns_of(S)} D={D}", variant, types)
