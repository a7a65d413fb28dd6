"""The losses of a block of rows of one head on a GPU, and their gradient, written over the logits.

A head has C columns of logits z. The formulas are torch.nn.functional's, unscaled (the gradient of the sum over
rows):

    SOFTMAX  loss_n = (1-e) w_y (lse - z_y) + e/C sum_c w_c (lse - z_c),     lse = log sum_c exp z_c
             dz_c   = (1-e) w_y (p_c - [c = y]) + e/C (p_c sum_c w_c - w_c),  p = softmax z

with smoothing e and class weights w; elementwise heads have theirs in `kinds`. A mean divides by the sum of
w_y over valid rows (SOFTMAX) or by the number of targets that are not NaN. A class index outside [0, C) that
is not the ignore_index makes the task's loss NaN, adds no gradient and touches no memory: raising would have
to wait for the device.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .elements import dense_elements
from .tables import load_options


@triton.jit
def _load_logits(p_rows, p_bias, o_c, m_rows, m_c, m_load, HAS_BIAS: tl.constexpr, ALIGNED: tl.constexpr):
    """(BLOCK_N, BLOCK_C) float32 logits with their bias; 0 where masked by m_rows or m_c."""
    b_z = tl.load(p_rows[:, None] + o_c[None, :], mask=m_rows[:, None] & m_load[None, :], other=0.0)
    b_z = b_z.to(tl.float32)
    if ALIGNED:
        # What lies between the head's end and the next multiple of 16 may be anything, NaN included.
        b_z = tl.where(m_c[None, :], b_z, 0.0)
    if HAS_BIAS:
        b_z += tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    return b_z


@triton.jit
def _store_gradient(
    p_rows, p_bias_part, b_dz, o_c, m_n, m_c, m_load, i_trip, NEED_BIAS_GRADIENT: tl.constexpr
):
    """Overwrite a block of logits with its gradient, 0 outside m_c; add its column sums to the program's."""
    if NEED_BIAS_GRADIENT:
        b_before = tl.load(p_bias_part + o_c, mask=m_c & (i_trip > 0), other=0.0)
        tl.store(p_bias_part + o_c, b_before + tl.sum(b_dz, axis=0), mask=m_c)
    p_dz = p_rows[:, None] + o_c[None, :]
    tl.store(p_dz, b_dz.to(p_rows.dtype.element_ty), mask=m_n[:, None] & m_load[None, :])


