"""What gensim's documentation of Word2Vec shows, written anew, with the import changed: every call and its result."""

from __future__ import annotations

import copy
import itertools
import logging
import pickle

import numpy as np
import pytest

from mt2st_fast import InputError, Word2Vec
from mt2st_fast.kernels.context.hierarchy import tree_paths
from tests.words.test_word2vec import SMALL, two_topics

pytest.importorskip("gensim")
from gensim.models import KeyedVectors
from gensim.models.callbacks import CallbackAny2Vec
from gensim.models.word2vec import LineSentence, PathLineSentences
from gensim.test.utils import common_texts, datapath


def test_the_first_page(tmp_path):
    """models.word2vec: train, keep, load, train on, keep the vectors alone."""
    model = Word2Vec(sentences=common_texts, vector_size=100, window=5, min_count=1, workers=4)
    model.save(str(tmp_path / "word2vec.model"))
    model = Word2Vec.load(str(tmp_path / "word2vec.model"))
    assert model.train([["hello", "world"], ["human", "system"]], total_examples=2, epochs=1) == (2, 4)
    vector = model.wv["computer"]
    assert (vector.shape, vector.dtype) == ((100,), np.float32)
    similar = model.wv.most_similar("computer", topn=10)
    assert len(similar) == 10
    word_vectors = model.wv
    word_vectors.save(str(tmp_path / "word2vec.wordvectors"))
    loaded = KeyedVectors.load(str(tmp_path / "word2vec.wordvectors"), mmap="r")
    assert np.array_equal(loaded["computer"], vector)
    del model
    assert word_vectors.similarity("computer", "human") == pytest.approx(
        loaded.similarity("computer", "human")
    )


def test_the_positions_of_gensims_arguments():
    ours = Word2Vec(two_topics(40), None, 8, 0.05, 2, 1, None, 0.0, 3, 1, 0.001, 1, 0, 3, 0.5, 1, hash, 2)
    named = Word2Vec(
        two_topics(40), vector_size=8, alpha=0.05, window=2, min_count=1, sample=0.0, seed=3, workers=1,
        min_alpha=0.001, sg=1, hs=0, negative=3, ns_exponent=0.5, cbow_mean=1, epochs=2,
    )  # fmt: skip
    assert np.array_equal(ours.vectors, named.vectors)
    ours.build_vocab(two_topics(40), None, False, 10_000, True)
    assert ours.raw_vocab[ours.words[0]] == ours.tables.counts[0]
    assert ours.train(two_topics(40), None, 40, None, 1)[1] == 320


def test_corpora_of_gensim_are_read():
    lines = LineSentence(datapath("lee_background.cor"))
    model = Word2Vec(lines, vector_size=10, min_count=20)
    by_file = Word2Vec(corpus_file=datapath("lee_background.cor"), vector_size=10, min_count=20)
    assert np.array_equal(model.vectors, by_file.vectors)
    folder = Word2Vec(PathLineSentences(datapath("PathLineSentences")), vector_size=10, min_count=1)
    assert len(folder.wv) == 47


def test_callbacks_and_the_loss(caplog):
    class EpochLogger(CallbackAny2Vec):
        def __init__(self):
            self.heard, self.losses = [], []

        def on_train_begin(self, model):
            self.heard.append("begin")

        def on_epoch_end(self, model):
            self.heard.append("epoch")
            self.losses.append(model.get_latest_training_loss())

        def on_train_end(self, model):
            self.heard.append("end")

    logger = EpochLogger()
    with caplog.at_level(logging.INFO, "mt2st_fast"):
        model = Word2Vec(common_texts, min_count=1, sample=0, epochs=3, compute_loss=True, callbacks=[logger])
        assert logger.heard == ["begin", "epoch", "epoch", "epoch", "end"]
        assert all(a < b for a, b in itertools.pairwise([0, *logger.losses]))
        assert [m for m in caplog.messages if m.startswith("EPOCH")][-1].startswith("EPOCH 3: 29 words")
        model.train(common_texts, total_examples=9, epochs=1, start_alpha=model.min_alpha_yet_reached)
        assert 0 < model.get_latest_training_loss() < logger.losses[1]  # `train` counts from 0
        Word2Vec(callbacks=[logger])
    assert "pass them to train" in caplog.messages[-1]


