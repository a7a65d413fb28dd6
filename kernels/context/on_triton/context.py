"""Context prediction on a GPU: loss and gradients of a batch, in tiles of positions that share their negatives.

Formulas are in on_numba/tile.py. For a tile of T positions, the scores with A positions around it and with M negatives
are matrix products, in which entries that are not pairs are masked. There are no atomics: the gradients of the
positions are written side by side, one row per position or negative, and then summed by word in the order of the batch.

    context_tile_kernel     factors c (N, A), the gradients of h (N, D) and of the negatives (tiles M, D)
    context_spread_kernel   row j: the sum over the positions i around j of c(i, j) source[i]

    skip-gram  c is the gradient of a pair's score, the source is h: the output gradient of every position
    CBOW       c is 1 over the window's words, the source is the gradient of h: the input gradient of every position
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...bags.on_triton.bags import sum_by_row
from ...machine.launch import Sample, Variant, gpu_family, on_device_of, roomy_options, types_of
from ...machine.triton_elementary import log1p
from ..batch import TILE as _TILE

if TYPE_CHECKING:
    from ..batch import LocalBatch

TILE: tl.constexpr = tl.constexpr(_TILE)


@triton.jit
def _rows(p_source, b_row, n_source, o_d, D):
    """Load columns o_d of some rows of a table as float32 (rows, columns), zeros for a row outside it."""
    b_row = b_row.to(tl.int64)
    m_row = (b_row >= 0) & (b_row < n_source)
    p_values = p_source + b_row[:, None] * D + o_d[None, :]
    return tl.load(p_values, mask=m_row[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit
def _store_rows(p_target, o_row, m_row, b_values, o_d, D):
    p_values = p_target + o_row.to(tl.int64)[:, None] * D + o_d[None, :]
    tl.store(p_values, b_values, mask=m_row[:, None] & (o_d < D)[None, :])


@triton.jit
def _logistic(b_s):
    """Return (softplus, its derivative)."""
    b_u = tl.exp(-tl.abs(b_s))
    return log1p(b_u) + tl.maximum(b_s, 0.0), tl.where(b_s >= 0.0, 1.0, b_u) / (1.0 + b_u)


@triton.jit
def _pairs(o_i, o_j, b_low, b_high):
    """Return (T, A) float32, 1 where position j is in the window of position i.

    Past the last position, windows are empty.
    """
    m_pair = (
        (o_j[None, :] >= b_low[:, None]) & (o_j[None, :] < b_high[:, None]) & (o_j[None, :] != o_i[:, None])
    )
    return tl.where(m_pair, 1.0, 0.0)


@triton.jit
def _other_pairs(p_words, o_i, b_low, b_high, b_drawn, BLOCK_M: tl.constexpr):
    """Return (T, M) float32: the number of pairs of every position whose output word is not the negative."""
    b_others = tl.zeros((TILE, BLOCK_M), tl.float32)
    # The widest window of the tile, not of the batch: a constant would be unrolled, which costs registers.
    reach = tl.max(tl.where(b_high > b_low, tl.maximum(o_i - b_low, b_high - 1 - o_i), 0), axis=0)
    for shift in range(-reach, reach + 1):
        m_pair = (o_i + shift >= b_low) & (o_i + shift < b_high) & (shift != 0)
        b_word = tl.load(p_words + o_i + shift, mask=m_pair, other=-1)
        b_others += tl.where(m_pair[:, None] & (b_word[:, None] != b_drawn[None, :]), 1.0, 0.0)
    return b_others


@triton.jit(do_not_specialize=["N", "n_inputs", "n_outputs"])
def context_tile_kernel(
    p_inputs,  # (n_inputs, D)
    p_outputs,  # (n_outputs, D)
    p_words,  # (N,) int32
    p_low,  # (N,) int32
    p_high,  # (N,) int32
    p_drawn,  # (tiles, M) int32
    p_per_pair,  # () float32
    p_losses,  # (tiles,) float32
    p_factors,  # (N, BLOCK_A) float32
    p_d_h,  # (N, D) float32
    p_d_outputs,  # (N + tiles M, D) float32: of the positions (written only in CBOW), then of the negatives
    N,
    n_inputs,
    n_outputs,
    each,  # the weight of a negative for a pair
    D: tl.constexpr,
    M: tl.constexpr,
    WINDOW: tl.constexpr,
    CBOW: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: one tile."""
    i_k = tl.program_id(0)
    o_i = i_k * TILE + tl.arange(0, TILE)
    o_j = i_k * TILE - WINDOW + tl.arange(0, BLOCK_A)
    o_m = tl.arange(0, BLOCK_M)
    m_i, m_j, m_m = o_i < N, (o_j >= 0) & (o_j < N), o_m < M
    b_word = tl.load(p_words + o_i, mask=m_i, other=-1)
    b_low = tl.load(p_low + o_i, mask=m_i, other=0)
    b_high = tl.load(p_high + o_i, mask=m_i, other=0)
    b_around = tl.load(p_words + o_j, mask=m_j, other=-1)
    b_drawn = tl.load(p_drawn + i_k.to(tl.int64) * M + o_m, mask=m_m, other=-1)
    b_factors = tl.zeros((TILE, BLOCK_A), tl.float32)
    if CBOW:
        b_factors = _pairs(o_i, o_j, b_low, b_high)
        b_count = tl.sum(b_factors, axis=1)
        b_factors /= tl.maximum(b_count, 1.0)[:, None]
        b_is_pair = tl.minimum(b_count, 1.0)
        b_score = tl.zeros((TILE,), tl.float32)

    b_z = tl.zeros((TILE, BLOCK_M), tl.float32)
    for o_first in range(0, D, BLOCK_D):
        o_d = o_first + tl.arange(0, BLOCK_D)
        if CBOW:
            b_x = _rows(p_inputs, b_around, n_inputs, o_d, D)
            b_h = tl.dot(b_factors, b_x, input_precision="ieee")
            b_score += tl.sum(b_h * _rows(p_outputs, b_word, n_outputs, o_d, D), axis=1)
        else:
            b_h = _rows(p_inputs, b_word, n_inputs, o_d, D)
            b_y = _rows(p_outputs, b_around, n_outputs, o_d, D)
            b_factors = tl.dot(b_h, tl.trans(b_y), b_factors, input_precision="ieee")
        b_n = _rows(p_outputs, b_drawn, n_outputs, o_d, D)
        b_z = tl.dot(b_h, tl.trans(b_n), b_z, input_precision="ieee")

    per_pair = tl.load(p_per_pair)
    if CBOW:
        b_others = tl.where(b_word[:, None] == b_drawn[None, :], 0.0, b_is_pair[:, None])
        b_loss, b_slope = _logistic(-b_score)
        loss = tl.sum(b_is_pair * b_loss, axis=0)
        b_score = -b_is_pair * b_slope * per_pair
    else:
        b_others = _other_pairs(p_words, o_i, b_low, b_high, b_drawn, BLOCK_M)
        b_is_pair = _pairs(o_i, o_j, b_low, b_high)
        b_loss, b_slope = _logistic(-b_factors)
        loss = tl.sum(tl.sum(b_is_pair * b_loss, axis=1), axis=0)
        b_factors = -b_is_pair * b_slope * per_pair
    b_share = tl.where(m_m[None, :], each * b_others, 0.0)
    b_loss, b_slope = _logistic(b_z)
    loss += tl.sum(tl.sum(b_share * b_loss, axis=1), axis=0)
    b_z = b_share * b_slope * per_pair
    tl.store(p_losses + i_k, loss)
    _store_rows(p_factors, o_i, m_i, b_factors, tl.arange(0, BLOCK_A), BLOCK_A)

    for o_first in range(0, D, BLOCK_D):
        o_d = o_first + tl.arange(0, BLOCK_D)
        b_n = _rows(p_outputs, b_drawn, n_outputs, o_d, D)
        b_d_h = tl.dot(b_z, b_n, input_precision="ieee")
        if CBOW:
            b_x = _rows(p_inputs, b_around, n_inputs, o_d, D)
            b_h = tl.dot(b_factors, b_x, input_precision="ieee")
            b_d_h += b_score[:, None] * _rows(p_outputs, b_word, n_outputs, o_d, D)
            _store_rows(p_d_outputs, o_i, m_i, b_score[:, None] * b_h, o_d, D)
        else:
            b_h = _rows(p_inputs, b_word, n_inputs, o_d, D)
            b_y = _rows(p_outputs, b_around, n_outputs, o_d, D)
            b_d_h = tl.dot(b_factors, b_y, b_d_h, input_precision="ieee")
        _store_rows(p_d_h, o_i, m_i, b_d_h, o_d, D)
        b_d_n = tl.dot(tl.trans(b_z), b_h, input_precision="ieee")
        _store_rows(p_d_outputs, N + i_k.to(tl.int64) * M + o_m, m_m, b_d_n, o_d, D)


