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
    TARGET,
    WEIGHT_SUM,
    WEIGHTED,
)
from .elements import dense_elements
from .targets import load_classes, load_values, target_of

# Heads whose sums are added together, in 16 columns: the threads of a program wait for one another at every sum over
# rows, and more columns would take more registers.
HEADS_AT_ONCE: tl.constexpr = tl.constexpr(5)


# From so many equal heads on, one after another, a program loops over them: unrolled, 32 heads of two classes took the
# compiler 19 seconds of a processor.
LOOPED: tl.constexpr = tl.constexpr(4)
N_SPAN: tl.constexpr = tl.constexpr(3)  # numbers of a span


@triton.constexpr_function
def _spans(heads, first, last, side_by_side):
    """Divide heads first..last: (its first head, one past its last one, whether they are looped over) of each span.

    Only targets side by side are at equal distances, and in memory: a list of addresses has to be known.
    """
    n, found = N_CONSTANTS.value, []
    # What the compiler knows of each head, but for where it lies.
    known = {
        k: [heads[k * n + i] for i in range(n) if i not in (OFFSET.value, TARGET.value)]
        for k in range(first, last)
    }
    k = first
    while k < last:
        end = k + 1
        while side_by_side and end < last and known[end] == known[k]:
            end += 1
        looped = end - k >= LOOPED.value
        if not looped:
            end = k + 1
        if found and not looped and not found[-1][2] and k - found[-1][0] < HEADS_AT_ONCE.value:
            found[-1] = (found[-1][0], end, False)
        else:
            found.append((k, end, looped))
        k = end
    return tuple(int(number) for span in found for number in span)


@triton.constexpr_function
def _n_spans(spans):
    return len(spans) // N_SPAN.value


@triton.constexpr_function
def _weighs(heads, first, last):
    """Whether a head of first..last has column weights."""
    return any(heads[k * N_CONSTANTS.value + WEIGHTED.value] for k in range(first, last))


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
    b_weights = tl.full(o_s.shape, 1.0, tl.float32)
    if _weighs(HEADS, FIRST, LAST):
        # Loaded once, not for each head: the compiler begins all loads early, and holds what they bring.
        END: tl.constexpr = HEADS[(LAST - 1) * N_CONSTANTS + OFFSET] + HEADS[(LAST - 1) * N_CONSTANTS + SIZE]
        m_own = (o_s >= HEADS[FIRST * N_CONSTANTS + OFFSET]) & (o_s < END)
        b_weights = tl.load(p_weights + o_s, mask=m_own, other=0.0)
    SPANS: tl.constexpr = _spans(HEADS, FIRST, LAST, SIDE_BY_SIDE)
    for i in tl.static_range(_n_spans(SPANS)):
        if SPANS[i * N_SPAN + 2]:
            b_z = _turn_equal_heads(
                b_z, o_n, m_n, o_s, b_weights, p_weights, p_task_weights, p_sums, addresses, N, row_floats, HEADS,
                SPANS[i * N_SPAN], SPANS[i * N_SPAN + 1], SIDE_BY_SIDE, SKIP_ZERO_WEIGHTS,
            )  # fmt: skip
        else:
            b_z = _turn_heads(
                b_z, o_n, m_n, o_s, b_weights, p_weights, p_task_weights, p_sums, addresses, N, row_floats, HEADS,
                SPANS[i * N_SPAN], SPANS[i * N_SPAN + 1], SIDE_BY_SIDE, SKIP_ZERO_WEIGHTS,
            )  # fmt: skip
    return b_z


@triton.jit
def _turn_heads(
    b_z, o_n, m_n, o_s, b_weights, p_weights, p_task_weights, p_sums, addresses, N, row_floats, HEADS: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr, SIDE_BY_SIDE: tl.constexpr, SKIP_ZERO_WEIGHTS: tl.constexpr,
):  # fmt: skip
    """Return b_z with the gradient of heads FIRST..LAST in their columns; store the sums of all of them at once."""
    o_sum = tl.arange(0, 16)
    b_sums = tl.zeros((b_z.shape[0], 16), tl.float32)
    for k in tl.static_range(FIRST, LAST):
        # Columns of other heads are unchanged: one block holds both logits and gradients.
        b_z, b_loss, b_denominator, b_correct = _turn_head(
            b_z, o_n, _active(o_n, m_n, p_task_weights + k, N, SKIP_ZERO_WEIGHTS), o_s, b_weights, p_weights,
            target_of(k, addresses, N, HEADS, SIDE_BY_SIDE), row_floats, HEADS, k, SIDE_BY_SIDE,
        )  # fmt: skip
        o_own = o_sum[None, :] - 3 * (k - FIRST)
        b_sums = tl.where(o_own == 0, b_loss[:, None], b_sums)
        b_sums = tl.where(o_own == 1, b_denominator[:, None], b_sums)
        b_sums = tl.where(o_own == 2, b_correct[:, None], b_sums)
    tl.store(p_sums + FIRST * 3 + o_sum, tl.sum(b_sums, axis=0), mask=o_sum < 3 * (LAST - FIRST))
    return b_z


