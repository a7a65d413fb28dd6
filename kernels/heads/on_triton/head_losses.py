"""The losses of a block of rows of some heads on a GPU, and their gradient, from logits in registers.

A head has C columns of logits z. The formulas are those of torch.nn.functional, unscaled (the gradient of the sum over
rows):

    SOFTMAX  loss_n = (1-e) w_y (lse - z_y) + e/C sum_c w_c (lse - z_c),     lse = log sum_c exp z_c
             dz_c   = (1-e) w_y (p_c - [c = y]) + e/C (p_c sum_c w_c - w_c),  p = softmax z

with smoothing e and class weights w; those of elementwise heads are in `kinds`. A mean divides by the sum of w_y over
valid rows (SOFTMAX) or by the number of targets that are not NaN. A class index outside [0, C) that is not the
ignore_index makes the task's loss NaN, adds no gradient and touches no memory: raising would require waiting for the
device.

The block is as wide as all its heads together; computations for one head are masked.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .constants import (
    IGNORE,
    KIND,
    N_CONSTANTS,
    NUMBERS,
    OFFSET,
    SIZE,
    SMOOTHING,
    SOFTMAX,
    WEIGHT_SUM,
    WEIGHTED,
)  # fmt: skip
from .elements import dense_elements
from .targets import load_classes, load_values, target_of

# Heads whose sums are added together, in 16 columns: the threads of a program wait for one another at every sum over
# rows, and more columns would take more registers.
HEADS_AT_ONCE: tl.constexpr = tl.constexpr(5)


@triton.constexpr_function
def _end(first, last):
    """One past the last head of those from `first` on whose sums are added together."""
    return min(first + HEADS_AT_ONCE.value, last)


@triton.jit
def head_losses(
    b_z,
    o_n,
    m_n,
    o_s,
    p_weights,
    p_task_weights,
    p_sums,
    addresses,
    N,
    row_floats,
    HEADS: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr,
    SKIP_ZERO_WEIGHTS: tl.constexpr,
):
    """Return the float32 gradient (BLOCK_N, BLOCK_S) of logits b_z, which include the bias.

    Columns that belong to none of the heads are unchanged.
    o_n, m_n: the rows and the mask of existing rows. o_s: the columns in the layout.
    HEADS: `constants_of` the layout, of which heads FIRST..LAST are computed; a head known at compile time waits for no
    table.
    p_sums: (K, 3) float32, where loss, denominator and correct rows of each head are stored.
    """
    o_sum = tl.arange(0, 16)
    for first in tl.static_range(FIRST, LAST, HEADS_AT_ONCE):
        b_sums = tl.zeros((b_z.shape[0], 16), tl.float32)
        for k in tl.static_range(first, _end(first, LAST)):
            m_active = m_n
            if SKIP_ZERO_WEIGHTS:
                m_active = o_n < tl.where(tl.load(p_task_weights + k) != 0.0, N, 0)
            address = target_of(k, addresses, N, HEADS, SIDE_BY_SIDE)
            # Columns of other heads are unchanged: one block holds both logits and gradients.
            b_z, b_loss, b_denominator, b_correct = _turn_head(
                b_z, o_n, m_active, o_s, p_weights, address, row_floats, HEADS, k, SIDE_BY_SIDE
            )  # fmt: skip
            o_own = o_sum[None, :] - 3 * (k - first)
            b_sums = tl.where(o_own == 0, b_loss[:, None], b_sums)
            b_sums = tl.where(o_own == 1, b_denominator[:, None], b_sums)
            b_sums = tl.where(o_own == 2, b_correct[:, None], b_sums)
        m_sum = o_sum < 3 * (_end(first, LAST) - first)
        tl.store(p_sums + first * 3 + o_sum, tl.sum(b_sums, axis=0), mask=m_sum)
    return b_z


@triton.jit
def _turn_head(
    b_z,
    o_n,
    m_n,
    o_s,
    p_weights,
    address,
    row_floats,
    HEADS: tl.constexpr,
    k: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr,
):
    """Return (b_z with the gradient of head k in its columns; losses, denominators and correct rows, (BLOCK_N,) each).

    m_n: the rows to compute.
    """
    AT: tl.constexpr = k * N_CONSTANTS
    offset: tl.constexpr = HEADS[AT + OFFSET]
    C: tl.constexpr = HEADS[AT + SIZE]
    m_c = (o_s >= offset) & (o_s < offset + C)
    o_c = o_s - offset
    b_w = tl.load(p_weights + o_s, mask=m_c, other=0.0) if HEADS[AT + WEIGHTED] else m_c.to(tl.float32)
    if HEADS[AT + KIND] == SOFTMAX:
        b_y, m_used, m_valid = load_classes(address, o_n, m_n, C, HEADS[AT + IGNORE])
        b_loss, b_denominator, b_correct, b_own = _softmax(
            b_z,
            b_y,
            m_used,
            m_valid,
            o_c,
            m_c,
            b_w,
            C,
            HEADS[AT + SMOOTHING],
            HEADS[AT + WEIGHT_SUM],
            HEADS[AT + WEIGHTED],
        )
    else:
        stride = row_floats if SIDE_BY_SIDE else C
        b_t = load_values(address, stride, o_n, o_c, m_n[:, None] & m_c[None, :])
        b_loss, b_denominator, b_correct, b_own = _elementwise(
            b_z, b_t, b_w, HEADS[AT + KIND], options_at(HEADS, k)
        )
    return tl.where(m_c[None, :], b_own, b_z), b_loss, b_denominator, b_correct


@triton.jit
def options_at(HEADS: tl.constexpr, k: tl.constexpr):
    """Return a head's numbers, as its element function takes them."""
    first: tl.constexpr = k * N_CONSTANTS + NUMBERS
    return (
        tl.full((), HEADS[first], tl.float32),
        tl.full((), HEADS[first + 1], tl.float32),
        tl.full((), HEADS[first + 2], tl.float32),
        tl.full((), HEADS[first + 3], tl.float32),
    )


