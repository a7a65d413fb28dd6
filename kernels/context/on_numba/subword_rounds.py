"""Context prediction with subwords on a CPU: a word's input vector is the mean of rows that it shares with others.

    x_v = mean of r_u, u in ids[bounds[v]:bounds[v + 1]]        r are the rows of the input table (R, D)

The rest is as in rounds.py. A shard copies all rows of its words. Before a tile, the vectors of its positions are made
from the copies; after it, the whole change of each vector is added to each of its rows, as in fastText. So a tile sees
what earlier tiles changed in the parts of its words.
"""

from __future__ import annotations

import numpy as np

from ...machine.jit import helper
from ...machine.simd import FLOAT_BYTES, WIDTH, load, store
from ..batch import TILE
from .draw import draw_negatives, draw_positions, number_rows
from .rounds import (
    LOSS_EVERY,
    NO_LOCKS,
    ONE,
    add_changes,
    clear_factors,
    copy_in,
    f32,
    pairs_of,
    scratch_of,
    set_factors,
    tile_options,
    to_changes,
)
from .rows import add_row, zero_row
from .tile import CBOW, Vectors, Windows, tile_step


@helper
def _number_parts(words, visits, n_words, of_words, slot_of, begins, slots, rows, row_visits):
    """Number the rows of each word (n_words,): slots[begins[u]:begins[u + 1]], from 0 on. Returns the number of rows.

    visits: how often each word occurs; row_visits: set to how often a word of each row does.
    """
    ids, bounds = of_words
    n_rows = at = 0
    for u in range(n_words):
        begins[u] = at
        for k in range(bounds[words[u]], bounds[words[u] + 1]):
            slot = slot_of[ids[k]]
            if slot < 0:
                slot = n_rows
                slot_of[ids[k]] = slot
                rows[slot] = ids[k]
                row_visits[slot] = 0
                n_rows += 1
            row_visits[slot] += visits[u]
            slots[at] = slot
            at += 1
    begins[n_words] = at
    for u in range(n_rows):
        slot_of[rows[u]] = -1
    return n_rows


@helper
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


@helper
def _hand_on(changes, part_slots, begins, slots, x_slots, first, last, copies):
    """Add the changes of the vectors of positions first..last to each of their rows."""
    ld = copies.shape[1]
    target, row_bytes = copies.ctypes.data, FLOAT_BYTES * ld
    for i in range(first, last):
        change = changes.ctypes.data + x_slots[i] * row_bytes
        for k in range(begins[slots[i]], begins[slots[i] + 1]):
            add_row(change, target + np.int64(part_slots[k]) * row_bytes, ld)


@helper
def go_over_subword_shard(stream, first, last, sampler, steps, rate, tables, parts, w, p):
    """Process words first..last as shard p; its changes stay in the workspaces w and parts.w.

    Returns (loss, positive pairs) of some of its tiles.
    """
    s, M, D = parts.w, w.z.shape[1], tables.inputs.shape[1]
    slots, low, high, drawn, rows, visits = (
        w.slots[p],
        w.low[p],
        w.high[p],
        w.drawn[p],
        w.rows[p],
        w.visits[p],
    )
    copies, part_slots, begins, y = s.x[p], s.slots[p], s.begins[p], w.y[p]
    taught, changes, x_slots = s.vectors[p], s.changes[p], s.x_slots
    n = draw_positions(
        stream.tokens, stream.bounds, first, last, sampler.keep, stream.key, (steps.window, steps.shrink),
        w.words[p], low, high,
    )  # fmt: skip
    n_tiles = -(-n // TILE)
    n_words = number_rows(w.words[p], n, w.slot_of[p], slots, rows, visits, 0)
    n_parts = _number_parts(
        rows, visits, n_words, parts.of_words, s.slot_of[p], begins, part_slots, s.rows[p], s.visits[p]
    )
    draw_negatives(stream.key, first, sampler.accept, sampler.alias, drawn, n_tiles * M)
    n_outputs = number_rows(drawn, n_tiles * M, w.slot_of[p], drawn, rows, visits, n_words)
    for u in range(n_outputs):
        w.slot_of[p, rows[u]] = -1
        w.mark[p, u] = -1
    s.counts[p], w.counts[p, 1] = n_parts, n_outputs
    copy_in(tables.inputs, s.rows[p], n_parts, copies)
    copy_in(tables.outputs, rows, n_outputs, y)
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
    to_changes(tables.inputs, s.rows[p], n_parts, copies)
    to_changes(tables.outputs, rows, n_outputs, y)
    return loss, pairs


@helper
def merge_subwords(tables, parts, w, rate, pull, part):
    """Add the changes of all shards to the rows of one part of both tables; the parts are disjoint."""
    P, s = len(w.rows), parts.w
    set_factors(s.rows, s.visits, s.counts, s.factors, rate, pull, part)
    set_factors(w.rows, w.visits, w.counts[:, 1], w.factors, rate, pull, part)
    for q in range(P):
        add_changes(tables.inputs, s.rows[q], s.counts[q], s.x[q], s.factors, NO_LOCKS, part, P)
        add_changes(tables.outputs, w.rows[q], w.counts[q, 1], w.y[q], w.factors, NO_LOCKS, part, P)
    clear_factors(s.rows, s.counts, s.factors, part)
    clear_factors(w.rows, w.counts[:, 1], w.factors, part)