def test_a_rate_that_rises_again_is_told_of(caplog):
    model = Word2Vec(common_texts, min_count=1)
    assert not caplog.messages
    model.train(common_texts, total_examples=9, epochs=1, start_alpha=model.min_alpha_yet_reached)
    assert not caplog.messages
    model.train(common_texts, total_examples=9, epochs=1)
    assert "Effective 'alpha' higher than previous training cycles" in caplog.text


# --- the vocabulary ------------------------------------------------------------------------------------------


def test_the_vocabulary_by_steps_is_that_of_one_call():
    whole, steps = (Word2Vec(vector_size=8, min_count=2, seed=4) for _ in range(2))
    whole.build_vocab(common_texts)
    assert steps.scan_vocab(common_texts) == (29, 9)
    trial = steps.prepare_vocab(dry_run=True, min_count=3)
    assert (trial["num_retained_words"], trial["retain_total"], trial["drop_unique"]) == (4, 13, 8)
    assert (steps.words, steps.min_count) == ([], 2)
    report = steps.prepare_vocab(keep_raw_vocab=True)
    assert report["num_retained_words"] == 12
    assert report["downsample_total"] <= report["retain_total"] == 29
    assert sum(steps.raw_vocab.values()) == 29
    steps.prepare_weights()
    assert steps.words == whole.words
    assert np.array_equal(steps.vectors, whole.vectors)
    with pytest.raises(InputError, match="call scan_vocab first"):
        whole.prepare_vocab()


def test_words_beyond_max_vocab_size_are_forgotten_by_and_by():
    # After sentence 2 there are 3 words, of which none was seen fewer than once; after 3 those seen once go.
    sentences = [["a", "b"], ["a", "c"], ["a", "d"], ["d", "d"]]
    model = Word2Vec(vector_size=4, min_count=1, max_vocab_size=2)
    model.build_vocab(sentences)
    assert dict(zip(model.words, model.tables.counts.tolist(), strict=True)) == {"a": 3, "d": 2}


@pytest.mark.parametrize("most", [1, 2, 5, 20, 100])
def test_max_vocab_size_leaves_gensims_words(most):
    from gensim.models import Word2Vec as Theirs

    shares = 1 / np.arange(1, 61)
    drawn = np.random.default_rng(most).choice(60, (50, 7), p=shares / shares.sum())
    sentences = [[f"w{i}" for i in row] for row in drawn]
    ours, theirs = (kind(vector_size=4, min_count=1, max_vocab_size=most) for kind in (Word2Vec, Theirs))
    assert ours.scan_vocab(sentences) == theirs.scan_vocab(sentences)
    assert ours.raw_vocab == dict(theirs.raw_vocab)


def test_words_in_the_order_of_their_text():
    sentences = [["c", "a", "a"], ["b", "a", "c"], ["d", "a", "b"]]
    model = Word2Vec(sentences, vector_size=4, min_count=2, sorted_vocab=0)
    assert model.words == ["c", "a", "b"]
    assert model.tables.counts.tolist() == [2, 4, 2]
    limited = Word2Vec(sentences, vector_size=4, min_count=1, sorted_vocab=0, max_final_vocab=2)
    assert limited.words == ["c", "a"]
    model.build_vocab_from_freq({"x": 1, "y": 9, "z": 5})
    assert model.words == ["y", "z"]


