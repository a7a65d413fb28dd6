"""Context prediction (word2vec) on a CPU: shards that train two tables, and the gradients of a batch.

Skip-gram and CBOW with negatives that a tile of positions shares: formulas are in tile.py.

Training: a shard is a piece of a round's work. It copies the rows that its words and negatives need, and processes its
tiles, each of which updates the copies at once. When all shards of the round are done, their changes are added to the
tables in the order of shards (shard_rows.py). So a shard sees its own steps at once and those of others
after the round, nobody waits within a round, and the same call gives the same bits on any number of threads.
"""

from __future__ import annotations

import numpy as np

from ...machine.jit import borrower, helper
from ...machine.team import Kernel, in_parallel
from ..batch import TILE
from .draw import draw_negatives, draw_positions
from .shard_rows import copy_in, forget_rows, merge_rows, number_rows, sort_by_part
from .tile import CBOW, Scratch, TileOptions, Vectors, Windows, tile_step

f32 = np.float32
ZERO = f32(0)
NO_LOCKS = np.empty(0, np.float32)
LOSS_EVERY = 8  # tiles; the loss is for monitoring only

# --- a shard ---------------------------------------------------------------------------------------------


@helper
def merge(tables, w, rate, pull, part):
    """Add the changes of all shards to the rows of one part of both tables."""
    touched = w.touched
    merge_rows(tables.inputs, touched, w.n_inputs, w.x, tables.locks, rate * pull, part)
    merge_rows(tables.outputs, touched, touched.counts, w.y, NO_LOCKS, rate * pull, part)


@borrower
def go_over_shard(stream, first, last, sampler, steps, rate, tables, w, p):
    """Process words first..last as shard p; return (loss, positive pairs) of every LOSS_EVERY-th tile.

    Afterwards w.touched are its rows, and x and y the moved copies.
    """
    M, D, touched = w.z.shape[1], tables.inputs.shape[1], w.touched
    slots, low, high, drawn, rows = w.slots[p], w.low[p], w.high[p], w.drawn[p], touched.rows[p]
    x, y, how = w.x[p], w.y[p], tile_options(steps, rate, M, D)
    n = draw_positions(
        stream.tokens, stream.bounds, first, last, sampler.keep, stream.key, (steps.window, steps.shrink),
        w.words[p], low, high,
    )  # fmt: skip
    n_tiles = -(-n // TILE)
    forget_rows(touched, p)
    number_rows(w.words[p], n, touched, p, slots)
    w.n_inputs[p] = touched.counts[p]
    draw_negatives(stream.key, first, sampler.accept, sampler.alias, drawn, n_tiles * M)
    number_rows(drawn, n_tiles * M, touched, p, drawn)
    sort_by_part(touched, p)
    w.mark[p, : touched.counts[p]] = -1
    copy_in(tables.inputs, rows, w.n_inputs[p], x)
    copy_in(tables.outputs, rows, touched.counts[p], y)
    loss, pairs = 0.0, 0
    vectors, windows, scratch = Vectors(x, y, x, y), Windows(slots, slots, low, high), scratch_of(w, p)
    for k in range(n_tiles):
        begin, end = k * TILE, min(n, (k + 1) * TILE)
        watch = k % LOSS_EVERY == 0
        loss += tile_step(vectors, windows, begin, end, drawn[k * M : (k + 1) * M], how, watch, k, scratch)
        if watch:
            pairs += pairs_of(steps.mode, low, high, begin, end)
    return loss, pairs


@borrower
def tile_options(steps, rate, M, D):
    """Return the options of a tile with M negatives and D columns, at a rate."""
    each = f32(steps.negatives / M)
    return TileOptions(steps.mode, each, f32(-rate), steps.window, steps.mean, steps.spread, D)


@borrower
def scratch_of(w, p):
    """Return shard p's scratch for a tile."""
    return Scratch(w.mark[p], w.tile_rows[p], w.band[p], w.z[p], w.share[p], w.h_t[p])


@borrower
def pairs_of(mode, low, high, first, last):
    """Return the number of positive pairs of positions first..last."""
    pairs = 0
    for i in range(first, last):
        around = high[i] - low[i] - 1
        pairs += min(around, 1) if mode == CBOW else around
    return pairs


@borrower
def shard_words_of(n_words, shard, shards, shard_words, r):
    """Return the words (first, last) of a shard in round r of an epoch over n_words."""
    end = (shard + 1) * n_words // shards
    first = min(shard * n_words // shards + r * shard_words, end)
    return first, min(first + shard_words, end)


@borrower
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
    w.touched. Returns (loss, input rows, output rows).
    """
    P, M, touched = len(d_x), w.z.shape[1], w.touched
    n_tiles = -(-n // TILE)
    rows, slots, drawn = touched.rows[0], w.slots[0], w.drawn[0]
    forget_rows(touched, 0)
    number_rows(w.words[0], n, touched, 0, slots)
    n_inputs = touched.counts[0]
    number_rows(drawn, n_tiles * M, touched, 0, drawn)
    n_outputs = touched.counts[0]
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


gradients = Kernel(_gradients, beside_torch=True)