@triton.jit
def _softmax(
    b_z,
    b_y,
    m_used,
    m_valid,
    o_c,
    m_c,
    b_w,
    C: tl.constexpr,
    smoothing: tl.constexpr,
    weight_sum: tl.constexpr,
    IS_WEIGHTED: tl.constexpr,
):
    """Return (loss, denominator, correct, each (BLOCK_N,), and the gradient) of one head."""
    m_hit = (o_c[None, :] == b_y[:, None]) & m_c[None, :]
    b_z = tl.where(m_c[None, :], b_z, float("-inf"))
    b_max = tl.max(b_z, axis=1)
    b_e = tl.exp(b_z - b_max[:, None])
    b_sum = tl.sum(b_e, axis=1)
    b_target_z = tl.sum(tl.where(m_hit, b_z, 0.0), axis=1)
    b_target_w = m_valid.to(tl.float32)
    if IS_WEIGHTED:
        b_target_w = tl.sum(tl.where(m_hit, b_w[None, :], 0.0), axis=1)
    b_nll = b_max - b_target_z + tl.log(b_sum)
    b_loss = (1.0 - smoothing) * b_target_w * b_nll
    if smoothing > 0.0:
        b_gap = b_w[None, :] * (b_target_z[:, None] - tl.where(m_c[None, :], b_z, 0.0))
        b_loss += smoothing / C * (weight_sum * b_nll + tl.sum(b_gap, axis=1))
    b_loss = tl.where(m_valid, b_loss, tl.where(m_used, float("nan"), 0.0))
    # Like torch.argmax, take the first maximum of the row.
    b_first = tl.min(tl.where(b_z == b_max[:, None], o_c[None, :], C), axis=1)
    b_correct = (m_valid & (b_first == b_y)).to(tl.float32)
    b_pull = (1.0 - smoothing) * b_target_w
    b_scale = (b_pull + smoothing / C * weight_sum) / b_sum
    b_dz = b_e * b_scale[:, None] - tl.where(m_hit, b_pull[:, None], 0.0)
    if smoothing > 0.0:
        b_dz -= smoothing / C * b_w[None, :]
    if C == 1:  # a loss of 0 in any case: rounding errors would be a step to Adam, which normalizes gradients
        b_dz = tl.zeros_like(b_dz)
    b_dz = tl.where(m_valid[:, None] & m_c[None, :], b_dz, 0.0)
    return b_loss, b_target_w, b_correct, b_dz


@triton.jit
def _elementwise(b_z, b_t, b_w, kind: tl.constexpr, numbers):
    """Return what `_softmax` does, from float targets; NaN = no target."""
    m_known = b_t == b_t
    b_t = tl.where(m_known, b_t, 0.0)
    b_loss, b_dz, b_wrong = dense_elements(b_z, b_t, b_w[None, :], m_known, kind, numbers)
    b_count = tl.sum(m_known.to(tl.int32), axis=1)
    m_right = (b_count > 0) & (tl.max(b_wrong, axis=1) == 0)
    return tl.sum(b_loss, axis=1), b_count.to(tl.float32), m_right.to(tl.float32), b_dz
