"""The tile plan on a GPU: one kernel reads a tile of features and leaves its losses and gradients.

For few outputs (S <= 64). A program takes every n_programs-th tile of rows: logits of all heads by one
product, each head's loss and logit gradient dz on chip (`triton_tile_heads`), then the features' gradient,
written once, and the tile's part of the weight gradient:

    d_features = dz_scaled @ W,   dz_scaled = dz * task_weight / denominator
    d_weight   = task_weight / denominator * (dz.T @ features)

so denominators are counted first, by a small kernel over the targets. Where one block holds all D features,
a program keeps the sum of its tiles' weight gradients on chip, and a last kernel (`triton_tile_sums`) adds
the programs' sums in a fixed order: the features are read once. Where it does not, the kernel leaves dz
(N, S), and a GEMM makes the weight gradient: to add up partial sums in memory for every tile would move more
than the features do. No atomics: the same bits every call. Nothing waits for the device and no size depends
on its data, so a CUDA graph can capture it.

Rounding: dz is rounded to the features' dtype unscaled for d_weight and scaled relative to the largest
scale for d_features (1/N is subnormal in float16); the scales themselves enter in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import launch_options, on_device_of
from ..kind import HeadSpec, Kind
from ..layout import HeadLayout
from ..protocol import Forward, Needs, Residual
from .denominators import MAX_PARTS, count_parts, mean_scale
from .packed import mm_float32
from .tables import (
    N_FLOATS,
    N_INTEGERS,
    OFFSET,
    SIZE,
    head_tables,
    pack_targets,
)
from .tile_heads import MIXED, ONLY_DENSE, ONLY_SOFTMAX, tile_head
from .tile_sums import TileParts, add_parts
from .upstream import times_upstream


@triton.jit
def _head_scales(p_counts, p_task_weights, K, n_parts, MAX_PARTS: tl.constexpr, BLOCK_K: tl.constexpr):
    """(BLOCK_K,) task weight / denominator; 0 where there is nothing valid, and past K."""
    o_k = tl.arange(0, BLOCK_K)
    o_p = tl.arange(0, MAX_PARTS)
    p_part = p_counts + o_k[:, None] * n_parts + o_p[None, :]
    b_part = tl.load(p_part, mask=(o_k < K)[:, None] & (o_p < n_parts)[None, :], other=0.0)
    b_denominator = tl.sum(b_part, axis=1)
    b_weight = tl.load(p_task_weights + o_k, mask=o_k < K, other=0.0)
    return tl.where(b_denominator > 0.0, b_weight / tl.where(b_denominator > 0.0, b_denominator, 1.0), 0.0)


# D is a constant of a model: with it the compiler widens accesses and drops masks. Other sizes differ
# between the last batch, phases and layouts and stay unspecialized.
@triton.jit(do_not_specialize=["N", "S", "K", "class_stride", "n_dense", "n_parts"])
def tile_kernel(
    p_features,  # (N, D)
    p_weight,  # (S, D), of the features' dtype
    p_bias,  # (S,)
    p_classes,  # (classification heads, class_stride) int64
    p_dense,  # (N, n_dense) float32
    p_integers,  # (K, N_INTEGERS) int64
    p_floats,  # (K, N_FLOATS) float32
    p_weights,  # (S,) float32
    p_task_weights,  # (K,) float32
    p_counts,  # (K, n_parts) float32: parts of the denominators
    p_sums,  # (n_programs, K, 2) float32: loss, correct
    p_d_features,  # (N, D)
    p_weight_parts,  # (n_programs, S, D) float32, unscaled; where one block holds D features
    p_d_logits,  # (N, BLOCK_S), unscaled; elsewhere
    p_bias_parts,  # (n_programs, S) float32, unscaled
    N,
    S,
    K,
    class_stride,
    n_dense,
    n_parts,
    D: tl.constexpr,
    HEAD_KINDS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NEED_FEATURES: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    NEED_BIAS: tl.constexpr,
    SKIP_ZERO_WEIGHTS: tl.constexpr,
    MAX_PARTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program: the tiles i, i + n_programs, ... of BLOCK_N rows."""
    ONE_BLOCK: tl.constexpr = BLOCK_D >= D
    i_p = tl.program_id(0)
    dtype = p_features.dtype.element_ty
    o_s = tl.arange(0, BLOCK_S)
    m_s = o_s < S
    o_d = tl.arange(0, BLOCK_D)
    o_k = tl.arange(0, BLOCK_K)
    o_n = tl.arange(0, BLOCK_N)
    o_w = o_s[:, None] * D

    b_losses = tl.zeros((BLOCK_K,), tl.float32)
    b_corrects = tl.zeros((BLOCK_K,), tl.float32)
    b_bias_sum = tl.zeros((BLOCK_S,), tl.float32)
    if NEED_FEATURES:
        b_scales = _head_scales(p_counts, p_task_weights, K, n_parts, MAX_PARTS, BLOCK_K)
        largest = tl.max(tl.abs(b_scales), axis=0)
        b_relative = tl.zeros((BLOCK_S,), tl.float32)  # each column's scale over the largest
        for k in range(K):
            offset = tl.load(p_integers + k * N_INTEGERS + OFFSET)
            m_k = (o_s >= offset) & (o_s < offset + tl.load(p_integers + k * N_INTEGERS + SIZE))
            scale = tl.sum(tl.where(o_k == k, b_scales, 0.0), axis=0)
            b_relative = tl.where(m_k, scale / tl.where(largest > 0.0, largest, 1.0), b_relative)
    if ONE_BLOCK:
        b_w = tl.load(p_weight + o_w + o_d[None, :], mask=m_s[:, None] & (o_d < D)[None, :], other=0.0)
        b_weight_sum = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)

    for i_tile in range(i_p, tl.cdiv(N, BLOCK_N), tl.num_programs(0)):
        # Within a tile 32 bits are enough, and half the registers.
        first = tl.zeros((), tl.int64) + i_tile * BLOCK_N
        n_rows = tl.minimum(N - first, BLOCK_N).to(tl.int32)
        m_n = o_n < n_rows
        p_h = p_features + first * D
        o_h = o_n[:, None] * D
        if ONE_BLOCK:
            b_h = tl.load(p_h + o_h + o_d[None, :], mask=m_n[:, None] & (o_d < D)[None, :], other=0.0)
            b_z = tl.dot(b_h, tl.trans(b_w), input_precision="ieee")
        else:
            b_z = tl.zeros((BLOCK_N, BLOCK_S), tl.float32)
            for o_first in tl.range(0, D, BLOCK_D, num_stages=STAGES):
                o = o_first + o_d
                b_h = tl.load(p_h + o_h + o[None, :], mask=m_n[:, None] & (o < D)[None, :], other=0.0)
                b_w = tl.load(p_weight + o_w + o[None, :], mask=m_s[:, None] & (o < D)[None, :], other=0.0)
                b_z = tl.dot(b_h, tl.trans(b_w), b_z, input_precision="ieee")
        if HAS_BIAS:
            b_z += tl.load(p_bias + o_s, mask=m_s, other=0.0).to(tl.float32)[None, :]

        b_dz = tl.zeros((BLOCK_N, BLOCK_S), tl.float32)
        for k in range(K):
            n_active = n_rows
            if SKIP_ZERO_WEIGHTS:
                n_active = tl.where(tl.load(p_task_weights + k) != 0.0, n_rows, 0)
            b_dz, loss, correct = tile_head(
                b_z,
                b_dz,
                p_classes,
                p_dense,
                p_weights,
                p_integers + k * N_INTEGERS,
                p_floats + k * N_FLOATS,
                first,
                o_n,
                o_n < n_active,
                o_s,
                class_stride,
                n_dense,
                HEAD_KINDS,
                BLOCK_S,
            )
            b_losses += tl.where(o_k == k, loss, 0.0)
            b_corrects += tl.where(o_k == k, correct, 0.0)

        if NEED_BIAS:
            b_bias_sum += tl.sum(b_dz, axis=0)
        if NEED_FEATURES:
            b_scaled = (b_dz * b_relative[None, :]).to(dtype)
        if ONE_BLOCK:
            if NEED_FEATURES:
                b_d_h = tl.dot(b_scaled, b_w, input_precision="ieee") * largest
                p_d_h = p_d_features + first * D + o_h + o_d[None, :]
                m_h = m_n[:, None] & (o_d < D)[None, :]
                tl.store(p_d_h, b_d_h.to(p_d_features.dtype.element_ty), mask=m_h)
            if NEED_WEIGHT:
                b_weight_sum = tl.dot(tl.trans(b_dz.to(dtype)), b_h, b_weight_sum, input_precision="ieee")
        else:
            if NEED_FEATURES:
                for o_first in tl.range(0, D, BLOCK_D, num_stages=STAGES):
                    o = o_first + o_d
                    m_w = m_s[:, None] & (o < D)[None, :]
                    b_w = tl.load(p_weight + o_w + o[None, :], mask=m_w, other=0.0)
                    b_d_h = tl.dot(b_scaled, b_w, input_precision="ieee") * largest
                    p_d_h = p_d_features + first * D + o_h + o[None, :]
                    m_h = m_n[:, None] & (o < D)[None, :]
                    tl.store(p_d_h, b_d_h.to(p_d_features.dtype.element_ty), mask=m_h)
            if NEED_WEIGHT:
                p_dz = p_d_logits + first * BLOCK_S + o_n[:, None] * BLOCK_S + o_s[None, :]
                tl.store(p_dz, b_dz.to(dtype), mask=m_n[:, None])

    if ONE_BLOCK and NEED_WEIGHT:
        p_weight_part = p_weight_parts + i_p.to(tl.int64) * S * D
        tl.store(p_weight_part + o_w + o_d[None, :], b_weight_sum, mask=m_s[:, None] & (o_d < D)[None, :])
    if NEED_BIAS:
        tl.store(p_bias_parts + i_p.to(tl.int64) * S + o_s, b_bias_sum, mask=m_s)
    p_sum = p_sums + (i_p * K + o_k) * 2
    tl.store(p_sum, b_losses, mask=o_k < K)
    tl.store(p_sum + 1, b_corrects, mask=o_k < K)


