"""A tile of context prediction (word2vec) on a CPU: its loss and its gradients.

A tile is T consecutive kept words. Its vectors h (T, D), the centres' input vectors or the means over their windows,
are multiplied with M negatives n_m in one matrix product; the pairs of a window are a band along the diagonal.

    skip-gram  loss_i = sum_j softplus(-h_i y_j) + sum_m a_im softplus(h_i n_m)   j in the window of i, j != i
    CBOW       loss_i = softplus(-h_i y_i)       + sum_m a_im softplus(h_i n_m)   h_i = mean, or sum, of x_j
    a_im = negatives / M times the positive pairs of i whose output word is not n_m

so that a pair meets `negatives` negatives in expectation, as if each pair drew its own. x and y are rows of the input
and the output table, gathered in whole vectors of columns, zero past the last column.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...machine.elementary import exp32, softplus_and_sigmoid
from ...machine.gemm import (
    BLOCK_ROWS,
    PANEL,
    add_by_column,
    add_by_column_1,
    multiply_by_row,
    multiply_by_row_1,
    transpose_block,
)
from ...machine.jit import borrower
from ...machine.simd import FLOAT_BYTES, WIDTH, absolute, load, select, splat, store, sum_of
from ..batch import TILE
from .rows import add_combined, add_row, combine, copy_row, dots, gather, zero_row

f32 = np.float32
ZERO, ONE = f32(0), f32(1)
SKIPGRAM, CBOW = 0, 1
# A score for no pair: its loss and its gradient are exactly 0.
NO_PAIR = f32(128.0)


class Vectors(NamedTuple):
    """Rows of ld columns, and where their changes are added."""

    x: np.ndarray
    y: np.ndarray
    to_x: np.ndarray
    to_y: np.ndarray


class Windows(NamedTuple):
    """Position i is row x_slots[i] of x and to_x, and row slots[i] of y and to_y; its window is low[i]..high[i]."""

    x_slots: np.ndarray
    slots: np.ndarray
    low: np.ndarray
    high: np.ndarray


class TileOptions(NamedTuple):
    """Options that are the same for all tiles of a call."""

    mode: int
    each: np.float32  # the weight of a drawn negative
    step: np.float32  # the factor of gradients
    window: int
    mean: bool  # CBOW: mean of a window, else its sum
    spread: bool  # CBOW: each word of a window gets the whole gradient, as in word2vec; for a sum, a share
    D: int


class Scratch(NamedTuple):
    """mark (U,): the last tile that drew a row. rows: of ld columns. The others as named."""

    mark: np.ndarray
    rows: np.ndarray
    band: np.ndarray
    z: np.ndarray
    share: np.ndarray
    h_t: np.ndarray


@borrower
def scratch_of(w, p):
    """Return shard p's scratch for a tile."""
    return Scratch(w.mark[p], w.tile_rows[p], w.band[p], w.z[p], w.share[p], w.h_t[p])


@borrower
def positive(band, size, step, want_loss):
    """Replace scores (size,) of pairs by step times their gradients; return the loss if wanted."""
    at = band.ctypes.data
    loss = splat(ZERO)
    for i in range(0, FLOAT_BYTES * size, FLOAT_BYTES * WIDTH):
        s = load(at + i)
        u = exp32(ZERO - absolute(s))
        if want_loss:
            log_1_u, r = softplus_and_sigmoid(u)
            loss = loss + (log_1_u + select(s < ZERO, ZERO - s, splat(ZERO)))
        else:
            r = ONE / (ONE + u)
        store(select(s < ZERO, r, u * r) * (ZERO - step), at + i)
    return sum_of(loss)


@borrower
def _negative(z, share, size, step, want_loss):
    """Replace scores (size,) of negatives by step times share times their gradients; return the loss if wanted."""
    at, share_at = z.ctypes.data, share.ctypes.data
    loss = splat(ZERO)
    for i in range(0, FLOAT_BYTES * size, FLOAT_BYTES * WIDTH):
        s, a = load(at + i), load(share_at + i)
        u = exp32(ZERO - absolute(s))
        if want_loss:
            log_1_u, r = softplus_and_sigmoid(u)
            loss = loss + a * (log_1_u + select(s > ZERO, s, splat(ZERO)))
        else:
            r = ONE / (ONE + u)
        store(select(s > ZERO, r, u * r) * a * step, at + i)
    return sum_of(loss)