def test_another_models_words():
    model, other = Word2Vec(common_texts, min_count=1), Word2Vec(two_topics(30), **SMALL)
    wv = model.wv
    model.reset_from(other)
    assert model.words == other.words
    assert wv.key_to_index == other.wv.key_to_index
    assert (model.corpus_count, model.epochs_done) == (30, 0)
    model.train(two_topics(30), total_examples=30, epochs=1)
    assert other.epochs_done == SMALL.get("epochs", 5)


def test_memory_is_that_of_the_tables():
    model = Word2Vec(common_texts, min_count=1, vector_size=10, hs=1, negative=5)
    memory = model.estimate_memory()
    assert memory == {"vectors": 480, "syn1": 480, "syn1neg": 480, "total": 1440}
    assert memory["total"] == sum(t.nbytes for t in (model.vectors, model.syn1, model.syn1neg))
    assert model.estimate_memory(1000)["vectors"] == 40_000


# --- how words are predicted -----------------------------------------------------------------------------------

WAYS = [
    {"sg": 1}, {"hs": 1, "negative": 0}, {"hs": 1, "negative": 0, "sg": 1}, {"hs": 1, "negative": 5},
    {"hs": 1, "negative": 5, "sg": 1}, {"shrink_windows": False},
    {"shrink_windows": False, "sg": 1}, {"cbow_mean": 0}, {"cbow_mean": 0, "hs": 1, "negative": 0}, {"sorted_vocab": 0},
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_brings_words_of_a_topic_together_and_is_kept(way, tmp_path):
    options = {"sample": 0, "epochs": 10, "alpha": 0.05, **SMALL, **way}
    model = Word2Vec(two_topics(), **options)
    unit = model.vectors / np.linalg.norm(model.vectors, axis=1, keepdims=True)
    sea = np.array([word.startswith("sea") for word in model.words])
    cosine = unit @ unit.T
    if way != {
        "cbow_mean": 0
    }:  # of so few words and negatives gensim does not tell the topics apart by sums either
        assert cosine[sea][:, sea].mean() > cosine[sea][:, ~sea].mean() + 0.3
    assert model.losses[-1] < model.losses[0]
    plain = Word2Vec(two_topics(), **{name: options[name] for name in options if name not in way})
    assert not np.array_equal(model.vectors, plain.vectors)
    model.save(tmp_path / "m")
    again = Word2Vec.load(tmp_path / "m")
    for other in (model, again):
        other.train(two_topics(40), epochs=1)
    assert np.array_equal(model.vectors, again.vectors)
    assert model.words == again.words


def test_both_ways_are_told_of(caplog):
    model = Word2Vec(common_texts, min_count=1, hs=1)
    assert "Both hierarchical softmax and negative sampling are activated" in caplog.text
    assert model.syn1.any()
    assert model.syn1neg.any()


def test_locked_vectors_stay_through_updates_and_folders(tmp_path):
    model = Word2Vec(min_count=1, vector_size=8, workers=1)
    model.build_vocab(common_texts)
    model.wv.vectors_lockf = np.ones(len(model.wv), np.float32)
    model.wv.vectors_lockf[model.wv.key_to_index["graph"]] = 0
    before = model.wv["graph"].copy()
    model.train(common_texts, total_examples=9, epochs=2)
    model.build_vocab([["graph", "new"]], update=True)
    assert len(model.wv.vectors_lockf) == 13
    model.save(tmp_path / "m")
    for other in (
        model,
        Word2Vec.load(tmp_path / "m"),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        moved = other.wv["new"].copy()
        other.train([["graph", "new", "trees"]] * 20, epochs=2)
        assert np.array_equal(other.wv["graph"], before)
        assert not np.array_equal(other.wv["new"], moved)
    for wrong, message in ((np.ones(3), "3 numbers for 13 words"), ([np.nan], "not finite")):
        model.wv.vectors_lockf = wrong
        with pytest.raises(InputError, match=message):
            model.train(common_texts, epochs=1)


def test_pretrained_vectors_are_put_in_and_may_be_locked(tmp_path):
    pretrained = Word2Vec(common_texts, min_count=1, vector_size=8, seed=9)
    pretrained.wv.save_word2vec_format(tmp_path / "v.vec")
    model = Word2Vec(min_count=1, vector_size=8)
    model.build_vocab([*common_texts, ["own", "words"]])
    model.wv.vectors_lockf = np.ones(len(model.wv), np.float32)
    model.wv.intersect_word2vec_format(str(tmp_path / "v.vec"), lockf=0.0)
    model.train(common_texts, total_examples=9, epochs=2)
    for word in ("graph", "human"):
        assert np.array_equal(model.wv[word], pretrained.wv[word])


def test_vectors_that_are_set_are_trained_on():
    model = Word2Vec(common_texts, min_count=1, vector_size=8)
    given = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
    model.wv.vectors = given.copy()
    model.train(common_texts, epochs=1, start_alpha=1e-9, end_alpha=0.0)
    np.testing.assert_allclose(model.vectors, given, atol=1e-6)
    fixed = given.copy()
    fixed.flags.writeable = False
    model.wv.vectors = fixed
    model.train(common_texts, epochs=1)
    assert not np.array_equal(model.wv.vectors, fixed)
    model.wv.add_vectors(["another"], np.ones((1, 8), np.float32))
    with pytest.raises(InputError, match="wv has other words or vectors"):
        model.train(common_texts, epochs=1)


def test_means_of_ngrams_that_were_changed_are_not_trained_on():
    model = Word2Vec(common_texts, min_count=1, vector_size=8, min_n=2, max_n=3, bucket=100)
    model.wv.most_similar("graph")
    model.train(common_texts, epochs=1)
    model.wv.vectors[0] = 1
    with pytest.raises(InputError, match=r"change model\.tables\.input_rows"):
        model.train(common_texts, epochs=1)
    model.build_vocab(common_texts)
    model.wv.vectors_lockf = np.zeros(12)
    with pytest.raises(InputError, match="vectors_lockf is not supported with n-grams"):
        model.train(common_texts, epochs=1)


# --- questions -------------------------------------------------------------------------------------------------


def test_the_word_amid_a_context():
    model = Word2Vec(two_topics(), sample=0, epochs=10, alpha=0.05, **SMALL)
    found = model.predict_output_word(["sea1", "sea2", "unseen"], topn=5)
    assert all(word.startswith("sea") for word, _ in found)
    everything = model.predict_output_word(["sea1", "sea2"], topn=None)
    assert everything[:5] == found
    assert sum(share for _, share in everything) == pytest.approx(1)
    h = model.wv[["sea1", "sea2"]].mean(0)
    shares = np.exp(model.syn1neg @ h) / np.exp(model.syn1neg @ h).sum()
    assert dict(everything) == pytest.approx(dict(zip(model.words, shares.tolist(), strict=True)), rel=1e-4)
    rows = [model.wv.get_index("sea1"), model.wv.get_index("sea2")]
    assert model.predict_output_word(rows) == everything[:10]
    assert model.predict_output_word(["unseen"]) is None


@pytest.mark.parametrize("way", [{"sg": 1}, {}, {"cbow_mean": 0}])
def test_scores_are_log_probabilities_by_the_tree(way):
    model = Word2Vec(two_topics(), hs=1, negative=0, sample=0, epochs=5, **SMALL, **way)
    sentences = [["sea1", "unseen", "sea2", "sea3", "sea1"], [], ["sky1"], ["sea1", "sky2"]]
    paths, w = tree_paths(model.tables.counts), model.window
    expected = []
    for sentence in sentences:
        ids, total = [model.wv.key_to_index[word] for word in sentence if word != "unseen"], 0.0
        for i, word in enumerate(ids):
            around = ids[max(0, i - w) : i] + ids[i + 1 : i + 1 + w]
            hs = model.vectors[around]
            hs = hs if model.sg or not around else [hs.sum(0) / (len(around) if model.cbow_mean else 1)]
            path = slice(paths.bounds[word], paths.bounds[word + 1])
            for h in hs:
                total -= np.log1p(np.exp(-paths.signs[path] * (model.syn1[paths.nodes[path]] @ h))).sum()
        expected.append(total)
    found = model.score(sentences, len(sentences))
    assert found == pytest.approx(expected, rel=1e-4)
    assert found[0] < found[1] == found[2] == 0
    assert len(model.score(sentences, total_sentences=2)) == 2
    with pytest.raises(InputError, match="not a string"):
        model.score(["sea1 sea2"])


def test_what_gensim_raises_is_raised(tmp_path):
    with pytest.raises(RuntimeError, match="the text has no words"):
        Word2Vec([])
    with pytest.raises(RuntimeError, match="no word occurs at least 99 times"):
        Word2Vec(common_texts, min_count=99)
    with pytest.raises(ValueError, match="negative must be a whole number of at least 1, not 0"):
        Word2Vec(common_texts, hs=0, negative=0)
    with pytest.raises(TypeError, match="sentences must be lists of words"):
        Word2Vec([[["a"]]])
    with pytest.raises(AttributeError, match="is not a model"):
        Word2Vec.load(tmp_path / "none")
    with pytest.raises(AttributeError, match=r"call Word2Vec\.load\(folder\)"):
        Word2Vec().load(tmp_path)
    model = Word2Vec(common_texts, min_count=1)
    with pytest.raises(RuntimeError, match="hs=1"):
        model.score(common_texts)
    with pytest.raises(RuntimeError, match="negative=5"):
        Word2Vec(common_texts, min_count=1, hs=1, negative=0).predict_output_word(["human"])
    with pytest.raises(AttributeError, match=r"model\.wv\.most_similar"):
        model.most_similar("human")
    alone = Word2Vec()
    alone.wv = model.wv
    assert alone.wv["human"].tolist() == model.wv["human"].tolist()
    for refused in (lambda: alone.train(common_texts, epochs=1), lambda: alone.save(tmp_path / "m")):
        with pytest.raises(InputError, match="the model has only vectors"):
            refused()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.predict_output_word("human system"), "a context must be a list of words"),
        (
            lambda m: m.predict_output_word(["human"], topn=0),
            "topn must be a whole number of at least 1, not 0",
        ),
        (lambda m: setattr(m, "wv", 5), "wv must be a gensim KeyedVectors, not int"),
        (lambda m: m.build_vocab_from_freq({"a": "x"}), "the count of 'a' is 'x'"),
        (lambda m: m.build_vocab_from_freq({"a": -5}), "the count of 'a' is -5"),
        (lambda m: m.build_vocab_from_freq({1: 5}), "a word must be a string, not 1"),
        (
            lambda m: (m.scan_vocab(common_texts), m.prepare_vocab(min_count=-1)),
            "min_count must be a whole number",
        ),
        (lambda m: (m.scan_vocab(common_texts), m.prepare_vocab(sample=np.nan)), "sample"),
        (lambda m: m.reset_from(m.wv), "reset_from requires a Word2Vec, not KeyedVectors"),
        (lambda m: m.estimate_memory(-1), "vocab_size must be a whole number of at least 0, not -1"),
        (lambda m: (setattr(m.wv, "vectors_lockf", "x"), m.train(common_texts, epochs=1)), "must be numbers"),
    ],
)
def test_misuse_is_a_line_and_changes_nothing(call, message):
    model = Word2Vec(common_texts, min_count=1, vector_size=4)
    before = model.vectors.copy()
    with pytest.raises(InputError, match=message) as caught:
        call(model)
    assert "\n" not in str(caught.value)
    assert np.array_equal(model.vectors, before)
    assert (model.min_count, model.sample) == (1, 1e-3)


