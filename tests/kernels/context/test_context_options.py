"""Training of context prediction as gensim's options ask for it: sums of windows, windows of one width, locked rows."""

from __future__ import annotations

import numpy as np
import pytest

from mt2st_fast.kernels.context.batch import draw_batch, kept_shares, stream_key, word_sampler
from mt2st_fast.kernels.context.hierarchy import HierarchyTraining, tree_paths
from mt2st_fast.kernels.context.on_numba.draw import draw_positions
from mt2st_fast.kernels.context.training import NO_LOCKS, ContextOptions, ContextTraining
from mt2st_fast.kernels.context.workspace import Rates, Stream
from tests.kernels.context.test_context import MODES, make_stream, make_tables


def test_a_tile_of_sums_shares_out_what_it_teaches():
    """gensim's cbow_mean=0: h is the sum of a window, whose words each move by an equal part of h's gradient."""
    tokens, bounds, counts = np.array([0, 3, 5, 3, 7, 2, 9, 1], np.int32), np.array([0, 6, 8]), np.ones(12)
    inputs, outputs = (table.numpy().copy() for table in make_tables(12, 10))
    sampler, key, rate = word_sampler(counts, 0), stream_key(4, 0), 0.3
    batch = draw_batch(tokens, bounds, 0, 8, sampler, key, mode="cbow", window=3, negatives=4, shared=8)
    x, y = inputs.astype(float), outputs.astype(float)
    d_x, d_y = np.zeros_like(x), np.zeros_like(y)
    for i, word in enumerate(tokens):
        window = [tokens[j] for j in range(batch.low[i], batch.high[i]) if j != i]
        h, d_h = x[window].sum(0), np.zeros(10)
        drawn = [(m, 4 / 8, -1) for m in batch.drawn[0] if m != word]
        for other, share, sign in [(word, 1, 1), *drawn]:
            g = share * sign / (1 + np.exp(sign * (h @ y[other])))
            d_h += g * y[other]
            d_y[other] += g * h
        np.add.at(d_x, window, d_h / len(window))
    options = ContextOptions(mode="cbow", window=3, negatives=4, shared=8, shards=1, mean=False)
    ContextTraining(inputs, outputs, sampler, options).run(
        Stream(tokens, bounds, key), (0, 1), Rates(rate, 0.0, 0.0)
    )
    np.testing.assert_allclose(inputs, x + rate * d_x, atol=2e-6)
    np.testing.assert_allclose(outputs, y + rate * d_y, atol=2e-6)


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_locks_are_what_changes_of_input_rows_are_multiplied_with(mode, tree):
    tokens, bounds, counts = make_stream(30, [900])
    locks = np.random.default_rng(0).choice([0, 0.5, 1], 30).astype(np.float32)
    before = [table.numpy() for table in make_tables(30, 9)]
    made = []
    for some in (NO_LOCKS, locks):
        tables = [table.copy() for table in before]
        options = ContextOptions(mode=mode, shards=1, shard_words=900)
        if tree:
            training = HierarchyTraining(*tables, word_sampler(counts), tree_paths(counts), options, some)
        else:
            training = ContextTraining(*tables, word_sampler(counts), options, locks=some)
        training.run(Stream(tokens, bounds, stream_key(1, 0)), (0, 1), Rates(0.05, 0.0, 0.0))
        made.append(tables)
    (free, free_outputs), (locked, outputs) = made
    assert np.array_equal(locked[locks == 0], before[0][locks == 0])
    np.testing.assert_allclose(locked, before[0] + locks[:, None] * (free - before[0]), atol=1e-6)
    assert np.array_equal(outputs, free_outputs)


def test_windows_of_one_width_are_all_of_it():
    words, low, high = np.empty((3, 9), np.int32)
    keep = np.full(3, 0xFFFFFFFF, np.uint32)
    bounds = np.array([0, 2, 9])
    n = draw_positions(
        np.zeros(9, np.int32), bounds, 0, 9, keep, stream_key(1, 0), (3, False), words, low, high
    )
    assert n == 9
    assert low.tolist() == [0, 0, 2, 2, 2, 2, 3, 4, 5]
    assert high.tolist() == [2, 2, 6, 7, 8, 9, 9, 9, 9]


def test_a_sample_of_one_or_more_is_a_number_of_times():
    Word2Vec = pytest.importorskip("gensim.models").Word2Vec

    counts = np.array([1000, 40, 3])
    theirs = Word2Vec(vector_size=2, min_count=1, sample=20)
    theirs.build_vocab_from_freq({"a": 1000, "b": 40, "c": 3})
    shares = [theirs.wv.get_vecattr(word, "sample_int") / (2**32 - 1) for word in "abc"]
    # gensim rounds the number.
    assert np.minimum(kept_shares(counts, 20), 1) == pytest.approx(shares, rel=0.02)
    assert kept_shares(counts, 0).tolist() == [1, 1, 1]