@borrower
def _negative_scores(h, negative, h_t, z, M, D, ld):
    """z (M, TILE) = n h^T; h is transposed into h_t (ld, TILE) on the way."""
    for i in range(0, TILE, WIDTH):
        for d in range(0, ld, WIDTH):
            transpose_block(h + FLOAT_BYTES * (i * ld + d), ld, h_t + FLOAT_BYTES * (d * TILE + i), TILE)
    for i in range(0, TILE, PANEL):
        b = h_t + FLOAT_BYTES * i
        for m in range(0, M, BLOCK_ROWS):
            a, c = negative + FLOAT_BYTES * m * ld, z + FLOAT_BYTES * (m * TILE + i)
            if TILE - i > WIDTH:
                multiply_by_row(a, ld, b, TILE, c, TILE, D)
            else:
                multiply_by_row_1(a, ld, b, TILE, c, TILE, D)


@borrower
def _negative_gradients(h, negative, z, d_h, d_negative, M, ld):
    """d_h (TILE, ld) += z^T n; d_negative (M, ld) = z h."""
    for d in range(0, ld, PANEL):
        wide = ld - d > WIDTH
        b = negative + FLOAT_BYTES * d
        for i in range(0, TILE, BLOCK_ROWS):
            a, c = z + FLOAT_BYTES * i, d_h + FLOAT_BYTES * (i * ld + d)
            if wide:
                add_by_column(a, TILE, b, ld, c, ld, M)
            else:
                add_by_column_1(a, TILE, b, ld, c, ld, M)
        b = h + FLOAT_BYTES * d
        for m in range(0, M, BLOCK_ROWS):
            a, c = z + FLOAT_BYTES * m * TILE, d_negative + FLOAT_BYTES * (m * ld + d)
            if wide:
                multiply_by_row(a, TILE, b, ld, c, ld, TILE)
            else:
                multiply_by_row_1(a, TILE, b, ld, c, ld, TILE)


@borrower
def _shares(mode, windows, first, last, start, stop, drawn, each, scratch, stamp):
    """share (M, TILE) = `each` times a position's number of positive pairs whose output word is not the negative."""
    _, slots, low, high = windows
    share, mark = scratch.share, scratch.mark
    M = len(drawn)
    for i in range(TILE):
        pairs = high[first + i] - low[first + i] - 1 if first + i < last else 0
        share[0, i] = each * f32(min(pairs, 1) if mode == CBOW else pairs)
    for m in range(M):
        mark[drawn[m]] = stamp
        if m:
            copy_row(share.ctypes.data, share[m].ctypes.data, TILE)
    for j in range(start if mode == SKIPGRAM else first, stop if mode == SKIPGRAM else last):
        if mark[slots[j]] != stamp:
            continue
        for m in range(M):
            if drawn[m] != slots[j]:
                continue
            if mode == CBOW:
                share[m, j - first] = ZERO
                continue
            for i in range(first, last):
                if i != j and low[i] <= j < high[i]:
                    share[m, i - first] -= each


@borrower
def _add_window(band, first, last, start, stop, window, source, target, slots, width):
    """Row slots[j] of target += sum_i band[i - first, j - start] source[i - first] for every j within a window."""
    ldb = band.shape[1]
    for j in range(start, stop):
        from_i, to_i = max(first, j - window), min(last, j + window + 1)
        if from_i < to_i:
            add_combined(
                band.ctypes.data + FLOAT_BYTES * ((from_i - first) * ldb + j - start), ldb,
                source + FLOAT_BYTES * (from_i - first) * width, width,
                target + FLOAT_BYTES * np.int64(slots[j]) * width, width, to_i - from_i,
            )  # fmt: skip