@triton.jit
def _turn_equal_heads(
    b_z, o_n, m_n, o_s, b_weights, p_weights, p_task_weights, p_sums, addresses, N, row_floats, HEADS: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr, SIDE_BY_SIDE: tl.constexpr, SKIP_ZERO_WEIGHTS: tl.constexpr,
):  # fmt: skip
    """As `_turn_heads`, one head after another by the same code."""
    C: tl.constexpr = HEADS[FIRST * N_CONSTANTS + SIZE]
    IS_CLASSES: tl.constexpr = HEADS[FIRST * N_CONSTANTS + KIND] == SOFTMAX
    o_sum = tl.arange(0, 16)
    target_bytes = tl.full((), C * 4, tl.int64)
    if IS_CLASSES:
        target_bytes = N.to(tl.int64) * 8
    address = target_of(FIRST, addresses, N, HEADS, SIDE_BY_SIDE)
    for j in range(LAST - FIRST):
        # The columns as the first of these heads sees its own.
        b_z, b_loss, b_denominator, b_correct = _turn_head(
            b_z, o_n, _active(o_n, m_n, p_task_weights + FIRST + j, N, SKIP_ZERO_WEIGHTS), o_s - j * C, b_weights,
            p_weights + j * C, address + j * target_bytes, row_floats, HEADS, FIRST, SIDE_BY_SIDE,
        )  # fmt: skip
        b_sums = tl.where(o_sum[None, :] == 0, b_loss[:, None], b_correct[:, None])
        b_sums = tl.where(o_sum[None, :] == 1, b_denominator[:, None], b_sums)
        tl.store(p_sums + (FIRST + j) * 3 + o_sum, tl.sum(b_sums, axis=0), mask=o_sum < 3)
    return b_z


@triton.jit
def _active(o_n, m_n, p_task_weight, N, SKIP_ZERO_WEIGHTS: tl.constexpr):
    """Return the mask of the rows to compute of a head."""
    m_active = m_n
    if SKIP_ZERO_WEIGHTS:
        m_active = o_n < tl.where(tl.load(p_task_weight) != 0.0, N, 0)
    return m_active


@triton.jit
def _turn_head(
    b_z,
    o_n,
    m_n,
    o_s,
    b_weights,
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
    b_w = tl.where(m_c, b_weights, 0.0) if HEADS[AT + WEIGHTED] else m_c.to(tl.float32)
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
            p_weights + offset,
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
    p_own_weights,
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
        b_target_w = tl.load(p_own_weights + b_y, mask=m_valid, other=0.0)
    b_nll = b_max - b_target_z + tl.log(b_sum)
    b_loss = (1.0 - smoothing) * b_target_w * b_nll
    if smoothing > 0.0:
        b_gap = tl.where(m_c[None, :], b_target_z[:, None] - b_z, 0.0)
        if IS_WEIGHTED:
            b_gap *= b_w[None, :]
        b_loss += smoothing / C * (weight_sum * b_nll + tl.sum(b_gap, axis=1))
    b_loss = tl.where(m_valid, b_loss, tl.where(m_used, float("nan"), 0.0))
    # Like torch.argmax, take the first maximum of the row.
    b_first = tl.min(tl.where(b_z == b_max[:, None], o_c[None, :], C), axis=1)
    b_correct = (m_valid & (b_first == b_y)).to(tl.float32)
    b_pull = (1.0 - smoothing) * b_target_w
    b_scale = (b_pull + smoothing / C * weight_sum) / b_sum
    b_dz = b_e * b_scale[:, None] - tl.where(m_hit, b_pull[:, None], 0.0)
    if smoothing > 0.0:  # columns of other heads are masked below
        if IS_WEIGHTED:
            b_dz -= smoothing / C * b_w[None, :]
        else:
            b_dz -= smoothing / C
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
