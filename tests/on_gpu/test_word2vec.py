"""Word2Vec on a real GPU: what walkers learn against what the CPU learns, and that many at once stay stable."""

from __future__ import annotations

import numpy as np
import pytest

from mt2st_fast import Word2Vec
from mt2st_fast.kernels.context.batch import stream_key, word_sampler
from mt2st_fast.kernels.context.walkers import WalkOptions, WalkTraining, choose_walkers
from mt2st_fast.kernels.context.workspace import Rates, Stream
from tests.on_gpu.helpers import DEVICE

MODES = ("cbow", "skipgram")


def topics(n_sentences: int, topics: int = 20, words: int = 40) -> list[list[str]]:
    """Sentences of ten words of one topic each, the first words of a topic more often."""
    generator = np.random.default_rng(0)
    places = (words * generator.random((n_sentences, 10)) ** 2).astype(int)
    names = np.array([[f"t{t}w{w}" for w in range(words)] for t in range(topics)])
    return [list(names[i % topics][row]) for i, row in enumerate(places)]


def gap(model: Word2Vec) -> float:
    """Mean cosine of words of one topic less that of words of two."""
    unit = model.vectors / np.linalg.norm(model.vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    topic = np.array([word.split("w")[0] for word in model.words])
    same = topic[:, None] == topic[None, :]
    return float(cosine[same].mean() - cosine[~same].mean())


@pytest.mark.parametrize(("D", "window"), [(100, 5), (300, 10)])
@pytest.mark.parametrize("sg", [0, 1])
def test_a_gpu_learns_what_a_cpu_learns(sg, D, window):
    text = topics(60_000)
    models = {
        device: Word2Vec(text, sg=sg, vector_size=D, window=window, epochs=2, device=device)
        for device in ("cpu", "cuda")
    }
    cpu, cuda = models["cpu"], models["cuda"]
    assert np.isfinite(cuda.vectors).all()
    assert cuda.losses[-1] == pytest.approx(cpu.losses[-1], rel=0.1)
    assert gap(cuda) > 0.8 * gap(cpu)
    assert np.array_equal(cuda.wv.vectors, cuda.tables.input_rows)


class ZipfText:
    """Words by Zipf's law in sentences of 1 to 30."""

    def __init__(self, V, n_words):
        generator = np.random.default_rng(1)
        shares = 1 / np.arange(1, V + 1)
        self.tokens = generator.choice(V, n_words, p=shares / shares.sum()).astype(np.int32)
        ends = np.cumsum(generator.integers(1, 31, n_words)).clip(max=n_words)
        self.bounds = np.unique(np.concatenate([[0], ends])).astype(np.int64)
        self.counts = np.maximum(1, np.bincount(self.tokens, minlength=V))
        self.sampler = word_sampler(self.counts, 0)

    def training(self, mode, walkers=None, D=100, window=5):
        generator = np.random.default_rng(2)
        V = len(self.counts)
        tables = ((generator.random((V, D), np.float32) - 0.5) / D, np.zeros((V, D), np.float32))
        options = WalkOptions(mode, window)
        walkers = walkers or choose_walkers(len(self.tokens), self.counts, self.sampler, options)
        return WalkTraining(*tables, self.sampler, WalkOptions(mode, window, walkers=walkers), DEVICE)

    def epoch(self, training, seed=0):
        rounds = 0, training.rounds(len(self.tokens))
        return training.run(
            Stream(self.tokens, self.bounds, stream_key(seed, 0)), rounds, Rates(0.025, 0.0, 0.0)
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("V", [20, 30_000])
def test_as_many_walkers_as_are_chosen_stay_stable_without_subsampling(V, mode):
    stream = ZipfText(V, 1_000_000)
    training = stream.training(mode)
    losses = [loss / pairs for loss, pairs in (stream.epoch(training, seed) for seed in range(3))]
    assert training.finite()
    assert losses[2] <= losses[0] * 1.01


@pytest.mark.parametrize("mode", MODES)
def test_the_draws_and_the_pairs_are_the_same_with_any_number_of_walkers(mode):
    stream = ZipfText(3000, 100_000)
    few, many = stream.training(mode, 2), stream.training(mode, 24)
    (_, pairs), (_, same) = stream.epoch(few), stream.epoch(many)
    assert pairs == same > 50_000


@pytest.mark.parametrize("mode", MODES)
def test_two_runs_of_one_walker_agree_but_for_roundings(mode):
    stream = ZipfText(500, 20_000)
    found = []
    for _ in range(2):
        training = stream.training(mode, 1)
        loss, pairs = stream.epoch(training)
        training.store()
        found.append((loss / pairs, training.inputs))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)
    assert np.linalg.norm(found[0][1] - found[1][1]) <= 0.02 * np.linalg.norm(found[0][1])