@borrower
def tile_step(vectors, windows, first, last, drawn, how, want_loss, stamp, scratch):
    """Process the tile of positions first..last: add step times its gradients to to_x and to_y.

    Returns its loss if wanted. stamp: a number that no other tile marks with. drawn (M,): the rows of y of its
    negatives.
    """
    x, y, to_x, to_y = vectors
    x_slots, slots, low, high = windows
    mode, each, step, window, mean, spread, D = how
    _, rows, band, z, share, h_t = scratch
    ld = x.shape[1]
    M = len(drawn)
    h = rows.ctypes.data
    d_h = h + FLOAT_BYTES * TILE * ld
    negative = d_h + FLOAT_BYTES * TILE * ld
    d_negative = negative + FLOAT_BYTES * M * ld
    around = d_negative + FLOAT_BYTES * M * ld
    to_x_at, to_y_at = to_x.ctypes.data, to_y.ctypes.data
    row_bytes = FLOAT_BYTES * ld
    count = last - first
    start, stop = low[first], high[last - 1]
    for i in range(first, last):
        start, stop = min(start, low[i]), max(stop, high[i])
    ldb = band.shape[1]
    band_at = band.ctypes.data
    loss = ZERO

    gather(y, drawn, 0, M, negative, ld)
    _shares(mode, windows, first, last, start, stop, drawn, each, scratch, stamp)
    for i in range(count, TILE):
        zero_row(h + i * row_bytes, ld)
    if mode == SKIPGRAM:
        gather(x, x_slots, first, last, h, ld)
        gather(y, slots, start, stop, around, ld)
        band[:] = NO_PAIR
        for i in range(first, last):
            row = band[i - first]
            from_j = low[i] - start
            dots(
                h + (i - first) * row_bytes,
                around + from_j * row_bytes,
                ld,
                high[i] - low[i],
                ld,
                row[from_j:],
            )
            row[i - start] = NO_PAIR
        loss += positive(band, TILE * ldb, step, want_loss)
        for i in range(first, last):
            from_j = low[i] - start
            combine(
                band_at + FLOAT_BYTES * ((i - first) * ldb + from_j), 1, around + from_j * row_bytes, ld,
                d_h + (i - first) * row_bytes, ld, high[i] - low[i],
            )  # fmt: skip
    else:
        gather(x, x_slots, start, stop, around, ld)
        band[:] = ZERO
        scores = band[TILE]
        scores[:] = NO_PAIR
        for i in range(first, last):
            pairs = high[i] - low[i] - 1
            at = h + (i - first) * row_bytes
            if pairs == 0:
                zero_row(at, ld)
                continue
            row = band[i - first]
            for j in range(low[i] - start, high[i] - start):
                row[j] = ONE / f32(pairs) if mean else ONE
            row[i - start] = ZERO
            from_j = low[i] - start
            combine(
                band_at + FLOAT_BYTES * ((i - first) * ldb + from_j), 1, around + from_j * row_bytes, ld, at, ld,
                high[i] - low[i],
            )  # fmt: skip
            dots(at, y.ctypes.data + np.int64(slots[i]) * row_bytes, ld, 1, ld, scores[i - first :])
        loss += positive(scores, TILE, step, want_loss)
        for i in range(count):
            at_y = np.int64(slots[first + i]) * row_bytes
            g = scores[i]
            for d in range(0, row_bytes, FLOAT_BYTES * WIDTH):
                store(load(y.ctypes.data + at_y + d) * g, d_h + i * row_bytes + d)

    _negative_scores(h, negative, h_t.ctypes.data, z.ctypes.data, M, D, ld)
    loss += _negative(z, share, TILE * M, step, want_loss)
    for i in range(count, TILE):
        zero_row(d_h + i * row_bytes, ld)
    _negative_gradients(h, negative, z.ctypes.data, d_h, d_negative, M, ld)

    for m in range(M):
        add_row(d_negative + m * row_bytes, to_y_at + np.int64(drawn[m]) * row_bytes, ld)
    if mode == SKIPGRAM:
        for i in range(first, last):
            add_row(d_h + (i - first) * row_bytes, to_x_at + np.int64(x_slots[i]) * row_bytes, ld)
        _add_window(band, first, last, start, stop, window, h, to_y_at, slots, ld)
    else:
        for i in range(count):
            at_y = to_y_at + np.int64(slots[first + i]) * row_bytes
            g = scores[i]
            for d in range(0, row_bytes, FLOAT_BYTES * WIDTH):
                store(load(at_y + d) + load(h + i * row_bytes + d) * g, at_y + d)
            if spread == mean:
                row, pairs = band[i], high[first + i] - low[first + i] - 1
                back = ONE if spread or pairs == 0 else ONE / f32(pairs)
                for j in range(low[first + i] - start, high[first + i] - start):
                    row[j] = back
                row[first + i - start] = ZERO
        _add_window(band, first, last, start, stop, window, d_h, to_x_at, x_slots, ld)
    return loss
