"""Hierarchical softmax on a CPU: words predict the path to their neighbour in a Huffman tree; see ../hierarchy.py.

As in training.py: a shard updates copies of the rows that it touches, and the shards' changes are added in their order,
so that the same call gives the same bits on any number of threads.
"""

from __future__ import annotations

import numpy as np

from ...machine.jit import borrower, exact_entry, helper
from ...machine.simd import FLOAT_BYTES, WIDTH, load, store
from ...machine.team import Kernel, in_parallel
from .draw import draw_positions
from .rows import add_row, dots, zero_row
from .shard_rows import copy_in, forget_rows, merge_rows, number_rows, sort_by_part
from .tile import NO_PAIR, SKIPGRAM, positive
from .training import NO_LOCKS, rate_of, shard_words_of

f32 = np.float32
ONE = f32(1)


@exact_entry
def huffman_parents(counts, parents, right):
    """Compute parents int64 (2 V - 1,), and which nodes are right children, of a Huffman tree.

    The leaves come in the order of rising counts int64 (V,), then the inner nodes V..; the last one is the root, its
    own parent. Two queues suffice, as the weights of inner nodes rise, too.
    """
    V = len(counts)
    weights = np.empty(2 * V - 1, np.int64)
    weights[:V] = counts
    leaf, inner = 0, V
    for made in range(V, 2 * V - 1):
        total = 0
        for child in range(2):
            # On a tie, take the leaf first: paths stay short.
            if leaf < V and (inner >= made or weights[leaf] <= weights[inner]):
                least, leaf = leaf, leaf + 1
            else:
                least, inner = inner, inner + 1
            parents[least], right[least] = made, child == 1
            total += weights[least]
        weights[made] = total
    parents[2 * V - 2] = 2 * V - 2


@exact_entry
def huffman_paths(parents, right, order, bounds, nodes, signs, fill):
    """Write the path of word order[i], leaf i, from the root down: first bounds (V + 1,), then nodes and signs."""
    V = len(order)
    root = len(parents) - 1
    if not fill:
        for leaf in range(V):
            at, length = leaf, 0
            while at != root:
                at, length = parents[at], length + 1
            bounds[order[leaf] + 1] = length
        for v in range(V):
            bounds[v + 1] += bounds[v]
        return
    for leaf in range(V):
        at, place = leaf, bounds[order[leaf] + 1]
        while at != root:
            place -= 1
            nodes[place] = parents[at] - V
            signs[place] = -ONE if right[at] else ONE
            at = parents[at]


