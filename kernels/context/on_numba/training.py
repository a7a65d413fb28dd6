"""Training of context prediction (word2vec) on a CPU, in rounds of shards: skip-gram and CBOW, formulas in tile.py.

A shard is a piece of a round's work. It copies the rows that its words and negatives need, and processes its tiles,
each of which updates the copies at once. When all shards of the round are done, their changes are added to the tables
in the order of shards (shard_rows.py). So a shard sees its own steps at once and those of others after the round,
nobody waits within a round, and the same call gives the same bits on any number of threads.

With `parts`, a word's vector is made of rows that it shares with others (subwords.py); None: word v is row v, and Numba
leaves out what is done with parts.
"""

from __future__ import annotations

import numpy as np

from ...machine.jit import borrower, helper
from ...machine.team import Kernel, in_parallel
from ..batch import TILE
from .draw import draw_negatives, draw_positions
from .shard_rows import copy_in, forget_rows, merge_rows, number_rows, sort_by_part
from .subwords import hand_on, make_vectors, number_parts
from .tile import CBOW, TileOptions, Vectors, Windows, scratch_of, tile_step

f32 = np.float32
NO_LOCKS = np.empty(0, np.float32)
LOSS_EVERY = 8  # tiles; the loss is for monitoring only


@borrower
def _number_shard(stream, first, last, sampler, steps, parts, w, p):
    """Draw the words and negatives of shard p and number their rows; return the number of words."""
    M, touched, drawn = w.z.shape[1], w.touched, w.drawn[p]
    n = draw_positions(
        stream.tokens, stream.bounds, first, last, sampler.keep, stream.key, (steps.window, steps.shrink),
        w.words[p], w.low[p], w.high[p],
    )  # fmt: skip
    n_drawn = -(-n // TILE) * M
    forget_rows(touched, p)
    number_rows(w.words[p], n, touched, p, w.slots[p])
    w.n_inputs[p] = touched.counts[p]
    if parts is not None:
        number_parts(touched, parts, p)
    draw_negatives(stream.key, first, sampler.accept, sampler.alias, drawn, n_drawn)
    number_rows(drawn, n_drawn, touched, p, drawn)
    sort_by_part(touched, p)
    w.mark[p, : touched.counts[p]] = -1
    return n


@borrower
def _vectors(tables, parts, w, p):
    """Copy the rows of shard p; return the vectors of its tiles, and the row of each position among the inputs."""
    rows, x, y = w.touched.rows[p], w.x[p], w.y[p]
    copy_in(tables.outputs, rows, w.touched.counts[p], y)
    if parts is None:
        copy_in(tables.inputs, rows, w.n_inputs[p], x)
        return Vectors(x, y, x, y), w.slots[p]
    s = parts.w
    copy_in(tables.inputs, s.touched.rows[p], s.touched.counts[p], s.x[p])
    return Vectors(s.vectors[p], y, s.changes[p], y), s.x_slots


@borrower
def _go_over(n, steps, rate, D, vectors, x_slots, parts, w, p):
    """Process the n words of shard p; return (loss, positive pairs) of every LOSS_EVERY-th tile.

    Afterwards, the copies of its rows have moved.
    """
    slots, low, high, drawn, M = w.slots[p], w.low[p], w.high[p], w.drawn[p], w.z.shape[1]
    how = TileOptions(
        steps.mode, f32(steps.negatives / M), f32(-rate), steps.window, steps.mean, steps.spread, D
    )
    windows, scratch = Windows(x_slots, slots, low, high), scratch_of(w, p)
    loss, pairs = 0.0, 0
    for k in range(-(-n // TILE)):
        begin, end = k * TILE, min(n, (k + 1) * TILE)
        if parts is not None:
            start, stop = begin, end
            if steps.mode == CBOW:
                for i in range(begin, end):
                    start, stop = min(start, low[i]), max(stop, high[i])
            make_vectors(parts.w, slots, start, stop, p)
        watch = k % LOSS_EVERY == 0
        loss += tile_step(vectors, windows, begin, end, drawn[k * M : (k + 1) * M], how, watch, k, scratch)
        if parts is not None:
            hand_on(parts.w, slots, start, stop, p)
        if watch:
            pairs += _pairs_of(steps.mode, low, high, begin, end)
    return loss, pairs


@borrower
def _pairs_of(mode, low, high, first, last):
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


@borrower
def _train_shard(p, stream, sampler, steps, rate, tables, parts, w, r, found):
    """Process shard p's part of round r."""
    first, last = shard_words_of(len(stream.tokens), p, len(w.words), steps.shard_words, r)
    n = _number_shard(stream, first, last, sampler, steps, parts, w, p)
    vectors, x_slots = _vectors(tables, parts, w, p)
    loss, pairs = _go_over(n, steps, rate, tables.inputs.shape[1], vectors, x_slots, parts, w, p)
    found[p, 0] += loss
    found[p, 1] += pairs


@helper
def _merge_part(p, tables, parts, w, rate, pull):
    """Add the changes of all shards to the rows of one part of both tables."""
    touched = w.touched
    if parts is None:
        merge_rows(tables.inputs, touched, w.n_inputs, w.x, tables.locks, rate * pull, p)
    else:
        s = parts.w
        merge_rows(tables.inputs, s.touched, s.touched.counts, s.x, NO_LOCKS, rate * pull, p)
    merge_rows(tables.outputs, touched, touched.counts, w.y, NO_LOCKS, rate * pull, p)


def _train_rounds(team, stream, sampler, steps, rates, rounds, tables, parts, w, found):
    """Train rounds [first, last) of an epoch.

    w is a Workspace, parts are SubwordParts or None. found (P, 2) += the loss and the positive pairs of some tiles of
    each shard.
    """
    P = len(w.words)
    for r in range(rounds[0], rounds[1]):
        rate = rate_of(rates, r * steps.shard_words * P)
        in_parallel(team, P, _train_shard, (stream, sampler, steps, rate, tables, parts, w, r, found))
        in_parallel(team, P, _merge_part, (tables, parts, w, rate, steps.pull))


train_rounds = Kernel(_train_rounds)