def test_vectors_that_are_set_are_stored_copied_and_looked_up(tmp_path):
    model = Word2Vec(common_texts, min_count=1, vector_size=8, hs=1)
    model.wv["graph"] = np.ones(8, np.float32)  # by which gensim replaces the whole array
    assert (model.vector("graph") == 1).all()
    model.wv["trees"] = np.full(8, 2, np.float32)
    assert (model.vectors[model.wv.get_index("trees")] == 2).all()
    model.wv["user"] = np.full(8, 3, np.float32)
    scores = model.score([["user", "graph"]])
    model.wv["system"] = np.full(8, 4, np.float32)
    model.save(tmp_path / "model")
    model.wv["eps"] = np.full(8, 5, np.float32)
    for other in (Word2Vec.load(tmp_path / "model"), copy.deepcopy(model)):
        for word, value in {"graph": 1, "trees": 2, "user": 3, "system": 4}.items():
            assert (other.wv[word] == value).all()
        np.testing.assert_array_equal(other.score([["user", "graph"]]), scores)
    assert (other.wv["eps"] == 5).all()
    model.build_vocab(common_texts)  # fresh tables, which none of these is part of
    assert not (model.vectors == 5).any()


def test_words_that_were_added_to_wv_are_not_dropped_from_a_file(tmp_path):
    model = Word2Vec(common_texts, min_count=1, vector_size=8)
    model.wv.add_vectors(["another"], np.ones((1, 8), np.float32))
    for store in (lambda: model.save(tmp_path / "model"), lambda: copy.deepcopy(model)):
        with pytest.raises(InputError, match=r"cannot be trained or stored with it.*model\.wv\.save"):
            store()
    assert "another" in model.wv
    ngrams = Word2Vec(common_texts, min_count=1, vector_size=8, min_n=2, max_n=3, bucket=100)
    ngrams.wv.vectors[0] = 1
    with pytest.raises(InputError, match=r"change model\.tables\.input_rows"):
        ngrams.save(tmp_path / "model")


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (3, "callbacks must be a list of objects .* not 3"),
        ("log", "callbacks must be a list of objects .* not 'log'"),
        (None, "callbacks must be a list of objects .* not None"),
        ([print], "callbacks has <built-in function print>, which is no object with any of on_train_begin"),
        ([CallbackAny2Vec], "callbacks has <class .*, which is no object"),
    ],
)
def test_callbacks_that_are_none_are_refused(callbacks, message):
    with pytest.raises(InputError, match=message):
        Word2Vec(common_texts, min_count=1, callbacks=callbacks)
    model = Word2Vec(common_texts, min_count=1, vector_size=8)
    with pytest.raises(InputError, match=message):
        model.train(common_texts, callbacks=callbacks)


def test_callbacks_may_come_from_an_iterator():
    seen = []

    class Count(CallbackAny2Vec):
        def on_epoch_end(self, model):
            seen.append(model.epochs_done)

    Word2Vec(common_texts, min_count=1, epochs=3, callbacks=iter([Count()]))
    assert seen == [1, 2, 3]


def test_vectors_that_a_callback_sets_are_trained_on():
    class SetOne(CallbackAny2Vec):
        def on_epoch_end(self, model):
            if model.epochs_done == 1:
                model.wv["graph"] = np.full(8, 9, np.float32)
                self.copied = copy.deepcopy(model)

    setter = SetOne()
    model = Word2Vec(common_texts, min_count=1, vector_size=8, sample=0, epochs=3, callbacks=[setter])
    assert (setter.copied.wv["graph"] == 9).all()
    assert not (model.wv["graph"] == 9).all()  # but trained further
    assert np.abs(model.wv["graph"] - 9).max() < 1
    assert not np.array_equal(model.wv["trees"], setter.copied.wv["trees"])
    assert model.tables.vectors is model.wv.vectors is model.tables.input_rows
    setter.copied.train(common_texts, epochs=1)
