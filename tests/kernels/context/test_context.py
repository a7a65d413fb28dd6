"""Context prediction on a CPU: as accurate as torch, drawn as word2vec draws, the same bits every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mt2st_fast.kernels.context import batch as context_batch
from mt2st_fast.kernels.context.batch import draw_batch, stream_key, word_sampler
from mt2st_fast.kernels.context.on_numba import training as kernels
from mt2st_fast.kernels.context.on_numba.context import touched_rows
from mt2st_fast.kernels.context.reference import reference_loss
from mt2st_fast.kernels.context.training import ContextOptions, ContextTraining
from mt2st_fast.kernels.context.workspace import Rates, Stream, WordRows, make_workspace
from mt2st_fast.kernels.machine.simd import WIDTH

MARGIN = 2e-6  # a few float32 roundings: sums in another order
MODES = ("skipgram", "cbow")


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def make_stream(V: int, lengths: list[int], seed: int = 0):
    """Tokens with frequent and rare words and some that are not in the vocabulary, in sentences of lengths."""
    generator = np.random.default_rng(seed)
    shares = 1 / np.arange(1, V + 1)
    tokens = generator.choice(V, sum(lengths), p=shares / shares.sum()).astype(np.int32)
    tokens[generator.random(len(tokens)) < 0.05] = -1
    bounds = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    counts = np.maximum(1, np.bincount(tokens[tokens >= 0], minlength=V))
    return tokens, bounds, counts


def make_tables(V: int, D: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(V, D, generator=generator) / 3, torch.randn(V, D, generator=generator) / 3


def make_batch(V: int, lengths: list[int], mode: str, **options):
    tokens, bounds, counts = make_stream(V, lengths)
    sampler = word_sampler(counts, options.pop("sample", 0))
    return draw_batch(tokens, bounds, 0, len(tokens), sampler, stream_key(3, 0), mode=mode, **options)


def by_torch(inputs, outputs, batch, dtype):
    tables = [t.to(dtype).clone().requires_grad_() for t in (inputs, outputs)]
    loss = reference_loss(*tables, batch)
    gradients = torch.autograd.grad(loss, tables) if batch.pairs else [torch.zeros_like(t) for t in tables]
    return {"loss": loss.detach(), "d_inputs": gradients[0], "d_outputs": gradients[1]}


def ours(inputs, outputs, batch, **options):
    made = touched_rows(inputs, outputs, batch, **options)
    d_inputs, d_outputs = torch.zeros_like(inputs), torch.zeros_like(outputs)
    d_inputs[made.input_rows] = made.d_inputs
    d_outputs[made.output_rows] = made.d_outputs
    return {"loss": torch.tensor(made.loss), "d_inputs": d_inputs, "d_outputs": d_outputs}


def floats_of(workspace):
    """Its arrays of float32, all of which a kernel must write before it reads them."""
    return [a for a in workspace if isinstance(a, np.ndarray) and a.dtype == np.float32]


def poisoned(V: int, D: int, batch, splits: int):
    """A workspace in which every number that may be set is NaN or nonsense."""
    w = make_workspace(V, D, splits, max(1, len(batch.words)), batch.window, batch.drawn.shape[1])
    for name, array in (w._asdict() | w.touched._asdict()).items():
        if name not in ("touched", "slot_of", "counts"):
            array.fill(np.nan if array.dtype == np.float32 else 7)
    return w


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(
    ("V", "D", "lengths", "options"),
    [
        (60, 37, [1, 1, 9, 2, 70, 16, 3], {}),
        (3, 100, [40, 7], {}),
        (50, 16, [64], {"window": 1, "shared": 8}),
        (500, 300, [200, 33], {"window": 7, "shared": 24}),
        (20, 5, [1, 1, 1], {}),
        (200, 129, [150], {"sample": 1e-2, "window": 10}),
    ],
)
def test_as_accurate_as_torch(mode, splits, V, D, lengths, options):
    batch = make_batch(V, lengths, mode, **options)
    inputs, outputs = make_tables(V, D)
    truth = by_torch(inputs, outputs, batch, torch.float64)
    torch_32 = by_torch(inputs, outputs, batch, torch.float32)
    w = poisoned(V, D, batch, splits)
    result = ours(inputs, outputs, batch, workspace=w, splits=splits)
    for name, value in result.items():
        scale = truth[name].norm().clamp_min(1e-30)
        error = (value.double() - truth[name]).norm() / scale
        torch_error = (torch_32[name].double() - truth[name]).norm() / scale
        assert error <= 1.5 * torch_error + MARGIN, name


@pytest.mark.parametrize("mode", MODES)
def test_large_scores_keep_their_loss(mode):
    batch = make_batch(40, [60], mode)
    inputs, outputs = (30 * table for table in make_tables(40, 20))
    truth = by_torch(inputs, outputs, batch, torch.float64)
    result = ours(inputs, outputs, batch)
    assert float(result["loss"]) == pytest.approx(float(truth["loss"]), rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("splits", [1, 2])
def test_gradients_are_the_same_bits_every_time(mode, splits):
    batch = make_batch(300, [1500], mode)
    inputs, outputs = make_tables(300, 37)
    first = ours(inputs, outputs, batch, splits=splits)
    for _ in range(19):
        again = ours(inputs, outputs, batch, splits=splits)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_what_only_numba_computes_is_refused_to_others_by_name(backend, monkeypatch):
    tables = make_tables(10, 8)
    monkeypatch.setenv("MT2ST_BACKEND", backend)
    with pytest.raises(RuntimeError, match=f"MT2ST_BACKEND={backend}"):
        ContextTraining(*(table.numpy() for table in tables), word_sampler(np.ones(10)), ContextOptions())


@pytest.mark.parametrize(
    ("options", "message"), [({"mode": "glove"}, "skipgram or cbow"), ({"shared": 5}, "multiples of 8")]
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_batch(10, [9], options.pop("mode", "cbow"), **options)


# --- draws -----------------------------------------------------------------------------------------------


def test_windows_end_at_sentences_and_are_uniform():
    batch = make_batch(50, [1, 2, 40_000, 1], "skipgram", window=4)
    inside = slice(100, -100)
    reach = np.arange(len(batch.words))[inside] - batch.low[inside]
    assert np.bincount(reach, minlength=5)[1:] / len(reach) == pytest.approx(np.full(4, 0.25), abs=0.02)
    tokens, bounds, _ = make_stream(50, [1, 2, 40_000, 1])
    sentence = np.repeat(np.arange(4), np.diff(bounds))[tokens >= 0]
    assert (sentence[batch.low] == sentence).all()
    assert (sentence[batch.high - 1] == sentence).all()


def test_words_are_kept_as_often_as_word2vec_keeps_them():
    tokens, bounds, counts = make_stream(30, [200_000])
    batch = draw_batch(tokens, bounds, 0, len(tokens), word_sampler(counts, 1e-2), stream_key(1, 0))
    kept = np.bincount(batch.words, minlength=30) / counts
    threshold = 1e-2 * counts.sum()
    expected = np.minimum(1, (np.sqrt(counts / threshold) + 1) * threshold / counts)
    assert kept == pytest.approx(expected, abs=0.03)


def test_negatives_follow_their_shares():
    batch = make_batch(20, [60_000], "cbow")
    _, _, counts = make_stream(20, [60_000])
    shares = counts**0.75 / (counts**0.75).sum()
    drawn = np.bincount(batch.drawn.ravel(), minlength=20) / batch.drawn.size
    assert drawn == pytest.approx(shares, abs=0.01)


# --- training --------------------------------------------------------------------------------------------


def make_subwords(V: int, buckets: int, most: int, seed: int = 0) -> WordRows:
    """Word v has row v and up to `most` of the others, some of them twice."""
    generator = np.random.default_rng(seed)
    of_words = [[v, *(V + generator.integers(0, buckets, v % (most + 1)))] for v in range(V)]
    bounds = np.concatenate(([0], np.cumsum([len(rows) for rows in of_words])))
    return WordRows(np.concatenate(of_words).astype(np.int32), bounds.astype(np.int64))


def training_of(V: int, D: int, counts, subwords: WordRows | None, sample: float = 1e-3, **options):
    """Its tables are those of `make_tables`; what it works in is NaN."""
    inputs, outputs = make_tables(V if subwords is None else int(subwords.ids.max()) + 1, D)
    tables = inputs.numpy().copy(), outputs[:V].numpy().copy()
    training = ContextTraining(*tables, word_sampler(counts, sample), ContextOptions(**options), subwords)
    own = [] if subwords is None else [training._subword_workspace]
    for workspace in (training._workspace, *own):
        for array in floats_of(workspace):
            array.fill(np.nan)
    return training


def train(mode: str, shards: int = 2, threads: int = 2, rounds=((0, 6),), subwords=None, **options):
    """Both tables after some rounds over a small stream."""
    torch.set_num_threads(threads)
    tokens, bounds, counts = make_stream(80, [700, 1, 3, 1200, 500])
    options = {"mode": mode, "shards": shards, "shard_words": 200, "shared": 16} | options
    training = training_of(80, 37, counts, subwords, **options)
    losses = [
        training.run(Stream(tokens, bounds, stream_key(5, 0)), part, Rates(0.05, 1e-6, 1e-4))
        for part in rounds
    ]
    assert all(np.isfinite(loss) for loss, _ in losses)
    return training.inputs, training.outputs


@pytest.mark.parametrize(
    ("n_words", "shards", "shard_words"), [(1, 2, 10), (100, 2, 25), (101, 3, 7), (999, 4, 512)]
)
def test_an_epoch_reads_every_word_once(n_words, shards, shard_words):
    tables = [np.zeros((3, 8), np.float32) for _ in range(2)]
    options = ContextOptions(shards=shards, shard_words=shard_words)
    training = ContextTraining(*tables, word_sampler(np.ones(3)), options)
    read = []
    for r in range(training.rounds(n_words)):
        for shard in range(shards):
            read += range(*kernels.shard_words_of.py_func(n_words, shard, shards, shard_words, r))
    assert sorted(read) == list(range(n_words))


def test_the_rate_falls_to_the_least():
    rates = np.array([0.5, 0.01, 0.1])
    assert [kernels.rate_of.py_func(rates, n) for n in (0, 10, 40, 1000)] == pytest.approx(
        [0.5, 0.4, 0.1, 0.1]
    )


@pytest.mark.parametrize("subwords", [None, make_subwords(80, 30, 7)], ids=["words", "subwords"])
@pytest.mark.parametrize("mode", MODES)
def test_training_is_the_same_bits_on_any_number_of_threads_and_resumes(mode, subwords):
    first = train(mode, subwords=subwords)
    resumed = train(mode, rounds=((0, 1), (1, 4), (4, 6)), subwords=subwords)
    on_one_thread = train(mode, threads=1, subwords=subwords)
    for again in (*(train(mode, subwords=subwords) for _ in range(14)), on_one_thread, resumed):
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shards", [1, 3])
def test_words_of_one_row_each_train_as_words_do(mode, shards):
    own = WordRows(np.arange(80, dtype=np.int32), np.arange(81))
    with_subwords, plain = (train(mode, shards, subwords=rows, pull=0.0) for rows in (own, None))
    for ours_td, plain_td in zip(with_subwords, plain, strict=True):
        assert np.abs(ours_td - plain_td).max() < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_a_tile_of_training_is_one_step_down_the_gradient(mode):
    tokens, bounds, counts = make_stream(80, [context_batch.TILE])
    sampler, key = word_sampler(counts, 0), stream_key(2, 0)
    inputs, outputs = make_tables(80, 37)
    batch = draw_batch(tokens, bounds, 0, len(tokens), sampler, key, mode=mode)
    truth = by_torch(inputs, outputs, batch, torch.float64)
    moved = [table.numpy().copy() for table in (inputs, outputs)]
    options = ContextOptions(mode=mode, shards=1, shared=16, true_mean=True)
    ContextTraining(*moved, sampler, options).run(Stream(tokens, bounds, key), (0, 1), Rates(0.5, 0.0, 0.0))
    for before, after, name in zip((inputs, outputs), moved, ("d_inputs", "d_outputs"), strict=True):
        expected = before.double() - 0.5 * batch.pairs * truth[name]
        assert torch.from_numpy(after).double().sub(expected).norm() <= 2e-6 * expected.norm()


@pytest.mark.parametrize("D", [5, 32, 37])
@pytest.mark.parametrize("locked", [False, True])
def test_a_round_adds_the_changes_of_all_shards_to_each_row(D, locked):
    """What a shard changes depends on its own words only: it changes the same when the others have none."""
    P, n = 3, 60
    tokens, bounds, counts = make_stream(40, [P * n])
    locks = np.linspace(0, 1, 40, dtype=np.float32) if locked else np.empty(0, np.float32)

    def after_a_round(own: np.ndarray, pull: float) -> list[np.ndarray]:
        tables = [table.numpy().copy() for table in make_tables(40, D)]
        options = ContextOptions(mode="skipgram", shards=P, shard_words=n, shared=8, pull=pull)
        training = ContextTraining(*tables, word_sampler(counts, 0), options, locks=locks)
        training.run(Stream(own, bounds, stream_key(7, 0)), (0, 1), Rates(0.02, 0.0, 0.0))
        return tables

    before = [table.numpy() for table in make_tables(40, D)]
    alone = [
        after_a_round(np.where(np.arange(P * n) // n == shard, tokens, -1).astype(np.int32), 0.0)
        for shard in range(P)
    ]
    together, pulled = after_a_round(tokens, 0.0), after_a_round(tokens, 1.0)
    for table in range(2):
        changes = sum(of_shard[table] - before[table] for of_shard in alone)
        assert np.abs(together[table] - before[table] - changes).max() < 1e-6
        assert ((changes != 0).any(1)).sum() > 30
        moved = (np.abs(changes) > 1e-3).any(1)
        shrink = np.abs(pulled[table] - before[table])[moved].sum(1) / np.abs(changes)[moved].sum(1)
        assert (shrink < 1).all()
        assert (shrink > 0.3).all()


def test_vectors_of_a_workspace_do_not_straddle_cache_lines():
    for array in floats_of(make_workspace(60, 37, 2, 50, 5, 16)):
        assert array.ctypes.data % 64 == 0
        assert array.strides[-2] % min(64, 4 * WIDTH) == 0


@pytest.mark.parametrize("subwords", [None, make_subwords(20, 4, 3)], ids=["words", "subwords"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shards", [1, 2, 8])
def test_many_shards_stay_stable(mode, shards, subwords):
    """Eight shards that all move the same few rows would overshoot eight times."""
    tokens, bounds, counts = make_stream(20, [40_000])
    training = training_of(20, 16, counts, subwords, 0, mode=mode, shards=shards, shard_words=1000)
    rounds = (0, training.rounds(len(tokens)))
    before, after = (
        loss / pairs
        for loss, pairs in (
            training.run(Stream(tokens, bounds, stream_key(1, i)), rounds, Rates(0.025, 0.0, 0.0))
            for i in range(2)
        )
    )
    assert after < 1.01 * before


def means_of(table: torch.Tensor, subwords: WordRows) -> torch.Tensor:
    bags = (torch.from_numpy(subwords.ids).long(), torch.from_numpy(subwords.bounds[:-1]))
    return torch.nn.functional.embedding_bag(bags[0], table, bags[1], mode="mean")


@pytest.mark.parametrize("mode", MODES)
def test_a_tile_of_training_moves_every_row_of_a_word_by_the_gradient_of_its_vector(mode):
    tokens, bounds, counts = make_stream(80, [context_batch.TILE])
    sampler, key, subwords = word_sampler(counts, 0), stream_key(2, 0), make_subwords(80, 30, 7)
    inputs, outputs = make_tables(110, 37)
    outputs = outputs[:80].clone()
    batch = draw_batch(tokens, bounds, 0, len(tokens), sampler, key, mode=mode)
    truth = by_torch(means_of(inputs.double(), subwords), outputs, batch, torch.float64)
    step = torch.zeros(110, 37, dtype=torch.float64)
    owners = np.repeat(np.arange(80), np.diff(subwords.bounds))
    step.index_add_(0, torch.from_numpy(subwords.ids).long(), truth["d_inputs"][owners])
    moved = [table.numpy().copy() for table in (inputs, outputs)]
    options = ContextOptions(mode=mode, shards=1, shared=16, true_mean=True)
    training = ContextTraining(*moved, sampler, options, subwords)
    training.run(Stream(tokens, bounds, key), (0, 1), Rates(0.5, 0.0, 0.0))
    for before, after, gradient in zip((inputs, outputs), moved, (step, truth["d_outputs"]), strict=True):
        expected = before.double() - 0.5 * batch.pairs * gradient
        assert torch.from_numpy(after).double().sub(expected).norm() <= 2e-6 * expected.norm()


@pytest.mark.parametrize("sample", [1e-3, 5])
def test_words_that_the_text_has_not_are_no_matter(sample):
    """A vocabulary has those of held-out text, too; they are never drawn, and change nothing for the others."""
    counts = np.array([50, 0, 7, 0])
    sampler, own = word_sampler(counts, sample), word_sampler(counts[[0, 2]], sample)
    assert (sampler.keep[[0, 2]] == own.keep).all()
    assert not sampler.accept[[1, 3]].any()
    assert set(sampler.alias[[1, 3]]) <= {0, 2}