class Tiles(NamedTuple):
    """Rows, outputs and features of a block, stages of the loops over features, warps and registers."""

    rows: int
    outputs: int
    features: int
    stages: int
    warps: int
    registers: int | None = None  # a thread may use on NVIDIA

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told."""
        return launch_options(self.warps, self.registers)


# 128 spill registers on sm_80 and sm_100 whatever the rows and warps.
MAX_OUTPUTS = 64
MAX_HEADS = 64
# Features that one block holds.
MAX_ONE_BLOCK = 128
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Programs where there is no GPU to ask: the interpreter.
INTERPRETED_PROGRAMS = 3


def supports(layout: HeadLayout, D: int, dtype: torch.dtype) -> str | None:
    """Why the tile plan cannot serve a layout over D features of this dtype, or None."""
    del D  # any number
    if torch.version.hip is not None:
        return "its kernel spills registers on AMD GPUs"
    if dtype not in DTYPES:
        return f"it has no kernel for {dtype}"
    if layout.width > MAX_OUTPUTS:
        return f"{layout.width} outputs are more than a tile holds ({MAX_OUTPUTS})"
    if len(layout) > MAX_HEADS:
        return f"{len(layout)} heads are more than {MAX_HEADS}"
    return None


def padded_outputs(S: int) -> int:
    """Columns of a tile: a power of two, and at least what a matrix unit takes."""
    return max(16, triton.next_power_of_2(S))


def choose_tiles(S: int, D: int, itemsize: int) -> Tiles:
    """Blocks for S outputs and D features of `itemsize` bytes.

    A table, see `triton_loss_blocks.choose_blocks`. 32 rows: with 64 Triton 3.7 takes Blackwell's tensor
    memory, and its compiler fails. float32 products run without matrix units and need the registers.
    """
    outputs, block = padded_outputs(S), max(16, triton.next_power_of_2(D))
    few = outputs == 16
    if itemsize == 4:
        rows, registers = (16, None) if outputs == 64 else (32, 168)
        return Tiles(rows, outputs, min(block, 32), 1, 4 if few else 8, registers)
    if D <= MAX_ONE_BLOCK:
        return Tiles(32, outputs, block, 1, 4 if few else 8)
    return Tiles(32, outputs, 64, 2, 4 if few else 8, {16: 168, 32: 200}.get(outputs))


@lru_cache
def _max_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


def forward(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
    needs: Needs,
    skip_zero_weights: bool = True,
    tiles: Tiles | None = None,
) -> Forward:
    """Losses of all heads, and as residual the gradients of the total that `needs` asks for.

    With `skip_zero_weights` a task of weight 0 has loss 0 and is not computed. `tiles` overrides the table.
    The first call of a layout on a device copies its tables there: make it before a graph capture.
    Raises ValueError for a layout that `supports` refuses and for targets that do not fit it.
    """
    (N, D), S, K = features.shape, layout.width, len(layout)
    obstacle = supports(layout, D, features.dtype)
    if obstacle:
        raise ValueError(f"plan=tile cannot be honoured: {obstacle}")
    tiles = tiles or choose_tiles(S, D, features.element_size())
    if min(tiles.rows, tiles.outputs, tiles.features) < 16 or tiles.outputs < S:
        raise ValueError(f"{tiles} is too small: matrix units take 16, and the outputs are {S}")
    device = features.device
    tables = head_tables(layout, device)
    packed_targets = pack_targets(targets, layout, N, device)
    classes, dense = packed_targets
    skip_by = task_weights if skip_zero_weights else None
    counts = count_parts(packed_targets, layout, N, skip_by)
    n_programs = min(_max_programs(device), triton.cdiv(N, tiles.rows))
    task_weights = task_weights.contiguous()

    def fresh(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    residual = residual_like(features, weight, bias, layout, needs)
    d_features, d_weight, d_bias = residual
    features = features.contiguous()
    one_block = tiles.features >= D
    parts = TileParts(
        fresh(n_programs, K, 2),
        fresh(n_programs, S, D) if needs[1] and one_block else None,
        fresh(n_programs, S) if needs[2] else None,
    )
    d_logits = features.new_empty(N, tiles.outputs) if needs[1] and not one_block else None
    if N:
        # An argument that a variant never reads still needs a pointer.
        with on_device_of(features):
            tile_kernel[(n_programs,)](
                features,
                weight.to(features.dtype).contiguous(),
                tables.column_weights if bias is None else bias.contiguous(),
                tables.integers if classes is None else classes,
                tables.floats if dense is None else dense,
                tables.integers,
                tables.floats,
                tables.column_weights,
                task_weights,
                counts,
                parts.sums,
                d_features,
                parts.sums if parts.weight is None else parts.weight,
                parts.sums if d_logits is None else d_logits,
                parts.sums if parts.bias is None else parts.bias,
                N,
                S,
                K,
                0 if classes is None else classes.shape[1],
                0 if dense is None else dense.shape[1],
                counts.shape[1],
                **_constexprs(layout, D, tiles, bias is not None, needs, skip_zero_weights),
                **tiles.options,
            )
    losses, correct = add_parts(parts, counts, task_weights, layout, D, d_weight, d_bias)
    if d_logits is not None:
        column_scale = (task_weights * mean_scale(counts))[tables.head_of_column]
        d_weight = mm_float32(d_logits[:, :S].t(), features).mul_(column_scale[:, None])
    return Forward(losses, correct, (d_features, d_weight, d_bias))


def _constexprs(
    layout: HeadLayout, D: int, tiles: Tiles, has_bias: bool, needs: Needs, skip_zero_weights: bool
) -> dict[str, Any]:
    """The compile-time arguments of `tile_kernel`."""
    n_softmax = sum(head.kind.takes_classes for head in layout.heads)
    kinds = ONLY_DENSE if n_softmax == 0 else ONLY_SOFTMAX if n_softmax == len(layout) else MIXED
    return {
        "D": D,
        "HEAD_KINDS": kinds.value,
        "HAS_BIAS": has_bias,
        "NEED_FEATURES": needs[0],
        "NEED_WEIGHT": needs[1],
        "NEED_BIAS": needs[2],
        "SKIP_ZERO_WEIGHTS": skip_zero_weights,
        "MAX_PARTS": MAX_PARTS,
        "BLOCK_K": max(2, triton.next_power_of_2(len(layout))),
        "BLOCK_N": tiles.rows,
        "BLOCK_S": tiles.outputs,
        "BLOCK_D": tiles.features,
        "STAGES": tiles.stages,
    }


def residual_like(
    features: Tensor, weight: Tensor, bias: Tensor | None, layout: HeadLayout, needs: Needs
) -> Residual:
    """Empty tensors of the shapes and dtypes of the residual.

    Gradients of float16 features wait in float32: a loss scale has to come before the rounding.
    """
    dtype = torch.float32 if features.dtype is torch.float16 else features.dtype
    return (
        features.new_empty(features.shape if needs[0] else 0, dtype=dtype),
        features.new_empty(weight.shape if needs[1] else 0, dtype=torch.float32),
        features.new_empty(layout.width if needs[2] else 0, dtype=torch.float32),
    )


# The residual is the gradient: once it is handed out, a second backward pass must make it anew.
RESIDUAL_IS_GRADIENT = True


def backward(
    residual: Residual,
    grad_total: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    task_weights: Tensor,
    layout: HeadLayout,
    needs: Needs,
    *,
    own: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(d_features, d_weight, d_bias), each None where `needs` is False.

    With `own` the residual is nobody else's and may be handed out or overwritten.
    """
    d_features, d_weight, d_bias = (
        times_upstream(gradient, grad_total, t.dtype, own) if need else None  # type: ignore[union-attr]
        for gradient, t, need in zip(residual, (features, weight, bias), needs, strict=True)
    )
    return d_features, d_weight, d_bias


