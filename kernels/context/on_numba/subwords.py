"""Context prediction with subwords on a CPU: a word's input vector is the mean of rows that it shares with others.

    x_v = mean of r_u, u in ids[bounds[v]:bounds[v + 1]]        r are the rows of the input table (R, D)

A shard (training.py) copies all rows of its words. Before a tile, the vectors of its positions are made from the
copies; after it, the whole change of each vector is added to each of its rows, as in fastText. So a tile sees what
earlier tiles changed in the parts of its words.
"""

from __future__ import annotations

import numpy as np

from ...machine.jit import borrower
from ...machine.simd import FLOAT_BYTES, WIDTH, load, store
from .rows import add_row, zero_row
from .shard_rows import ONE, forget_rows, number_rows, sort_by_part

f32 = np.float32


@borrower
def number_parts(touched, parts, p):
    """Number the rows of the words that shard p touched: slots[begins[u] : begins[u + 1]] are word u's in parts.w.

    A row is visited as often as its words are.
    """
    (ids, bounds), s = parts.of_words, parts.w
    begins, slots, words, visits = s.begins[p], s.slots[p], touched.rows[p], touched.visits[p]
    n_words, at = touched.counts[p], 0
    forget_rows(s.touched, p)
    for u in range(n_words):
        begins[u] = at
        first, last = bounds[words[u]], bounds[words[u] + 1]
        number_rows(ids[first:last], last - first, s.touched, p, slots[at:])
        for k in range(last - first):
            s.touched.visits[p, slots[at + k]] += visits[u] - 1
        at += last - first
    begins[n_words] = at
    sort_by_part(s.touched, p)


@borrower
def make_vectors(s, slots, first, last, p):
    """Compute the vectors of positions first..last, the means of their rows, and zero their changes."""
    begins, part_slots, x_slots, ld = s.begins[p], s.slots[p], s.x_slots, s.x.shape[2]
    source, row_bytes = s.x[p].ctypes.data, FLOAT_BYTES * ld
    for i in range(first, last):
        begin, end = begins[slots[i]], begins[slots[i] + 1]
        at = x_slots[i] * row_bytes
        zero_row(s.changes[p].ctypes.data + at, ld)
        at += s.vectors[p].ctypes.data
        zero_row(at, ld)
        for k in range(begin, end):
            add_row(source + np.int64(part_slots[k]) * row_bytes, at, ld)
        share = ONE / f32(end - begin)
        for d in range(0, row_bytes, FLOAT_BYTES * WIDTH):
            store(load(at + d) * share, at + d)


@borrower
def hand_on(s, slots, first, last, p):
    """Add the changes of the vectors of positions first..last to each of their rows."""
    begins, part_slots, x_slots, ld = s.begins[p], s.slots[p], s.x_slots, s.x.shape[2]
    target, row_bytes = s.x[p].ctypes.data, FLOAT_BYTES * ld
    for i in range(first, last):
        change = s.changes[p].ctypes.data + x_slots[i] * row_bytes
        for k in range(begins[slots[i]], begins[slots[i] + 1]):
            add_row(change, target + np.int64(part_slots[k]) * row_bytes, ld)