@triton.jit
def softmax_rows(
    p_rows,
    p_bias,
    p_weights,
    p_targets,
    p_bias_part,
    m_n,
    m_active,
    i_trip,
    C,
    C_load,
    ignore_index,
    smoothing,
    weight_sum,
    HAS_BIAS: tl.constexpr,
    NEED_GRADIENT: tl.constexpr,
    NEED_BIAS_GRADIENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """(loss, denominator, correct) of a block of rows; pointers are already moved to the head.

    p_targets (BLOCK_N,) points at the rows' classes. A row that is not in m_active is not read; its gradient is 0.
    """
    b_y = tl.load(p_targets, mask=m_active, other=0)
    m_used = m_active & (b_y != ignore_index)
    m_valid = m_used & (b_y >= 0) & (b_y < C)
    b_y = tl.where(m_valid, b_y, 0).to(tl.int32)
    b_target_w = tl.load(p_weights + b_y, mask=m_valid, other=0.0)
    b_target_z = tl.load(p_rows + b_y, mask=m_valid, other=0.0).to(tl.float32)
    if HAS_BIAS:
        b_target_z += tl.load(p_bias + b_y, mask=m_valid, other=0.0).to(tl.float32)

    # Every lane keeps a running maximum and sum of its own columns: nothing crosses threads in the loop.
    b_lane_max = tl.full((BLOCK_N, BLOCK_C), float("-inf"), tl.float32)
    b_lane_sum = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    b_lane_gap = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)  # w_c (z_y - z_c)
    b_lane_first = tl.zeros((BLOCK_N, BLOCK_C), tl.int32)  # the first column of the lane's maximum
    # Rows without a label are common (an auxiliary task that few rows carry): no sweep where all are.
    C_used = tl.where(tl.max(m_valid.to(tl.int32), axis=0) > 0, C, 0)
    for o_first in range(0, C_used, BLOCK_C):
        o_c = o_first + tl.arange(0, BLOCK_C)
        m_c = o_c < C
        b_z = _load_logits(p_rows, p_bias, o_c, m_valid, m_c, o_c < C_load, HAS_BIAS, ALIGNED)
        if smoothing > 0.0:
            b_w = tl.load(p_weights + o_c, mask=m_c, other=0.0)
            b_lane_gap += b_w[None, :] * (b_target_z[:, None] - b_z)
        b_z = tl.where(m_c[None, :], b_z, float("-inf"))
        # One exponential serves both cases. Two of -inf give 1 rather than NaN; the sum that this spoils
        # is multiplied by exp(-inf) when a finite logit comes.
        b_decay = tl.where(b_z == b_lane_max, 1.0, tl.exp(-tl.abs(b_z - b_lane_max)))
        m_new = b_z > b_lane_max
        b_lane_sum = tl.where(m_new, b_lane_sum * b_decay + 1.0, b_lane_sum + b_decay)
        b_lane_max = tl.where(m_new, b_z, b_lane_max)
        b_lane_first = tl.where(m_new, o_c[None, :], b_lane_first)

    b_max = tl.max(b_lane_max, axis=1)
    b_sum = tl.sum(b_lane_sum * tl.exp(b_lane_max - b_max[:, None]), axis=1)
    b_nll = b_max - b_target_z + tl.log(b_sum)
    b_loss = (1.0 - smoothing) * b_target_w * b_nll
    if smoothing > 0.0:
        b_loss += smoothing / C * (weight_sum * b_nll + tl.sum(b_lane_gap, axis=1))
    b_loss = tl.where(m_valid, b_loss, tl.where(m_used, float("nan"), 0.0))
    loss = tl.sum(b_loss, axis=0)
    denominator = tl.sum(b_target_w, axis=0)
    # The first maximum of the row counts, as torch.argmax has it.
    b_first = tl.min(tl.where(b_lane_max == b_max[:, None], b_lane_first, C), axis=1)
    correct = tl.sum((m_valid & (b_first == b_y)).to(tl.float32), axis=0)

    if NEED_GRADIENT:
        # A target's logit was read by another thread than the one that overwrites it.
        tl.debug_barrier()
        b_pull = (1.0 - smoothing) * b_target_w
        spread = smoothing / C
        b_scale = (b_pull + spread * weight_sum) / b_sum
        for o_first in range(0, C, BLOCK_C):
            o_c = o_first + tl.arange(0, BLOCK_C)
            m_c = o_c < C
            b_z = _load_logits(p_rows, p_bias, o_c, m_valid, m_c, o_c < C_load, HAS_BIAS, ALIGNED)
            b_w = tl.load(p_weights + o_c, mask=m_c, other=0.0)
            m_hit = o_c[None, :] == b_y[:, None]
            b_p = tl.exp(b_z - b_max[:, None])
            b_dz = b_p * b_scale[:, None] - tl.where(m_hit, b_pull[:, None], 0.0) - spread * b_w[None, :]
            b_dz = tl.where(m_valid[:, None] & m_c[None, :], b_dz, 0.0)
            _store_gradient(
                p_rows, p_bias_part, b_dz, o_c, m_n, m_c, o_c < C_load, i_trip, NEED_BIAS_GRADIENT
            )
    return loss, denominator, correct


@triton.jit
def dense_rows(
    p_rows,
    p_bias,
    p_weights,
    p_targets,
    p_bias_part,
    m_n,
    m_active,
    i_trip,
    C,
    C_load,
    kind,
    p_floats,
    HAS_BIAS: tl.constexpr,
    NEED_GRADIENT: tl.constexpr,
    NEED_BIAS_GRADIENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """(loss, denominator, correct) of a block of rows; p_targets (BLOCK_N,) points at each row's first.

    p_floats points at the head's numbers. A row that is not in m_active is not read; its gradient is 0.
    """
    options = load_options(p_floats)
    b_loss = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    b_count = tl.zeros((BLOCK_N, BLOCK_C), tl.int32)
    b_wrong = tl.zeros((BLOCK_N, BLOCK_C), tl.int32)
    for o_first in range(0, C, BLOCK_C):
        o_c = o_first + tl.arange(0, BLOCK_C)
        m_c = o_c < C
        b_z = _load_logits(p_rows, p_bias, o_c, m_active, m_c, o_c < C_load, HAS_BIAS, ALIGNED)
        m_inside = m_active[:, None] & m_c[None, :]
        b_y = tl.load(p_targets[:, None] + o_c[None, :], mask=m_inside, other=float("nan"))
        m_valid = b_y == b_y
        b_y = tl.where(m_valid, b_y, 0.0)
        b_w = tl.load(p_weights + o_c, mask=m_c, other=0.0)[None, :]
        b_element, b_dz, b_element_wrong = dense_elements(b_z, b_y, b_w, m_valid, kind, options)
        b_loss += b_element
        b_count += m_valid.to(tl.int32)
        b_wrong |= b_element_wrong
        if NEED_GRADIENT:
            _store_gradient(
                p_rows, p_bias_part, b_dz, o_c, m_n, m_c, o_c < C_load, i_trip, NEED_BIAS_GRADIENT
            )
    b_row_count = tl.sum(b_count, axis=1)
    m_right = (b_row_count > 0) & (tl.max(b_wrong, axis=1) == 0)
    loss = tl.sum(tl.sum(b_loss, axis=1), axis=0)
    count = tl.sum(b_row_count, axis=0).to(tl.float32)
    return loss, count, tl.sum(m_right.to(tl.float32), axis=0)