@borrower
def _follow(h, d_h, signs, on_path, y, step, scores):
    """Update the nodes of a path, rows on_path of y, by h, and add their gradients to d_h; return the loss.

    h, d_h: addresses of (ld,). scores: scratch, in whole vectors. h is the same for all nodes, so that the exponentials
    of a path take a vector, not a call each.
    """
    ld, nodes, n = y.shape[1], y.ctypes.data, len(signs)
    row_bytes, padded = FLOAT_BYTES * ld, -(-n // WIDTH) * WIDTH
    for k in range(n):
        dots(h, nodes + row_bytes * np.int64(on_path[k]), ld, 1, ld, scores[k:])
        scores[k] *= signs[k]
    for k in range(n, padded):
        scores[k] = NO_PAIR
    loss = positive(scores, padded, -step, True)
    for k in range(n):
        node, g = nodes + row_bytes * np.int64(on_path[k]), signs[k] * scores[k]
        for d in range(0, row_bytes, FLOAT_BYTES * WIDTH):
            before = load(node + d)
            store(load(d_h + d) + before * g, d_h + d)
            store(before + load(h + d) * g, node + d)
    return np.float64(loss)


@borrower
def _step(i, mode, mean, w, p, path, step):
    """Process position i: in skip-gram each word of its window predicts it, in CBOW their mean or sum does.

    Returns (loss, pairs).
    """
    y, slots, scores = w.y[p], w.slots[p], w.scores[p]
    low, high = w.low[p, i], w.high[p, i]
    word = w.words[p, i]
    begin, end = path.bounds[word], path.bounds[word + 1]
    signs, on_path = path.signs[begin:end], w.path_slots[p]
    for k in range(begin, end):
        on_path[k - begin] = w.nodes.slot_of[p, path.nodes[k]]
    ld, x = y.shape[1], w.x[p].ctypes.data
    h, d_h = w.h[p, 0].ctypes.data, w.h[p, 1].ctypes.data
    around = high - low - 1
    if around == 0:
        return 0.0, 0
    loss = 0.0
    if mode == SKIPGRAM:
        for j in range(low, high):
            if j == i:
                continue
            row = x + FLOAT_BYTES * ld * np.int64(slots[j])
            zero_row(d_h, ld)
            loss += _follow(row, d_h, signs, on_path, y, step, scores)
            add_row(d_h, row, ld)
        return loss, around
    share = ONE / f32(around)
    forth, back = (share, ONE) if mean else (ONE, share)
    zero_row(h, ld)
    zero_row(d_h, ld)
    for j in range(low, high):
        if j != i:
            _add_scaled(x + FLOAT_BYTES * ld * np.int64(slots[j]), forth, h, ld)
    loss += _follow(h, d_h, signs, on_path, y, step, scores)
    for j in range(low, high):  # every word of a mean gets the whole gradient, as in word2vec
        if j != i:
            _add_scaled(d_h, back, x + FLOAT_BYTES * ld * np.int64(slots[j]), ld)
    return loss, 1


@borrower
def _add_scaled(source, factor, target, width):
    """target (width,) += factor * source, in whole vectors."""
    for d in range(0, FLOAT_BYTES * width, FLOAT_BYTES * WIDTH):
        store(load(target + d) + load(source + d) * factor, target + d)


@borrower
def _number_nodes(w, p, n, path):
    """Number every node on the paths of the shard's words, and count its visits."""
    slots = w.path_slots[p]  # unused afterwards
    for i in range(n):
        begin, end = path.bounds[w.words[p, i]], path.bounds[w.words[p, i] + 1]
        number_rows(path.nodes[begin:end], end - begin, w.nodes, p, slots)


@borrower
def _train_shard(p, stream, keep, path, steps, rate, tables, w, r, found):
    """Process shard p's part of round r: compute its changes, and add up its loss and pairs."""
    first, last = shard_words_of(len(stream.tokens), p, len(w.words), steps.shard_words, r)
    n = draw_positions(
        stream.tokens, stream.bounds, first, last, keep, stream.key, (steps.window, steps.shrink),
        w.words[p], w.low[p], w.high[p],
    )  # fmt: skip
    forget_rows(w.touched, p)
    number_rows(w.words[p], n, w.touched, p, w.slots[p])
    forget_rows(w.nodes, p)
    _number_nodes(w, p, n, path)
    sort_by_part(w.touched, p)
    sort_by_part(w.nodes, p)
    copy_in(tables.inputs, w.touched.rows[p], w.touched.counts[p], w.x[p])
    copy_in(tables.outputs, w.nodes.rows[p], w.nodes.counts[p], w.y[p])
    for i in range(n):
        loss, pairs = _step(i, steps.mode, steps.mean, w, p, path, f32(rate))
        found[p, 0] += loss
        found[p, 1] += pairs


@helper
def _merge_part(p, tables, w, rate, pull):
    """Add the changes of all shards to the rows of one part of both tables."""
    merge_rows(tables.inputs, w.touched, w.touched.counts, w.x, tables.locks, rate * pull, p)
    merge_rows(tables.outputs, w.nodes, w.nodes.counts, w.y, NO_LOCKS, rate * pull, p)


def _train_hierarchy(team, stream, keep, path, steps, rates, rounds, tables, w, found):
    """Train rounds [first, last) of an epoch."""
    P = len(w.words)
    for r in range(rounds[0], rounds[1]):
        rate = rate_of(rates, r * steps.shard_words * P)
        in_parallel(team, P, _train_shard, (stream, keep, path, steps, rate, tables, w, r, found))
        in_parallel(team, P, _merge_part, (tables, w, rate, steps.pull))


train_hierarchy = Kernel(_train_hierarchy)
