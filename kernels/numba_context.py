"""Context prediction (word2vec) on a CPU: skip-gram and CBOW with negatives that a tile of positions shares.

A tile is T consecutive kept words. Its vectors h (T, D), the centres' input vectors or the means of their windows',
meet M negatives n_m in one matrix product; the pairs of a window are a band beside the diagonal.

    skip-gram  loss_i = sum_j softplus(-h_i y_j) + sum_m a_im softplus(h_i n_m)   j in the window of i, j != i
    CBOW       loss_i = softplus(-h_i y_i)       + sum_m a_im softplus(h_i n_m)   h_i = mean of x_j
    a_im = negatives / M times the positive pairs of i whose output word is not n_m

so that a pair meets `negatives` negatives in expectation, as if each pair drew its own. x and y are rows of the input
and the output table, gathered with whole vectors of columns, the last ones zero.

Training: a shard is what one thread does in a round. It copies the rows that its words and negatives need, goes over
its tiles, each of which moves the copies at once, and leaves the rows' changes. When all shards of the round have
done so, their changes are added to the tables in the order of shards. So a thread sees its own steps at once and
those of others after the round, nobody waits within a round, and the same call gives the same bits.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from .context import TILE
from .numba_draw import draw_negatives, draw_positions, number_rows
from .numba_gemm import (
    BLOCK_ROWS,
    PANEL,
    add_by_column,
    add_by_column_1,
    copy_floats,
    multiply_by_row,
    multiply_by_row_1,
    transpose_block,
    weighted_rows,
)
from .numba_jit import Kernel, helper
from .numba_loss_pass import exp32, softplus_and_sigmoid
from .numba_simd import WIDTH, absolute, load, prefetch, select, splat, store, sum_of

f32 = np.float32
FLOAT_BYTES = 4
ZERO, ONE = f32(0), f32(1)
SKIPGRAM, CBOW = 0, 1
# A score that is no pair: its loss and its gradient are exactly 0.
NO_PAIR = f32(128.0)

# --- rows ------------------------------------------------------------------------------------------------

# Sums of up to 8 vectors a row stay in registers while the rows run.
_combine = [weighted_rows(n, accumulate=False) for n in range(1, 9)]
_add_combined = [weighted_rows(n, accumulate=True) for n in range(1, 9)]
(_combine_1, _combine_2, _combine_3, _combine_4, _combine_5, _combine_6, _combine_7, _combine_8) = _combine
(_add_1, _add_2, _add_3, _add_4, _add_5, _add_6, _add_7, _add_8) = _add_combined


@helper
def combine(a, lda, b, ldb, c, width, depth):
    """c (width,) = sum_k a[k lda] b[k]: rows of b, weighted; width is in whole vectors, depth >= 1."""
    d = 0
    while width - d >= 8 * WIDTH:
        _combine_8(a, lda, b + FLOAT_BYTES * d, ldb, c + FLOAT_BYTES * d, ldb, depth)
        d += 8 * WIDTH
    n = (width - d) // WIDTH
    b_d, c_d = b + FLOAT_BYTES * d, c + FLOAT_BYTES * d
    if n == 7:
        _combine_7(a, lda, b_d, ldb, c_d, ldb, depth)
    elif n == 6:
        _combine_6(a, lda, b_d, ldb, c_d, ldb, depth)
    elif n == 5:
        _combine_5(a, lda, b_d, ldb, c_d, ldb, depth)
    elif n == 4:
        _combine_4(a, lda, b_d, ldb, c_d, ldb, depth)
    elif n == 3:
        _combine_3(a, lda, b_d, ldb, c_d, ldb, depth)
    elif n == 2:
        _combine_2(a, lda, b_d, ldb, c_d, ldb, depth)
    elif n == 1:
        _combine_1(a, lda, b_d, ldb, c_d, ldb, depth)


@helper
def add_combined(a, lda, b, ldb, c, width, depth):
    """c (width,) += sum_k a[k lda] b[k]."""
    d = 0
    while width - d >= 8 * WIDTH:
        _add_8(a, lda, b + FLOAT_BYTES * d, ldb, c + FLOAT_BYTES * d, ldb, depth)
        d += 8 * WIDTH
    n = (width - d) // WIDTH
    b_d, c_d = b + FLOAT_BYTES * d, c + FLOAT_BYTES * d
    if n == 7:
        _add_7(a, lda, b_d, ldb, c_d, ldb, depth)
    elif n == 6:
        _add_6(a, lda, b_d, ldb, c_d, ldb, depth)
    elif n == 5:
        _add_5(a, lda, b_d, ldb, c_d, ldb, depth)
    elif n == 4:
        _add_4(a, lda, b_d, ldb, c_d, ldb, depth)
    elif n == 3:
        _add_3(a, lda, b_d, ldb, c_d, ldb, depth)
    elif n == 2:
        _add_2(a, lda, b_d, ldb, c_d, ldb, depth)
    elif n == 1:
        _add_1(a, lda, b_d, ldb, c_d, ldb, depth)


@helper
def _dots(x, y, ldy, n, width, out):
    """out[k] = x (width,) times row k of y (n, width), four rows at a time."""
    for k in range(0, n - 3, 4):
        y_0 = y + FLOAT_BYTES * k * ldy
        y_1 = y_0 + FLOAT_BYTES * ldy
        y_2 = y_1 + FLOAT_BYTES * ldy
        y_3 = y_2 + FLOAT_BYTES * ldy
        sum_0, sum_1, sum_2, sum_3 = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        for d in range(0, FLOAT_BYTES * width, FLOAT_BYTES * WIDTH):
            x_d = load(x + d)
            sum_0 = sum_0 + x_d * load(y_0 + d)
            sum_1 = sum_1 + x_d * load(y_1 + d)
            sum_2 = sum_2 + x_d * load(y_2 + d)
            sum_3 = sum_3 + x_d * load(y_3 + d)
        out[k] = sum_of(sum_0)
        out[k + 1] = sum_of(sum_1)
        out[k + 2] = sum_of(sum_2)
        out[k + 3] = sum_of(sum_3)
    for k in range(n // 4 * 4, n):
        y_0 = y + FLOAT_BYTES * k * ldy
        sum_0 = splat(ZERO)
        for d in range(0, FLOAT_BYTES * width, FLOAT_BYTES * WIDTH):
            sum_0 = sum_0 + load(x + d) * load(y_0 + d)
        out[k] = sum_of(sum_0)


@helper
def _copy_row(source, target, width):
    for d in range(0, FLOAT_BYTES * width, FLOAT_BYTES * WIDTH):
        store(load(source + d), target + d)


@helper
def add_row(source, target, width):
    for d in range(0, FLOAT_BYTES * width, FLOAT_BYTES * WIDTH):
        store(load(target + d) + load(source + d), target + d)


@helper
def zero_row(target, width):
    for d in range(0, FLOAT_BYTES * width, FLOAT_BYTES * WIDTH):
        store(splat(ZERO), target + d)


@helper
def _gather(table, slots, first, last, target, width):
    """Rows of table for slots[first:last], one after the other."""
    source = table.ctypes.data
    for i in range(first, last):
        row = FLOAT_BYTES * np.int64(slots[i]) * width
        _copy_row(source + row, target + FLOAT_BYTES * (i - first) * width, width)


# --- a tile ----------------------------------------------------------------------------------------------


@helper
def _positive(band, size, step, want_loss):
    """Scores (size,) of pairs become step times their gradients; returns the loss if wanted."""
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


@helper
def _negative(z, share, size, step, want_loss):
    """Scores (size,) of negatives become step times share times their gradients; returns the loss if wanted."""
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


@helper
def _negative_scores(h, negative, h_t, z, M, D, ld):
    """z (M, TILE) = n h^T; h is transposed on its way into h_t (ld, TILE)."""
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


@helper
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


@helper
def _shares(mode, slots, low, high, first, last, start, stop, drawn, each, share, mark, stamp):
    """share (M, TILE): `each` times the positive pairs of a position whose output word is not the negative."""
    M = len(drawn)
    for i in range(TILE):
        pairs = high[first + i] - low[first + i] - 1 if first + i < last else 0
        share[0, i] = each * f32(min(pairs, 1) if mode == CBOW else pairs)
    for m in range(M):
        mark[drawn[m]] = stamp
        if m:
            _copy_row(share.ctypes.data, share[m].ctypes.data, TILE)
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


@helper
def context_tile(
    mode, x, y, to_x, to_y, x_slots, slots, low, high, first, last, drawn, each, step, window, spread, D, want_loss,
    mark, stamp, rows, band, z, share, h_t,
):  # fmt: skip
    """One tile: step times its gradients are added to to_x and to_y; returns its loss if wanted.

    Position i is row x_slots[i] of x and to_x, and row slots[i] of y and to_y.
    rows is scratch for rows of ld columns, band and z, share, h_t for what their names say.
    """
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

    _gather(y, drawn, 0, M, negative, ld)
    _shares(mode, slots, low, high, first, last, start, stop, drawn, each, share, mark, stamp)
    for i in range(count, TILE):
        zero_row(h + i * row_bytes, ld)
    if mode == SKIPGRAM:
        _gather(x, x_slots, first, last, h, ld)
        _gather(y, slots, start, stop, around, ld)
        band[:] = NO_PAIR
        for i in range(first, last):
            row = band[i - first]
            from_j = low[i] - start
            _dots(
                h + (i - first) * row_bytes,
                around + from_j * row_bytes,
                ld,
                high[i] - low[i],
                ld,
                row[from_j:],
            )
            row[i - start] = NO_PAIR
        loss += _positive(band, TILE * ldb, step, want_loss)
        for i in range(first, last):
            from_j = low[i] - start
            combine(
                band_at + FLOAT_BYTES * ((i - first) * ldb + from_j), 1, around + from_j * row_bytes, ld,
                d_h + (i - first) * row_bytes, ld, high[i] - low[i],
            )  # fmt: skip
    else:
        _gather(x, x_slots, start, stop, around, ld)
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
                row[j] = ONE / f32(pairs)
            row[i - start] = ZERO
            from_j = low[i] - start
            combine(
                band_at + FLOAT_BYTES * ((i - first) * ldb + from_j), 1, around + from_j * row_bytes, ld, at, ld,
                high[i] - low[i],
            )  # fmt: skip
            _dots(at, y.ctypes.data + np.int64(slots[i]) * row_bytes, ld, 1, ld, scores[i - first :])
        loss += _positive(scores, TILE, step, want_loss)
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
        for j in range(start, stop):
            from_i, to_i = max(first, j - window), min(last, j + window + 1)
            if from_i < to_i:
                add_combined(
                    band_at + FLOAT_BYTES * ((from_i - first) * ldb + j - start), ldb,
                    h + (from_i - first) * row_bytes, ld, to_y_at + np.int64(slots[j]) * row_bytes, ld, to_i - from_i,
                )  # fmt: skip
    else:
        for i in range(count):
            at_y = to_y_at + np.int64(slots[first + i]) * row_bytes
            g = scores[i]
            for d in range(0, row_bytes, FLOAT_BYTES * WIDTH):
                store(load(at_y + d) + load(h + i * row_bytes + d) * g, at_y + d)
            if spread:
                row = band[i]
                for j in range(low[first + i] - start, high[first + i] - start):
                    row[j] = ONE
                row[first + i - start] = ZERO
        for j in range(start, stop):
            from_i, to_i = max(first, j - window), min(last, j + window + 1)
            if from_i < to_i:
                add_combined(
                    band_at + FLOAT_BYTES * ((from_i - first) * ldb + j - start), ldb,
                    d_h + (from_i - first) * row_bytes, ld, to_x_at + np.int64(x_slots[j]) * row_bytes, ld,
                    to_i - from_i,
                )  # fmt: skip
    return loss


# --- a shard ---------------------------------------------------------------------------------------------


@helper
def _prefetch_row(table, rows, u, n, D):
    """Ask for row rows[u] of a table with D columns."""
    if u < n:
        row = table + FLOAT_BYTES * np.int64(rows[u]) * D
        for line in range(0, FLOAT_BYTES * D, LINE_BYTES):
            prefetch(row + line)


@helper
def copy_in(table, rows, n, copies):
    """Rows of table (V, D) into copies (n, ld), zero behind D."""
    D, ld = table.shape[1], copies.shape[1]
    source, target = table.ctypes.data, copies.ctypes.data
    for u in range(n):
        _prefetch_row(source, rows, u + AHEAD, n, D)
        copy_floats(source + FLOAT_BYTES * np.int64(rows[u]) * D, target + FLOAT_BYTES * u * ld, D)
        for d in range(D, ld):
            copies[u, d] = ZERO


@helper
def to_changes(table, rows, n, copies):
    """Copies become what has changed in them."""
    D, ld = table.shape[1], copies.shape[1]
    source, target = table.ctypes.data, copies.ctypes.data
    for u in range(n):
        _prefetch_row(source, rows, u + AHEAD, n, D)
        row, copy = source + FLOAT_BYTES * np.int64(rows[u]) * D, target + FLOAT_BYTES * u * ld
        for d in range(0, FLOAT_BYTES * (D // WIDTH * WIDTH), FLOAT_BYTES * WIDTH):
            store(load(copy + d) - load(row + d), copy + d)
        for d in range(D // WIDTH * WIDTH, D):
            copies[u, d] -= table[rows[u], d]


@helper
def add_changes(table, rows, n, changes, factors, part, parts):
    """Add changes, times factors, to the rows of one part of the table."""
    D, ld = table.shape[1], changes.shape[1]
    source, target = changes.ctypes.data, table.ctypes.data
    for u in range(n):
        row = np.int64(rows[u])
        if row % parts != part:
            continue
        at, change, factor = target + FLOAT_BYTES * row * D, source + FLOAT_BYTES * u * ld, factors[row]
        for d in range(0, FLOAT_BYTES * (D // WIDTH * WIDTH), FLOAT_BYTES * WIDTH):
            store(load(at + d) + load(change + d) * factor, at + d)
        for d in range(D // WIDTH * WIDTH, D):
            table[row, d] += changes[u, d] * factor


@helper
def set_factors(rows, visits, counts, factors, step, pull, part):
    """factors of one part of a table's rows: what the changes of the shards q, rows[q, :counts[q]], are shrunk by."""
    P = len(rows)
    for q in range(P):
        for u in range(counts[q]):
            row = rows[q, u]
            if row % P == part:
                factors[row] -= f32(visits[q, u])
    for q in range(P):
        for u in range(counts[q]):
            row = rows[q, u]
            if row % P == part and factors[row] < ZERO:
                k = -step * pull / P * np.float64(factors[row])
                factors[row] = f32(math.expm1(-P * k) / (P * math.expm1(-k))) if k > 1e-9 else ONE


