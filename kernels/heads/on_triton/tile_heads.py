"""The losses of a tile of rows of every head on a GPU, and their gradients, from logits on chip.

The formulas are those of `loss_rows`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .elements import dense_elements
from .tables import (
    IGNORE,
    KIND,
    OFFSET,
    SIZE,
    SMOOTHING,
    SOFTMAX,
    TARGET,
    WEIGHT_SUM,
    load_options,
)

# What HEAD_KINDS says of a layout, so that a variant holds only the code that it runs.
ONLY_SOFTMAX: tl.constexpr = tl.constexpr(0)
ONLY_DENSE: tl.constexpr = tl.constexpr(1)
MIXED: tl.constexpr = tl.constexpr(2)


@triton.jit
def _softmax_head(
    b_z, b_dz, p_rows, p_weights, p_integers, p_floats, o_n, m_rows, o_s, BLOCK_S: tl.constexpr
):
    """(b_dz with the head's columns filled in, loss, correct) of a tile; p_rows: the tile's classes."""
    offset = tl.load(p_integers + OFFSET).to(tl.int32)
    C = tl.load(p_integers + SIZE).to(tl.int32)
    smoothing = tl.load(p_floats + SMOOTHING)
    weight_sum = tl.load(p_floats + WEIGHT_SUM)
    m_k = (o_s >= offset) & (o_s < offset + C)
    b_y = tl.load(p_rows + o_n, mask=m_rows, other=0)
    m_used = m_rows & (b_y != tl.load(p_integers + IGNORE))
    m_valid = m_used & (b_y >= 0) & (b_y < C)
    loss = 0.0
    correct = 0.0
    # An auxiliary task that few rows carry has nothing in most tiles.
    if tl.max(m_used.to(tl.int32), axis=0) > 0:
        b_hit = tl.where(m_valid, b_y.to(tl.int32) + offset, -1)  # the target's column, if there is one
        b_target_w = tl.load(p_weights + b_hit, mask=m_valid, other=0.0)
        m_hit = o_s[None, :] == b_hit[:, None]
        b_own = tl.where(m_k[None, :], b_z, float("-inf"))
        b_max = tl.max(b_own, axis=1)
        # The first maximum counts, as torch.argmax has it.
        b_first = tl.min(tl.where(b_own == b_max[:, None], o_s[None, :], BLOCK_S), axis=1)
        b_e = tl.exp(b_own - b_max[:, None])
        b_sum = tl.sum(b_e, axis=1)
        b_target_z = tl.sum(tl.where(m_hit, b_z, 0.0), axis=1)
        b_nll = b_max - b_target_z + tl.log(b_sum)
        b_pull = (1.0 - smoothing) * b_target_w
        b_loss = b_pull * b_nll
        spread = smoothing / C
        b_scale = (b_pull + spread * weight_sum) / b_sum
        b_own_dz = b_e * b_scale[:, None] - tl.where(m_hit, b_pull[:, None], 0.0)
        if smoothing > 0.0:
            b_w = tl.load(p_weights + o_s, mask=m_k, other=0.0)
            b_gap = tl.where(m_k[None, :], b_w[None, :] * (b_target_z[:, None] - b_z), 0.0)
            b_loss += spread * (weight_sum * b_nll + tl.sum(b_gap, axis=1))
            b_own_dz -= spread * b_w[None, :]
        b_loss = tl.where(m_valid, b_loss, tl.where(m_used, float("nan"), 0.0))
        loss = tl.sum(b_loss, axis=0)
        correct = tl.sum((m_valid & (b_first == b_hit)).to(tl.float32), axis=0)
        b_dz = tl.where(m_valid[:, None] & m_k[None, :], b_own_dz, b_dz)
    return b_dz, loss, correct


@triton.jit
def _dense_head(b_z, b_dz, p_rows, n_dense, p_weights, p_integers, p_floats, o_n, m_rows, o_s):
    """(b_dz with the head's columns filled in, loss, correct) of a tile; p_rows: the tile's first target."""
    offset = tl.load(p_integers + OFFSET).to(tl.int32)
    C = tl.load(p_integers + SIZE).to(tl.int32)
    kind = tl.load(p_integers + KIND)
    m_k = (o_s >= offset) & (o_s < offset + C)
    p_y = p_rows + o_n[:, None] * n_dense + (o_s - offset)[None, :]
    b_y = tl.load(p_y, mask=m_rows[:, None] & m_k[None, :], other=float("nan"))
    m_valid = b_y == b_y
    b_y = tl.where(m_valid, b_y, 0.0)
    b_w = tl.load(p_weights + o_s, mask=m_k, other=0.0)[None, :]
    options = load_options(p_floats)
    b_loss, b_own_dz, b_wrong = dense_elements(b_z, b_y, b_w, m_valid, kind, options)
    m_right = (tl.max(m_valid.to(tl.int32), axis=1) > 0) & (tl.max(b_wrong, axis=1) == 0)
    loss = tl.sum(tl.sum(b_loss, axis=1), axis=0)
    return tl.where(m_valid, b_own_dz, b_dz), loss, tl.sum(m_right.to(tl.float32), axis=0)


@triton.jit
def tile_head(
    b_z,
    b_dz,
    p_classes,
    p_dense,
    p_weights,
    p_integers,
    p_floats,
    first,
    o_n,
    m_rows,
    o_s,
    class_stride,
    n_dense,
    HEAD_KINDS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One head of either sort; p_integers and p_floats point at its rows."""
    target = tl.load(p_integers + TARGET)
    p_y = p_classes + target * class_stride + first
    p_t = p_dense + first * n_dense + target
    if HEAD_KINDS == ONLY_SOFTMAX:
        b_dz, loss, correct = _softmax_head(
            b_z, b_dz, p_y, p_weights, p_integers, p_floats, o_n, m_rows, o_s, BLOCK_S
        )
    elif HEAD_KINDS == ONLY_DENSE:
        b_dz, loss, correct = _dense_head(
            b_z, b_dz, p_t, n_dense, p_weights, p_integers, p_floats, o_n, m_rows, o_s
        )
    else:
        if tl.load(p_integers + KIND) == SOFTMAX:
            b_dz, loss, correct = _softmax_head(
                b_z, b_dz, p_y, p_weights, p_integers, p_floats, o_n, m_rows, o_s, BLOCK_S
            )
        else:
            b_dz, loss, correct = _dense_head(
                b_z, b_dz, p_t, n_dense, p_weights, p_integers, p_floats, o_n, m_rows, o_s
            )
    return b_dz, loss, correct
