"""Context prediction with subwords on a CPU: a word's input vector is the mean of rows that it shares with others.

    x_v = mean of r_u, u in ids[bounds[v]:bounds[v + 1]]        r are the rows of the input table (R, D)

The rest is as in rounds.py. A shard copies all rows of its words. Before a tile, the vectors of its positions are made
from the copies; after it, the whole change of each vector is added to each of its rows, as in fastText. So a tile sees
what earlier tiles changed in the parts of its words.
"""

from __future__ import annotations

import numpy as np

from ...machine.jit import borrower, helper
from ...machine.simd import FLOAT_BYTES, WIDTH, load, store
from ..batch import TILE
from .draw import draw_negatives, draw_positions
from .rounds import LOSS_EVERY, NO_LOCKS, f32, pairs_of, scratch_of, tile_options
from .rows import add_row, zero_row
from .shard_rows import ONE, copy_in, forget_rows, merge_rows, number_rows, sort_by_part
from .tile import CBOW, Vectors, Windows, tile_step


@borrower
def _number_parts(touched, n_words, of_words, parts, begins, slots, p):
    """Number the rows of the first n_words that shard p touched: slots[begins[u]:begins[u + 1]] are word u's in parts.

    A row is visited as often as its words are.
    """
    (ids, bounds), words, visits = of_words, touched.rows[p], touched.visits[p]
    at = 0
    for u in range(n_words):
        begins[u] = at
        first, last = bounds[words[u]], bounds[words[u] + 1]
        number_rows(ids[first:last], last - first, parts, p, slots[at:])
        for k in range(last - first):
            parts.visits[p, slots[at + k]] += visits[u] - 1
        at += last - first
    begins[n_words] = at


@borrower
def _make_vectors(copies, part_slots, begins, slots, x_slots, first, last, vectors, changes):
    """Compute the means of the rows of positions first..last into vectors (., ld); zero changes (., ld)."""
    ld = copies.shape[1]
    source, row_bytes = copies.ctypes.data, FLOAT_BYTES * ld
    for i in range(first, last):
        begin, end = begins[slots[i]], begins[slots[i] + 1]
        at = x_slots[i] * row_bytes
        zero_row(changes.ctypes.data + at, ld)
        at += vectors.ctypes.data
        zero_row(at, ld)
        for k in range(begin, end):
            add_row(source + np.int64(part_slots[k]) * row_bytes, at, ld)
        share = ONE / f32(end - begin)
        for d in range(0, row_bytes, FLOAT_BYTES * WIDTH):
            store(load(at + d) * share, at + d)


@borrower
def _hand_on(changes, part_slots, begins, slots, x_slots, first, last, copies):
    """Add the changes of the vectors of positions first..last to each of their rows."""
    ld = copies.shape[1]
    target, row_bytes = copies.ctypes.data, FLOAT_BYTES * ld
    for i in range(first, last):
        change = changes.ctypes.data + x_slots[i] * row_bytes
        for k in range(begins[slots[i]], begins[slots[i] + 1]):
            add_row(change, target + np.int64(part_slots[k]) * row_bytes, ld)


@borrower
def go_over_subword_shard(stream, first, last, sampler, steps, rate, tables, parts, w, p):
    """Process words first..last as shard p; its changes stay in the workspaces w and parts.w.

    Returns (loss, positive pairs) of some of its tiles.
    """
    s, M, D, touched = parts.w, w.z.shape[1], tables.inputs.shape[1], w.touched
    slots, low, high, drawn, rows = w.slots[p], w.low[p], w.high[p], w.drawn[p], touched.rows[p]
    copies, part_slots, begins, y = s.x[p], s.slots[p], s.begins[p], w.y[p]
    taught, changes, x_slots = s.vectors[p], s.changes[p], s.x_slots
    n = draw_positions(
        stream.tokens, stream.bounds, first, last, sampler.keep, stream.key, (steps.window, steps.shrink),
        w.words[p], low, high,
    )  # fmt: skip
    n_tiles = -(-n // TILE)
    forget_rows(touched, p)
    number_rows(w.words[p], n, touched, p, slots)
    forget_rows(s.touched, p)
    _number_parts(touched, touched.counts[p], parts.of_words, s.touched, begins, part_slots, p)
    draw_negatives(stream.key, first, sampler.accept, sampler.alias, drawn, n_tiles * M)
    number_rows(drawn, n_tiles * M, touched, p, drawn)
    sort_by_part(touched, p)
    sort_by_part(s.touched, p)
    w.mark[p, : touched.counts[p]] = -1
    copy_in(tables.inputs, s.touched.rows[p], s.touched.counts[p], copies)
    copy_in(tables.outputs, rows, touched.counts[p], y)
    loss, pairs = 0.0, 0
    how = tile_options(steps, rate, M, D)
    vectors, windows, scratch = (
        Vectors(taught, y, changes, y),
        Windows(x_slots, slots, low, high),
        scratch_of(w, p),
    )
    for k in range(n_tiles):
        begin, end = k * TILE, min(n, (k + 1) * TILE)
        start, stop = begin, end
        if steps.mode == CBOW:
            for i in range(begin, end):
                start, stop = min(start, low[i]), max(stop, high[i])
        _make_vectors(copies, part_slots, begins, slots, x_slots, start, stop, taught, changes)
        watch = k % LOSS_EVERY == 0
        loss += tile_step(vectors, windows, begin, end, drawn[k * M : (k + 1) * M], how, watch, k, scratch)
        _hand_on(changes, part_slots, begins, slots, x_slots, start, stop, copies)
        if watch:
            pairs += pairs_of(steps.mode, low, high, begin, end)
    return loss, pairs


@helper
def merge_subwords(tables, parts, w, rate, pull, part):
    """Add the changes of all shards to the rows of one part of both tables; the parts are disjoint."""
    s, touched = parts.w, w.touched
    merge_rows(tables.inputs, s.touched, s.touched.counts, s.x, NO_LOCKS, rate * pull, part)
    merge_rows(tables.outputs, touched, touched.counts, w.y, NO_LOCKS, rate * pull, part)
