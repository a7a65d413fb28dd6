"""The factor of every head's logit gradient, from the targets alone, before any gradient is computed.

A mean divides by the sum of the class weights w_y over the valid rows (SOFTMAX) or by the number of targets that are
not NaN (other kinds). Partial sums of a fixed number of parts: no atomics, the same bits in every call.
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
from ..call import HeadsCall
from .constants import IGNORE, KIND, N_INTEGERS, OFFSET, SIZE, SOFTMAX, TARGET
from .tables import head_tables
from .targets import ADDRESSES, MOST_ADDRESSES, Targets

# Parts of a head: enough to count a million rows at memory speed, few enough to add up in one block.
MAX_PARTS = 64
ROWS_PER_PART = 1024
BLOCK, WARPS = 512, 4
ELEMENTS = 1024  # that the scale program adds at a time


N_ADDRESSES: tl.constexpr = tl.constexpr(MOST_ADDRESSES)


@triton.jit
def _target_of(i_k, p_head, addresses, N, row_floats, SIDE_BY_SIDE: tl.constexpr):
    """Return (address of a head's first target, floats per row); p_head points at the head's row of the table.

    Heads are not known at compile time: the kernel is the same for any number of them.
    """
    C = tl.load(p_head + SIZE)
    if SIDE_BY_SIDE:
        target = tl.load(p_head + TARGET)
        is_softmax = tl.load(p_head + KIND) == SOFTMAX
        address = tl.where(is_softmax, addresses[0] + target * N * 8, addresses[1] + target * 4)
        stride = row_floats + tl.zeros_like(C)
    else:
        address = addresses[0]
        for i in tl.static_range(1, N_ADDRESSES):
            address = tl.where(i_k == i, addresses[i], address)
        stride = C
    return address, stride


@triton.jit(do_not_specialize=["N", "K", "per_part", "row_floats", *ADDRESSES])
def count_kernel(
    p_integers,  # (K, N_INTEGERS) int64
    p_weights,  # (S,) float32
    p_task_weights,  # (K,) float32
    p_parts,  # (n_parts, K) float32
    N, K, per_part, row_floats,
    address_0, address_1, address_2, address_3, address_4, address_5, address_6, address_7,
    address_8, address_9, address_10, address_11, address_12, address_13, address_14, address_15,
    SIDE_BY_SIDE: tl.constexpr, SKIP_ZERO_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: per_part rows of one head."""
    i_k = tl.program_id(0) % K
    p_head = p_integers + i_k * N_INTEGERS
    addresses = (
        address_0, address_1, address_2, address_3, address_4, address_5, address_6, address_7,
        address_8, address_9, address_10, address_11, address_12, address_13, address_14, address_15,
    )  # fmt: skip
    address, stride = _target_of(i_k, p_head, addresses, N, row_floats, SIDE_BY_SIDE)
    first = (tl.program_id(0) // K).to(tl.int64) * per_part
    last = tl.minimum(first + per_part, N)
    if SKIP_ZERO_WEIGHTS:
        last = tl.where(tl.load(p_task_weights + i_k) != 0.0, last, first)
    b_sum = tl.zeros((BLOCK,), tl.float32)
    if tl.load(p_head + KIND) == SOFTMAX:
        p_class_weights = p_weights + tl.load(p_head + OFFSET)
        ignore_index = tl.load(p_head + IGNORE)
        C = tl.load(p_head + SIZE)
        p_classes = address.to(tl.int64).to(tl.pointer_type(tl.int64))
        for o_first in range(first, last, BLOCK):
            o_n = o_first + tl.arange(0, BLOCK)
            b_y = tl.load(p_classes + o_n, mask=o_n < last, other=-1)
            m_valid = (o_n < last) & (b_y != ignore_index) & (b_y >= 0) & (b_y < C)
            b_sum += tl.load(p_class_weights + b_y, mask=m_valid, other=0.0)
    else:
        C = tl.load(p_head + SIZE)
        p_rows = address.to(tl.int64).to(tl.pointer_type(tl.float32)) + first * stride
        n_elements = (last - first) * C
        for o_first in range(0, n_elements, BLOCK):
            o_e = o_first + tl.arange(0, BLOCK)
            o_t = o_e // C * stride + o_e % C
            b_t = tl.load(p_rows + o_t, mask=o_e < n_elements, other=float("nan"))
            b_sum += (b_t == b_t).to(tl.float32)
    tl.store(p_parts + tl.program_id(0), tl.sum(b_sum, axis=0))


@triton.jit(do_not_specialize=["K", "n_parts"])
def scale_kernel(
    p_parts,  # (n_parts, K) float32
    p_task_weights,  # (K,) float32
    p_scale,  # (K,) float32
    p_largest,  # () float32, with IS_RELATIVE
    K,
    n_parts,
    IS_RELATIVE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Single program: task weight / denominator of each head.

    With IS_RELATIVE, divided by the largest over all heads.
    """
    o_k = tl.arange(0, BLOCK_K)
    m_k = o_k < K
    b_sum = tl.zeros((BLOCK_P, BLOCK_K), tl.float64)
    for o_first in range(0, n_parts, BLOCK_P):
        o_p = o_first + tl.arange(0, BLOCK_P)
        m = (o_p < n_parts)[:, None] & m_k[None, :]
        b_sum += tl.load(p_parts + o_p[:, None] * K + o_k[None, :], mask=m, other=0.0).to(tl.float64)
    b_of = tl.sum(b_sum, axis=0)
    m_any = b_of > 0.0
    b_weight = tl.load(p_task_weights + o_k, mask=m_k, other=0.0).to(tl.float64)
    b_scale = tl.where(m_any, b_weight / tl.where(m_any, b_of, 1.0), 0.0)
    if IS_RELATIVE:
        largest = tl.max(tl.abs(b_scale), axis=0)
        b_scale = b_scale / tl.where(largest > 0.0, largest, 1.0)
        tl.store(p_largest, largest.to(tl.float32))
    tl.store(p_scale + o_k, b_scale.to(tl.float32), mask=m_k)


class Scales(NamedTuple):
    """Factors of the unscaled logit gradients of the heads, and the remaining factor to apply after a product."""

    of_heads: Tensor  # (K,) float32, task weight / denominator, or 0; divided by `largest` if that is set
    largest: Tensor | None  # () float32


def take_scales(call: HeadsCall, targets: Targets) -> Scales:
    """Compute the scales of a call whose targets have been located.

    1/N is subnormal in float16: there the heads' scales are relative to the largest. A skipped head's scale is 0.
    """
    N, K, device = call.features.shape[0], len(call.layout), call.features.device
    tables = head_tables(call.layout, device)
    n_parts = min(MAX_PARTS, cdiv(N, ROWS_PER_PART))
    parts = torch.empty(n_parts, K, dtype=torch.float32, device=device)
    _count_variant(targets.side_by_side, call.skip_zero_weights).launch(
        n_parts * K,
        (tables.integers, tables.column_weights, call.task_weights, parts),
        (N, K, cdiv(N, max(1, n_parts)), targets.row_floats, *targets.addresses),
    )
    scale = torch.empty(K, dtype=torch.float32, device=device)
    is_relative = call.features.dtype is torch.float16
    largest = torch.empty((), dtype=torch.float32, device=device) if is_relative else None
    _scale_variant(K, is_relative).launch(
        1, (parts, call.task_weights, scale, scale if largest is None else largest), (K, n_parts)
    )
    return Scales(scale, largest)


@cache
def _count_variant(side_by_side: bool, skip_zero_weights: bool) -> Variant:
    constexprs = {"SIDE_BY_SIDE": side_by_side, "SKIP_ZERO_WEIGHTS": skip_zero_weights, "BLOCK": BLOCK}
    return Variant(count_kernel, constexprs, {"num_warps": WARPS})


@cache
def _scale_variant(K: int, is_relative: bool) -> Variant:
    columns = next_power_of_2(K)
    blocks = {"BLOCK_P": max(1, ELEMENTS // columns), "BLOCK_K": columns}
    return Variant(scale_kernel, {"IS_RELATIVE": is_relative, **blocks}, {"num_warps": WARPS})


def samples() -> Iterator[Sample]:
    """Yield variants that `take_scales` launches."""
    types = types_of(
        "*i64 p_integers", "*fp32 p_weights p_task_weights p_parts", "i32 N K per_part row_floats",
        f"i64 {' '.join(ADDRESSES)}",
    )  # fmt: skip
    yield Sample("denominators", _count_variant(False, True), types)
    yield Sample("denominators side by side", _count_variant(True, True), types)
    types = types_of("*fp32 p_parts p_task_weights p_scale p_largest", "i32 K n_parts")
    for K in (1, 5, 16):
        yield Sample(f"scales of {K}", _scale_variant(K, K == 5), types)
