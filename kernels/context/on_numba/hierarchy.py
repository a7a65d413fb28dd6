"""Hierarchical softmax on a CPU: words predict the path to their neighbour in a Huffman tree; see ../hierarchy.py.

As in rounds.py: a shard updates copies of the rows that it touches, and the shards' changes are added in their order,
so that the same call gives the same bits on any number of threads.
"""

from __future__ import annotations

import math

import numpy as np

from ...machine.jit import borrower, exact_entry, helper
from ...machine.team import Kernel, in_parallel
from .draw import draw_positions
from .rounds import NO_LOCKS, rate_of, shard_words_of
from .shard_rows import copy_in, forget_rows, merge_rows, number_rows, sort_by_part
from .tile import SKIPGRAM

f32 = np.float32
ZERO, ONE = f32(0), f32(1)


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
def _follow(h, d_h, signs, on_path, y, step):
    """Update the nodes of a path, rows on_path of y, by h, and add their gradients to d_h; return the loss."""
    D = len(h)
    loss = 0.0
    for k in range(len(signs)):
        node = y[on_path[k]]
        dot = ZERO
        for d in range(D):
            dot += h[d] * node[d]
        s = signs[k] * dot
        u = f32(math.exp(-abs(s)))
        loss += math.log1p(u) + max(ZERO, -s)
        g = step * signs[k] * ((u if s > ZERO else ONE) / (ONE + u))
        for d in range(D):
            before = node[d]
            d_h[d] += g * before
            node[d] = before + g * h[d]
    return loss


@borrower
def _step(i, mode, mean, w, p, path, step):
    """Process position i: in skip-gram each word of its window predicts it, in CBOW their mean or sum does.

    Returns (loss, pairs).
    """
    x, y, slots = w.x[p], w.y[p], w.slots[p]
    low, high = w.low[p, i], w.high[p, i]
    h, d_h = w.h[p, 0], w.h[p, 1]
    word = w.words[p, i]
    begin, end = path.bounds[word], path.bounds[word + 1]
    signs, on_path = path.signs[begin:end], w.path_slots[p]
    for k in range(begin, end):
        on_path[k - begin] = w.nodes.slot_of[p, path.nodes[k]]
    D = len(h)
    around = high - low - 1
    if around == 0:
        return 0.0, 0
    loss = 0.0
    if mode == SKIPGRAM:
        for j in range(low, high):
            if j == i:
                continue
            row = x[slots[j]]
            for d in range(D):
                d_h[d] = ZERO
            loss += _follow(row, d_h, signs, on_path, y, step)
            for d in range(D):
                row[d] += d_h[d]
        return loss, around
    share = ONE / f32(around)
    forth, back = (share, ONE) if mean else (ONE, share)
    for d in range(D):
        h[d] = ZERO
        d_h[d] = ZERO
    for j in range(low, high):
        if j != i:
            row = x[slots[j]]
            for d in range(D):
                h[d] += forth * row[d]
    loss += _follow(h, d_h, signs, on_path, y, step)
    for j in range(low, high):  # every word of a mean gets the whole gradient, as in word2vec
        if j != i:
            row = x[slots[j]]
            for d in range(D):
                row[d] += back * d_h[d]
    return loss, 1


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
