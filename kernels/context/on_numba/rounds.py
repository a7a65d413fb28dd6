"""Context prediction (word2vec) on a CPU: shards that train two tables, and the gradients of a batch.

Skip-gram and CBOW with negatives that a tile of positions shares: formulas are in tile.py.

Training: a shard is a piece of a round's work. It copies the rows that its words and negatives need, processes its
tiles, each of which updates the copies at once, and leaves the rows' changes. When all shards of the round are done,
their changes are added to the tables in the order of shards. So a shard sees its own steps at once and those of others
after the round, nobody waits within a round, and the same call gives the same bits on any number of threads.
"""

from __future__ import annotations

import math

import numpy as np

from ...machine.gemm import copy_floats
from ...machine.jit import helper
from ...machine.simd import FLOAT_BYTES, WIDTH, load, prefetch, store
from ...machine.team import Kernel, in_parallel
from ..batch import TILE
from .draw import draw_negatives, draw_positions, number_rows
from .tile import CBOW, Scratch, TileOptions, Vectors, Windows, tile_step

f32 = np.float32
ZERO, ONE = f32(0), f32(1)
AHEAD = 4  # rows that are prefetched
LINE_BYTES = 64
NO_LOCKS = np.empty(0, np.float32)
LOSS_EVERY = 8  # tiles; the loss is for monitoring only

# --- a shard ---------------------------------------------------------------------------------------------


@helper
def _prefetch_row(table, rows, u, n, D):
    """Prefetch row rows[u] of a table with D columns."""
    if u < n:
        row = table + FLOAT_BYTES * np.int64(rows[u]) * D
        for line in range(0, FLOAT_BYTES * D, LINE_BYTES):
            prefetch(row + line)


@helper
def copy_in(table, rows, n, copies):
    """Copy rows of table (V, D) into copies (n, ld), zero past D."""
    D, ld = table.shape[1], copies.shape[1]
    source, target = table.ctypes.data, copies.ctypes.data
    for u in range(n):
        _prefetch_row(source, rows, u + AHEAD, n, D)
        copy_floats(source + FLOAT_BYTES * np.int64(rows[u]) * D, target + FLOAT_BYTES * u * ld, D)
        for d in range(D, ld):
            copies[u, d] = ZERO


