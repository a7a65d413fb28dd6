"""Word2Vec.wv: gensim's KeyedVectors, one object that follows training."""

from __future__ import annotations

import numpy as np
import pytest

from mt2st_fast import InputError, Word2Vec

pytest.importorskip("gensim")

TEXT = [["a", "b", "c", "d"], ["b", "c", "e"], ["a", "d", "e"]] * 60
SMALL = {"min_count": 1, "vector_size": 8, "epochs": 2}
SUBWORDS = {"min_n": 1, "max_n": 2, "bucket": 50}


@pytest.mark.parametrize("subwords", [{}, SUBWORDS])
def test_it_is_made_once_shares_the_table_and_follows_training(subwords):
    model = Word2Vec(TEXT, **SMALL, **subwords)
    keyed = model.wv
    before = keyed["a"].copy()
    first = keyed.similarity("a", "b"), keyed.most_similar("a", topn=4)  # the latter keeps lengths
    model.train(TEXT)
    assert model.wv is keyed
    assert np.shares_memory(keyed.vectors, model.vectors)
    assert not np.array_equal(keyed["a"], before)
    assert np.array_equal(keyed["a"], model.vector("a"))
    unit = model.vectors / np.linalg.norm(model.vectors, axis=1, keepdims=True)
    cosines = dict(keyed.most_similar("a", topn=4))
    for word, cosine in cosines.items():
        assert cosine == pytest.approx(float(unit[0] @ unit[model.words.index(word)]), abs=1e-5)
    assert (keyed.similarity("a", "b"), keyed.most_similar("a", topn=4)) != first


def test_a_callback_sees_the_epoch_that_has_ended():
    seen = []

    class Listener:
        def on_epoch_end(self, model):
            keyed = model.wv
            keyed.most_similar("a")
            seen.append((keyed["a"].copy(), keyed.norms[0]))

    model = Word2Vec(TEXT, callbacks=[Listener()], **SMALL)
    (first, _), (last, length) = seen
    assert not np.array_equal(first, last)
    assert np.array_equal(last, model.vectors[0])
    assert length == pytest.approx(float(np.linalg.norm(last)))


def test_vectors_set_by_others_are_trained_on():
    within, instead = Word2Vec(TEXT, **SMALL), Word2Vec(TEXT, **SMALL)
    start = np.full((5, 8), 0.25, np.float32)
    within.wv.vectors[:] = start
    instead.wv.vectors = start
    for model in (within, instead):
        model.train(TEXT)
    assert np.array_equal(within.vectors, instead.vectors)
    assert np.array_equal(instead.wv.vectors, instead.vectors)
    assert not np.array_equal(within.vectors, Word2Vec(TEXT, **(SMALL | {"epochs": 4})).vectors)


def test_a_wv_that_is_no_longer_the_models_is_not_trained_on():
    model = Word2Vec(TEXT, **SMALL)
    model.wv.add_vectors(["f"], [np.ones(8, np.float32)])
    with pytest.raises(InputError, match="wv has other words than the model"):
        model.train(TEXT)
    model = Word2Vec(TEXT, **SMALL, **SUBWORDS)
    model.wv.vectors = np.ones((5, 8), np.float32)
    with pytest.raises(InputError, match=r"wv\.vectors was replaced"):
        model.train(TEXT)


def test_words_that_are_added_to_it_later_have_a_place():
    keyed = Word2Vec(TEXT, **SMALL).wv
    keyed.add_vectors(["f"], [np.ones(8, np.float32)])
    assert keyed["f"][0] == 1
    assert len(keyed) == len(keyed.vectors) == 6