@triton.jit(do_not_specialize=["N", "n_source"])
def context_spread_kernel(
    p_source,  # (n_source, D)
    p_ids,  # (N,) int32: the source row of every position; without ids, its own
    p_factors,  # (N, BLOCK_A) float32
    p_out,  # (N, D) float32
    N,
    n_source,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_IDS: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_D columns of the rows of one tile."""
    i_k = tl.program_id(0)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    o_j = i_k * TILE + tl.arange(0, TILE)
    o_i = i_k * TILE - WINDOW + tl.arange(0, BLOCK_A)
    m_j, m_i = o_j < N, (o_i >= 0) & (o_i < N)
    # Index of position j among those around the tile of position i.
    o_a = o_j[:, None] - (o_i // TILE * TILE - WINDOW)[None, :]
    m_a = m_j[:, None] & m_i[None, :] & (o_a >= 0) & (o_a < BLOCK_A)
    b_factors = tl.load(p_factors + o_i.to(tl.int64)[None, :] * BLOCK_A + o_a, mask=m_a, other=0.0)
    b_row = tl.where(m_i, o_i, -1)
    if HAS_IDS:
        b_row = tl.load(p_ids + o_i, mask=m_i, other=-1)
    b_out = tl.dot(b_factors, _rows(p_source, b_row, n_source, o_d, D), input_precision="ieee")
    _store_rows(p_out, o_j, m_j, b_out, o_d, D)


# --- sizes of blocks -------------------------------------------------------------------------------------


class Blocks(NamedTuple):
    """Positions around a tile, negatives and columns of a program, as powers of two, and its warps."""

    around: int
    negatives: int
    columns: int
    warps: int


LEAST_BLOCK = 16  # the minimum for tl.dot


def choose_blocks(D: int, M: int, window: int) -> Blocks:
    """A table, not an autotuner: that needs a driver to choose.

    float32 products without matrix units hold their factors in registers: so wide tiles use fewer columns at a time,
    and many negatives use more warps.
    """
    around = triton.next_power_of_2(_TILE + 2 * window)
    negatives = max(LEAST_BLOCK, triton.next_power_of_2(M))
    most_columns = 32 if around <= 32 and negatives <= 16 else 16
    columns = max(LEAST_BLOCK, min(most_columns, triton.next_power_of_2(D)))
    return Blocks(around, negatives, columns, 4 if negatives <= 16 else 8)


# --- launches --------------------------------------------------------------------------------------------


def loss_and_gradients(inputs: Tensor, outputs: Tensor, batch: LocalBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return (mean loss (), its gradients (n_kept, D) and (U, D)) for vectors (n_kept, D) and (U, D); never waits."""
    (n_inputs, D), n_outputs = inputs.shape, len(outputs)
    N, (tiles, M) = len(batch.words), batch.drawn.shape
    if not N or not D:
        return inputs.new_zeros(()), torch.zeros_like(inputs), torch.zeros_like(outputs)
    cbow, blocks = batch.mode == "cbow", choose_blocks(D, M, batch.window)
    losses, factors = inputs.new_empty(tiles), inputs.new_empty(N, blocks.around)
    d_h, d_outputs = inputs.new_empty(N, D), inputs.new_empty(N + tiles * M, D)
    with on_device_of(inputs):
        context_tile_kernel[(tiles,)](
            inputs, outputs, batch.words, batch.low, batch.high, batch.drawn, batch.per_pair, losses, factors, d_h,
            d_outputs, N, n_inputs, n_outputs, batch.negatives / M, D=D, M=M, WINDOW=batch.window, CBOW=cbow,
            BLOCK_A=blocks.around, BLOCK_M=blocks.negatives, BLOCK_D=blocks.columns,
            **roomy_options(blocks.warps, gpu_family(inputs.device)),
        )  # fmt: skip
        d_inputs = torch.empty_like(d_h) if cbow else d_h
        context_spread_kernel[(tiles, triton.cdiv(D, blocks.columns))](
            d_h if cbow else inputs, batch.words, factors, d_inputs if cbow else d_outputs, N,
            N if cbow else n_inputs, D=D, WINDOW=batch.window, HAS_IDS=not cbow,
            BLOCK_A=blocks.around, BLOCK_D=blocks.columns, num_warps=blocks.warps,
        )  # fmt: skip
    output_ids = torch.cat([batch.words, batch.drawn.flatten()])
    return (
        losses.sum() * batch.per_pair,
        sum_by_row(d_inputs, batch.words, n_inputs),
        sum_by_row(d_outputs, output_ids, n_outputs),
    )


def samples_for(family: str) -> Iterator[Sample]:
    """Yield variants that are launched on a family of GPUs."""
    tile = types_of(
        "*fp32 p_inputs p_outputs p_per_pair p_losses p_factors p_d_h p_d_outputs",
        "*i32 p_words p_low p_high p_drawn", "i32 N n_inputs n_outputs", "fp32 each",
    )  # fmt: skip
    spread = types_of("*fp32 p_source p_factors p_out", "*i32 p_ids", "i32 N n_source")
    for cbow, (D, M, window) in product(
        (False, True), ((5, 8, 2), (100, 16, 5), (100, 64, 5), (300, 16, 10))
    ):
        blocks = choose_blocks(D, M, window)
        sizes = {"D": D, "WINDOW": window, "BLOCK_A": blocks.around, "BLOCK_D": blocks.columns}
        name = f"{'CBOW' if cbow else 'skip-gram'} D={D} M={M} window={window}"
        constexprs = {**sizes, "M": M, "CBOW": cbow, "BLOCK_M": blocks.negatives}
        options = roomy_options(blocks.warps, family)
        yield Sample(name, Variant(context_tile_kernel, constexprs, options), tile)
        spread_variant = Variant(
            context_spread_kernel, {**sizes, "HAS_IDS": not cbow}, {"num_warps": blocks.warps}
        )
        yield Sample(name, spread_variant, spread)