def _variants() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """What `forward` launches: (name, kernel, signature, constexprs, options) for each variant."""
    softmax, mixed = [Kind.SOFTMAX], [Kind.SOFTMAX, Kind.BINARY]
    every, features_frozen, nothing = (True, True, True), (False, True, True), (False, False, False)
    cases = [
        *(("bf16", S, D, mixed, every) for S in (16, 32, 64) for D in (128, 512)),
        *(("fp32", S, 512, mixed, every) for S in (16, 32, 64)),
        ("fp16", 64, 128, mixed, every),
        ("fp16", 64, 512, mixed, every),
        ("bf16", 32, 768, softmax, every),
        ("bf16", 64, 768, softmax, features_frozen),
        ("bf16", 64, 768, [Kind.BINARY], nothing),
        ("bf16", 32, 100, mixed, every),
    ]
    variants = []
    for dtype, S, D, kinds, needs in cases:
        layout = HeadLayout(tuple(HeadSpec(kind, S // len(kinds)) for kind in kinds))
        tiles = choose_tiles(S, D, 4 if dtype == "fp32" else 2)
        signature = {
            **dict.fromkeys(("p_features", "p_weight", "p_bias"), f"*{dtype}"),
            **dict.fromkeys(("p_classes", "p_integers"), "*i64"),
            **dict.fromkeys(("p_dense", "p_floats", "p_weights", "p_task_weights", "p_counts"), "*fp32"),
            **dict.fromkeys(("p_sums", "p_weight_parts", "p_bias_parts"), "*fp32"),
            "p_d_logits": f"*{dtype}",
            "p_d_features": "*fp32" if dtype == "fp16" else f"*{dtype}",
            **dict.fromkeys(("N", "S", "K", "class_stride", "n_dense", "n_parts"), "i32"),
        }
        wanted = "all" if all(needs) else "no d_features" if any(needs) else "no gradient"
        name = f"{dtype} S<={S} D={D} {'+'.join(kind.name.lower() for kind in kinds)} {wanted}"
        constexprs = _constexprs(layout, D, tiles, True, needs, True)
        variants.append((name, tile_kernel, signature, constexprs, tiles.options))
    return variants


VARIANTS = _variants()
# `supports` says why.
NVIDIA_ONLY = True
