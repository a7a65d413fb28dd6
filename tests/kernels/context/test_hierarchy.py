"""Hierarchical softmax on a CPU: the shortest paths, word2vec's steps, the same bits on any number of threads."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
import torch

from mt2st_fast.kernels.context.batch import draw_batch, stream_key, word_sampler
from mt2st_fast.kernels.context.both import BothTraining
from mt2st_fast.kernels.context.hierarchy import HierarchyTraining, tree_paths
from mt2st_fast.kernels.context.training import ContextOptions, ContextTraining
from mt2st_fast.kernels.context.workspace import Rates, Stream


def text(V: int = 12, n: int = 200):
    tokens = np.random.default_rng(0).integers(0, V, n).astype(np.int32)
    return tokens, np.array([0, n // 2, n], np.int64), np.maximum(1, np.bincount(tokens, minlength=V))


def test_paths_are_those_of_a_huffman_tree():
    counts = np.array([50, 3, 7, 7, 1, 20, 2])
    paths = tree_paths(counts)
    lengths = np.diff(paths.bounds)
    heap, total = counts.tolist(), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    assert (lengths * counts).sum() == total
    turns = {tuple(paths.signs[a:b]) for a, b in zip(paths.bounds, paths.bounds[1:], strict=False)}
    assert len(turns) == len(counts)
    assert not any(a != b and b[: len(a)] == a for a in turns for b in turns)
    assert {paths.nodes[a] for a in paths.bounds[:-1]} == {len(counts) - 2}


@pytest.mark.parametrize(("mode", "mean"), [("skipgram", True), ("cbow", True), ("cbow", False)])
def test_a_round_of_one_shard_is_word2vecs(mode, mean):
    tokens, bounds, counts = text()
    V, D, rate = 12, 5, 0.1
    generator = np.random.default_rng(1)
    x, y = (generator.standard_normal((V, D)).astype(np.float32) for _ in range(2))
    sampler, paths, key = word_sampler(counts, 0), tree_paths(counts), stream_key(3, 0)
    batch = draw_batch(tokens, bounds, 0, len(tokens), sampler, key, mode=mode, window=2)
    want_x, want_y, want_loss, want_pairs = x.astype(float), y.astype(float), 0.0, 0
    for i, word in enumerate(batch.words):
        window = [batch.words[j] for j in range(batch.low[i], batch.high[i]) if j != i]
        for inputs in [[w] for w in window] if mode == "skipgram" else [window] if window else []:
            h, d_h = want_x[inputs].sum(0) / (len(inputs) if mean else 1), np.zeros(D)
            for k in range(paths.bounds[word], paths.bounds[word + 1]):
                node, sign = paths.nodes[k], paths.signs[k]
                s = sign * (h @ want_y[node])
                want_loss += np.logaddexp(0, -s)
                g = rate * sign / (1 + np.exp(s))
                d_h += g * want_y[node]
                want_y[node] += g * h
            np.add.at(want_x, inputs, d_h / (1 if mean else len(inputs)))
            want_pairs += 1
    options = ContextOptions(mode=mode, window=2, shards=1, shard_words=len(tokens), pull=0.0, mean=mean)
    training = HierarchyTraining(x, y, sampler, paths, options)
    loss, pairs = training.run(Stream(tokens, bounds, key), (0, 1), Rates(rate, 0.0, 0.0))
    assert pairs == want_pairs
    assert loss == pytest.approx(want_loss, rel=1e-4)
    np.testing.assert_allclose(x, want_x, atol=1e-4)
    np.testing.assert_allclose(y, want_y, atol=1e-4)


def test_both_ways_are_turns_of_a_round():
    tokens, bounds, counts = text(40, 3000)
    options = ContextOptions(mode="skipgram", window=3, shards=2, shard_words=256)
    stream, rates = Stream(tokens, bounds, stream_key(1, 0)), Rates(0.05, 1e-6, 1e-4)

    def trainings():
        x = np.random.default_rng(2).random((40, 9), np.float32)
        nodes, y = np.zeros((2, 40, 9), np.float32)
        sampler = word_sampler(counts)
        tree = HierarchyTraining(x, nodes, sampler, tree_paths(counts), options)
        return tree, ContextTraining(x, y, sampler, options)

    tree, negatives = trainings()
    loss = 0.0
    for r in range(tree.rounds(len(tokens))):
        loss += tree.run(stream, (r, r + 1), rates)[0]
        loss += negatives.run(stream, (r, r + 1), rates)[0] / negatives.measured
    both = BothTraining(*trainings())
    found, pairs = both.run(stream, (0, both.rounds(len(tokens))), rates)
    assert found == pytest.approx(loss)
    assert np.array_equal(both.tree.inputs, tree.inputs)
    assert pairs == tree.run(stream, (0, tree.rounds(len(tokens))), rates)[1]
    assert both.negatives.outputs.any()
    assert both.tree.outputs.any()
    other = HierarchyTraining(tree.inputs, tree.outputs, tree.sampler, tree.paths, ContextOptions(shards=3))
    with pytest.raises(ValueError, match="the same input vectors, shards"):
        BothTraining(other, negatives)


def test_two_threads_give_the_bits_of_one():
    tokens, bounds, counts = text(40, 3000)
    made, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        x, y = np.random.default_rng(2).random((40, 9), np.float32), np.zeros((40, 9), np.float32)
        options = ContextOptions(mode="skipgram", window=3, shards=2, shard_words=256, pull=1.0)
        training = HierarchyTraining(x, y, word_sampler(counts), tree_paths(counts), options)
        training.run(
            Stream(tokens, bounds, stream_key(1, 0)), (0, training.rounds(len(tokens))), Rates(0.05, 0.0, 0.0)
        )
        made.append((x, y))
    torch.set_num_threads(before)
    assert np.abs(made[0][1]).max() > 0
    assert all(np.array_equal(one, two) for one, two in zip(*made, strict=True))