@helper
def clear_factors(rows, counts, factors, part):
    """Zero again, for the next round."""
    P = len(rows)
    for q in range(P):
        for u in range(counts[q]):
            if rows[q, u] % P == part:
                factors[rows[q, u]] = ZERO


@helper
def _merge(inputs, outputs, rows, visits, counts, x, y, factors, step, pull, part):
    """Add the changes of all shards to the rows of one part of both tables."""
    P = len(rows)
    set_factors(rows, visits, counts[:, 1], factors, step, pull, part)
    for q in range(P):
        add_changes(inputs, rows[q], counts[q, 0], x[q], factors, part, P)
        add_changes(outputs, rows[q], counts[q, 1], y[q], factors, part, P)
    clear_factors(rows, counts[:, 1], factors, part)


AHEAD = 4  # rows that are asked for before they are needed
LINE_BYTES = 64
LOSS_EVERY = 8  # tiles: the loss is for watching only


@helper
def _go_over_shard(
    tokens, bounds, first, last, key, keep, accept, alias, mode, window, negatives, spread, step, inputs, outputs,
    slot_of, words, slots, low, high, drawn, rows, visits, counts, x, y, mark, tile_rows, band, z, share, h_t,
):  # fmt: skip
    """Words first..last: afterwards rows[:counts[0]] are the input rows and rows[:counts[1]] the output rows touched,
    and x and y their changes. Returns (loss, positive pairs) of every LOSS_EVERY-th tile."""
    M = len(z)
    D = inputs.shape[1]
    n = draw_positions(tokens, bounds, first, last, keep, key, window, words, low, high)
    n_tiles = -(-n // TILE)
    n_inputs = number_rows(words, n, slot_of, slots, rows, visits, 0)
    draw_negatives(key, first, accept, alias, drawn, n_tiles * M)
    n_outputs = number_rows(drawn, n_tiles * M, slot_of, drawn, rows, visits, n_inputs)
    for u in range(n_outputs):
        slot_of[rows[u]] = -1
        mark[u] = -1
    counts[0], counts[1] = n_inputs, n_outputs
    copy_in(inputs, rows, n_inputs, x)
    copy_in(outputs, rows, n_outputs, y)
    loss, pairs = 0.0, 0
    each = f32(negatives / M)
    for k in range(n_tiles):
        begin, end = k * TILE, min(n, (k + 1) * TILE)
        watch = k % LOSS_EVERY == 0
        loss += context_tile(
            mode, x, y, x, y, slots, slots, low, high, begin, end, drawn[k * M : (k + 1) * M], each, step, window,
            spread, D, watch, mark, k, tile_rows, band, z, share, h_t,
        )  # fmt: skip
        if watch:
            pairs += pairs_of(mode, low, high, begin, end)
    to_changes(inputs, rows, n_inputs, x)
    to_changes(outputs, rows, n_outputs, y)
    return loss, pairs


@helper
def pairs_of(mode, low, high, first, last):
    """Positive pairs of positions first..last."""
    pairs = 0
    for i in range(first, last):
        around = high[i] - low[i] - 1
        pairs += min(around, 1) if mode == CBOW else around
    return pairs


def _train_shard(
    tokens, bounds, first, last, key, keep, accept, alias, mode, window, negatives, spread, step, inputs, outputs, w, p,
):  # fmt: skip
    """Shard p takes words first..last by steps of -step; its changes stay in w, a Workspace of kernels/context.py.

    Returns (loss, positive pairs) of some of its tiles.
    """
    return _go_over_shard(
        tokens, bounds, first, last, key, keep, accept, alias, mode, window, negatives, spread, step, inputs, outputs,
        w.slot_of[p], w.words[p], w.slots[p], w.low[p], w.high[p], w.drawn[p], w.rows[p], w.visits[p], w.counts[p],
        w.x[p], w.y[p], w.mark[p], w.tile_rows[p], w.band[p], w.z[p], w.share[p], w.h_t[p],
    )  # fmt: skip


def _merge_part(inputs, outputs, w, rate, pull, part):
    """Add the changes of all shards to the rows of one part of both tables; the parts are disjoint."""
    _merge(inputs, outputs, w.rows, w.visits, w.counts, w.x, w.y, w.factors, rate, pull, part)


# Called from threads of Python, which sleep while they wait: those of a parallel kernel spin, and on a machine that is
# shared with other work a round of two parallel regions then took up to ten times as long.
train_shard = Kernel(_train_shard)
merge_part = Kernel(_merge_part)


# --- gradients of a batch --------------------------------------------------------------------------------


def _gradients(mode, low, high, n, negatives, window, scale, inputs, outputs, d_x, d_y, w):
    """Loss of a batch; d_x[0] and d_y[0] become scale times its gradients.

    The n words and the drawn negatives stand in shard 0 of the workspace w, the gradients' rows afterwards in
    w.rows[0]. Returns (loss, input rows, output rows).
    """
    P, M = len(d_x), w.z.shape[1]
    n_tiles = -(-n // TILE)
    rows, slots, drawn = w.rows[0], w.slots[0], w.drawn[0]
    n_inputs = number_rows(w.words[0], n, w.slot_of[0], slots, rows, w.visits[0], 0)
    n_outputs = number_rows(drawn, n_tiles * M, w.slot_of[0], drawn, rows, w.visits[0], n_inputs)
    for u in range(n_outputs):
        w.slot_of[0, rows[u]] = -1
    x, y = w.x[0], w.y[0]
    copy_in(inputs, rows, n_inputs, x)
    copy_in(outputs, rows, n_outputs, y)
    losses = np.zeros(P)
    D, each = inputs.shape[1], f32(negatives / M)
    for p in numba.prange(P):
        d_x[p, :n_inputs] = ZERO
        d_y[p, :n_outputs] = ZERO
        w.mark[p, :n_outputs] = -1
        loss = 0.0
        for k in range(p * n_tiles // P, (p + 1) * n_tiles // P):
            loss += context_tile(
                mode, x, y, d_x[p], d_y[p], slots, slots, low, high, k * TILE, min(n, (k + 1) * TILE),
                drawn[k * M : (k + 1) * M], each, scale, window, False, D, True, w.mark[p], k, w.tile_rows[p],
                w.band[p], w.z[p], w.share[p], w.h_t[p],
            )  # fmt: skip
        losses[p] = loss
    for p in range(1, P):
        d_x[0, :n_inputs] += d_x[p, :n_inputs]
        d_y[0, :n_outputs] += d_y[p, :n_outputs]
    return losses.sum(), n_inputs, n_outputs


gradients = Kernel(_gradients)
