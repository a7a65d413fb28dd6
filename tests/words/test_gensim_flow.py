"""Word2Vec in gensim's documented flow: vocabulary, training by parts, loss, saving, and what is refused by name."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from mt2st_fast import InputError, Word2Vec
from tests.words.test_word2vec import SMALL, SUBWORDS, two_topics

KINDS = [{}, {"sg": 1}, {"hs": 1, "negative": 0}, SUBWORDS]


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_first_and_then_training_is_the_same_as_at_once(kind):
    sentences = two_topics(60)
    model = Word2Vec(**SMALL, **kind)
    model.build_vocab(corpus_iterable=iter(sentences))
    assert (model.corpus_count, model.corpus_total_words) == (60, 480)
    trained = model.train(sentences, total_examples=model.corpus_count, epochs=model.epochs)
    assert trained == (5 * 480, 5 * 480)
    assert np.array_equal(model.vectors, Word2Vec(sentences, **SMALL, **kind).vectors)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_trains_on_to_the_same_bits(kind, tmp_path):
    sentences = two_topics(60)
    model = Word2Vec(sentences, **SMALL, **kind)
    model.save(tmp_path / "m")
    others = [Word2Vec.load(tmp_path / "m"), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    model_vectors = model.vectors.copy()
    model.train(sentences, epochs=2)
    for other in others:
        assert np.array_equal(other.vectors, model_vectors)
        other.train(sentences, epochs=2)
        assert np.array_equal(other.vectors, model.vectors)
        assert other.losses == model.losses


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_keeps_vectors_and_appends_words(kind):
    model = Word2Vec(two_topics(60), **SMALL, **kind)
    words, vectors, count = list(model.words), model.vectors.copy(), int(model.tables.counts[0])
    model.build_vocab([["new", words[0], "newer", "rare"]] * 1 + [["new", "newer", "new"]] * 3, update=True)
    assert model.words == [*words, "new", "newer"]
    assert model.tables.counts[0] == count + 1
    np.testing.assert_array_equal(model.vectors[: len(words)], vectors)
    before = model.vectors[-1].copy()
    model.train([["new", "newer", words[0]]] * 50, epochs=3)
    assert not np.array_equal(before, model.vectors[-1])


def test_wv_is_made_once_and_follows_the_training():
    pytest.importorskip("gensim")
    for kind in ({}, SUBWORDS):
        model = Word2Vec(two_topics(60), **SMALL, **kind)
        wv = model.wv
        wv.most_similar(model.words[0])  # keeps the vectors' lengths
        model.train(two_topics(60), epochs=2)
        assert model.wv is wv
        assert np.array_equal(wv[model.words[3]], model.vectors[3])
        unit = model.vectors[3] / np.linalg.norm(model.vectors[3])
        np.testing.assert_allclose(wv.get_vector(model.words[3], norm=True), unit, rtol=1e-5)


def test_rules_and_limits_choose_the_words():
    sentences = [["a", "b", "c"], ["a", "b"], ["a"]]
    assert Word2Vec(sentences, min_count=1, max_final_vocab=2, vector_size=4).words == ["a", "b"]
    rule = {"a": 1, "c": 2}
    kept = Word2Vec(sentences, min_count=2, trim_rule=lambda w, n, least: rule.get(w, 0), vector_size=4)
    assert kept.words == ["b", "c"]


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda m, _: m.build_vocab(), TypeError, "pass either sentences or corpus_file"),
        (lambda m, _: m.build_vocab([["a"]], corpus_file="x"), TypeError, "pass either"),
        (lambda m, _: m.train([["a"]], corpus_iterable=[["a"]]), TypeError, "pass only one of them"),
        (lambda m, _: m.scan_vocab(corpus_file=3), TypeError, "corpus_file 3: there is no such file"),
        (lambda m, f: m.train(corpus_file=f / "none"), TypeError, "none: there is no such file"),
        (lambda m, f: m.train(corpus_file=f), TypeError, "is a folder; pass a file"),
        (lambda m, _: m.build_vocab([["a"]], update=True), RuntimeError, "needs a vocabulary to add to"),
        (lambda m, f: m.save(f / "m"), InputError, "call train"),
    ],
)
def test_errors_are_of_gensims_kinds_too(call, kind, message, tmp_path):
    with pytest.raises(kind, match=message) as caught:
        call(Word2Vec(**SMALL), tmp_path)
    assert isinstance(caught.value, InputError)


def test_a_rule_that_keeps_nothing_is_named():
    with pytest.raises(
        RuntimeError, match="trim_rule keeps no word, and of those that it leaves to min_count"
    ):
        Word2Vec([["a", "b"]] * 9, trim_rule=lambda *_: 1, **SMALL)