@helper
def to_changes(table, rows, n, copies):
    """Turn copies into their changes, by subtracting the table's rows."""
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
def add_changes(table, rows, n, changes, factors, locks, part, parts):
    """Add changes, times factors and any locks, to the rows of one part of the table."""
    D, ld = table.shape[1], changes.shape[1]
    source, target = changes.ctypes.data, table.ctypes.data
    for u in range(n):
        row = np.int64(rows[u])
        if row % parts != part:
            continue
        at, change, factor = target + FLOAT_BYTES * row * D, source + FLOAT_BYTES * u * ld, factors[row]
        if len(locks):
            factor *= locks[row]
        for d in range(0, FLOAT_BYTES * (D // WIDTH * WIDTH), FLOAT_BYTES * WIDTH):
            store(load(at + d) + load(change + d) * factor, at + d)
        for d in range(D // WIDTH * WIDTH, D):
            table[row, d] += changes[u, d] * factor


@helper
def set_factors(rows, visits, counts, factors, step, pull, part):
    """Set the shrink factors of one part of a table's rows, for the changes of shards q, rows[q, :counts[q]]."""
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
    """Reset to zero for the next round."""
    P = len(rows)
    for q in range(P):
        for u in range(counts[q]):
            if rows[q, u] % P == part:
                factors[rows[q, u]] = ZERO


@helper
def merge(tables, w, rate, pull, part):
    """Add the changes of all shards to the rows of one part of both tables."""
    P = len(w.rows)
    set_factors(w.rows, w.visits, w.counts[:, 1], w.factors, rate, pull, part)
    for q in range(P):
        add_changes(tables.inputs, w.rows[q], w.counts[q, 0], w.x[q], w.factors, tables.locks, part, P)
        add_changes(tables.outputs, w.rows[q], w.counts[q, 1], w.y[q], w.factors, NO_LOCKS, part, P)
    clear_factors(w.rows, w.counts[:, 1], w.factors, part)


@helper
def go_over_shard(stream, first, last, sampler, steps, rate, tables, w, p):
    """Process words first..last as shard p; return (loss, positive pairs) of every LOSS_EVERY-th tile.

    Afterwards w.rows[p, :counts[0]] are the input rows and rows[:counts[1]] the output rows touched; x and y are their
    changes.
    """
    M, D = w.z.shape[1], tables.inputs.shape[1]
    slots, low, high, drawn, rows = w.slots[p], w.low[p], w.high[p], w.drawn[p], w.rows[p]
    x, y, how = w.x[p], w.y[p], tile_options(steps, rate, M, D)
    n = draw_positions(
        stream.tokens, stream.bounds, first, last, sampler.keep, stream.key, (steps.window, steps.shrink),
        w.words[p], low, high,
    )  # fmt: skip
    n_tiles = -(-n // TILE)
    n_inputs = number_rows(w.words[p], n, w.slot_of[p], slots, rows, w.visits[p], 0)
    draw_negatives(stream.key, first, sampler.accept, sampler.alias, drawn, n_tiles * M)
    n_outputs = number_rows(drawn, n_tiles * M, w.slot_of[p], drawn, rows, w.visits[p], n_inputs)
    for u in range(n_outputs):
        w.slot_of[p, rows[u]] = -1
        w.mark[p, u] = -1
    w.counts[p, 0], w.counts[p, 1] = n_inputs, n_outputs
    copy_in(tables.inputs, rows, n_inputs, x)
    copy_in(tables.outputs, rows, n_outputs, y)
    loss, pairs = 0.0, 0
    vectors, windows, scratch = Vectors(x, y, x, y), Windows(slots, slots, low, high), scratch_of(w, p)
    for k in range(n_tiles):
        begin, end = k * TILE, min(n, (k + 1) * TILE)
        watch = k % LOSS_EVERY == 0
        loss += tile_step(vectors, windows, begin, end, drawn[k * M : (k + 1) * M], how, watch, k, scratch)
        if watch:
            pairs += pairs_of(steps.mode, low, high, begin, end)
    to_changes(tables.inputs, rows, n_inputs, x)
    to_changes(tables.outputs, rows, n_outputs, y)
    return loss, pairs


@helper
def tile_options(steps, rate, M, D):
    """Return the options of a tile with M negatives and D columns, at a rate."""
    each = f32(steps.negatives / M)
    return TileOptions(steps.mode, each, f32(-rate), steps.window, steps.mean, steps.spread, D)


@helper
def scratch_of(w, p):
    """Return shard p's scratch for a tile."""
    return Scratch(w.mark[p], w.tile_rows[p], w.band[p], w.z[p], w.share[p], w.h_t[p])


@helper
def pairs_of(mode, low, high, first, last):
    """Return the number of positive pairs of positions first..last."""
    pairs = 0
    for i in range(first, last):
        around = high[i] - low[i] - 1
        pairs += min(around, 1) if mode == CBOW else around
    return pairs


@helper
def shard_words_of(n_words, shard, shards, shard_words, r):
    """Return the words (first, last) of a shard in round r of an epoch over n_words."""
    end = (shard + 1) * n_words // shards
    first = min(shard * n_words // shards + r * shard_words, end)
    return first, min(first + shard_words, end)


@helper
def rate_of(rates, n_words_before):
    """Return the rate after this many words of an epoch; rates (3,): initial rate, decrease per word, minimum."""
    return max(rates[2], rates[0] - rates[1] * n_words_before)


# --- gradients of a batch --------------------------------------------------------------------------------


@helper
def _run_split(p, windows, drawn, n, n_inputs, n_outputs, how, x, y, d_x, d_y, w, losses):
    """Compute the loss of split p's tiles, and its gradients in d_x[p] and d_y[p]."""
    P, M, n_tiles = len(d_x), w.z.shape[1], -(-n // TILE)
    d_x[p, :n_inputs] = ZERO
    d_y[p, :n_outputs] = ZERO
    w.mark[p, :n_outputs] = -1
    vectors, scratch = Vectors(x, y, d_x[p], d_y[p]), scratch_of(w, p)
    loss = 0.0
    for k in range(p * n_tiles // P, (p + 1) * n_tiles // P):
        first, last = k * TILE, min(n, (k + 1) * TILE)
        loss += tile_step(vectors, windows, first, last, drawn[k * M : (k + 1) * M], how, True, k, scratch)
    losses[p] = loss


def _gradients(team, mode, low, high, n, negatives, window, scale, inputs, outputs, d_x, d_y, w):
    """Compute the loss of a batch; d_x[0] and d_y[0] become scale times its gradients.

    The n words and the drawn negatives are in shard 0 of the workspace w; afterwards the gradients' rows are in
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
    how = TileOptions(mode, f32(negatives / M), scale, window, True, False, inputs.shape[1])
    windows = Windows(slots, slots, low, high)
    in_parallel(team, P, _run_split, (windows, drawn, n, n_inputs, n_outputs, how, x, y, d_x, d_y, w, losses))
    for p in range(1, P):
        d_x[0, :n_inputs] += d_x[p, :n_inputs]
        d_y[0, :n_outputs] += d_y[p, :n_outputs]
    return losses.sum(), n_inputs, n_outputs


gradients = Kernel(_gradients)
