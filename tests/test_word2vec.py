"""Word2Vec: gensim's arguments and vectors, bad input named in one line."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from mt2st_fast import InputError, Word2Vec
from mt2st_fast.data import TokenStream, prepare
from mt2st_fast.word2vec import _mapped

SMALL = {"vector_size": 20, "min_count": 2, "window": 3}


def two_topics(n: int = 1500, seed: int = 0) -> list[list[str]]:
    """Sentences of words of one topic each."""
    generator = np.random.default_rng(seed)
    topics = [[f"{name}{i}" for i in range(12)] for name in ("sea", "sky")]
    return [list(generator.choice(topics[i % 2], 8)) for i in range(n)]


@pytest.mark.parametrize("sg", [0, 1])
def test_words_of_a_topic_come_close(sg):
    model = Word2Vec(two_topics(), sg=sg, sample=0, epochs=10, alpha=0.05, **SMALL)
    unit = model.vectors / np.linalg.norm(model.vectors, axis=1, keepdims=True)
    sea = np.array([word.startswith("sea") for word in model.words])
    cosine = unit @ unit.T
    assert cosine[sea][:, sea].mean() > cosine[sea][:, ~sea].mean() + 0.3
    assert model.losses[-1] < model.losses[0]


def test_wv_is_gensims_keyed_vectors():
    gensim = pytest.importorskip("gensim")
    model = Word2Vec(two_topics(100), **SMALL)
    assert isinstance(model.wv, gensim.models.KeyedVectors)
    assert model.wv.index_to_key == model.words
    assert np.array_equal(model.wv[model.words[3]], model.vectors[3])
    assert model.wv.get_vecattr(model.words[0], "count") == model.counts[0]
    assert len(model.wv.most_similar(model.words[0], topn=3)) == 3


def test_a_file_and_a_list_train_alike(tmp_path):
    sentences = two_topics(50)
    path = tmp_path / "text.txt"
    path.write_text("".join(" ".join(s) + "\n" for s in sentences), encoding="utf-8")
    a, b = Word2Vec(sentences, **SMALL), Word2Vec(corpus_file=path, **SMALL)
    assert a.words == b.words
    assert np.array_equal(a.vectors, b.vectors)
    assert not np.array_equal(a.vectors, Word2Vec(sentences, seed=2, **SMALL).vectors)


def test_epochs_one_by_one_give_the_same_as_gensims_train():
    sentences = two_topics(50)
    model = Word2Vec(epochs=1, **SMALL)
    model.train(sentences, start_alpha=0.025, end_alpha=0.0125)
    model.train(sentences, start_alpha=0.0125, end_alpha=0.0001)
    assert model.epochs_done == 2
    assert np.isfinite(model.vectors).all()


def test_rare_words_are_left_out_and_unknown_ones_skipped():
    model = Word2Vec([["a", "b", "a", "b", "rare"]] * 1 + [["a", "b"]] * 5, vector_size=4, min_count=2)
    assert model.words == ["a", "b"]
    model.train([["a", "new", "b"]])


def test_callbacks_hear_of_epochs():
    heard = []

    class Listener:
        def on_epoch_end(self, model):
            heard.append(model.epochs_done)

    Word2Vec(two_topics(20), epochs=3, callbacks=[Listener()], **SMALL)
    assert heard == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sentences": []}, "no words"),
        ({"sentences": [["once"]]}, "smaller min_count"),
        ({"sentences": "a string"}, "not one string"),
        ({"sentences": ["a string"]}, "split it"),
        ({"corpus_file": "no-such-file.txt"}, "cannot read no-such-file.txt"),
        ({"sentences": [["a"]], "corpus_file": "x"}, "either sentences or"),
        ({"window": 0}, "window is 0"),
        ({"negative": 0}, "negative is 0"),
        ({"alpha": 0.0}, "min_alpha"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        Word2Vec(**arguments)
    assert "\n" not in str(caught.value)


def test_wv_names_its_fix(monkeypatch):
    model = Word2Vec(vector_size=4)
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    with pytest.raises(InputError, match="pip install"):
        _ = model.wv
    monkeypatch.undo()
    pytest.importorskip("gensim")
    with pytest.raises(InputError, match="call train"):
        _ = model.wv


def test_a_token_file_trains_as_its_text_does_and_stays_mapped(tmp_path):
    text, file = tmp_path / "text.txt", tmp_path / "text.tokens"
    text.write_text("\n".join(" ".join(sentence) for sentence in two_topics(300)) + "\n", encoding="utf-8")
    prepare(text, file, min_count=2)
    mapped, read = Word2Vec(corpus_file=file, **SMALL), Word2Vec(corpus_file=text, **SMALL)
    stream = TokenStream.open(file)
    assert np.array_equal(mapped._known(_mapped(stream)).tokens, stream.tokens)
    assert mapped._known(_mapped(stream)).tokens is stream.tokens
    assert sorted(mapped.words) == sorted(read.words)
    # Words of one count may stand in another order, and so draw other negatives.
    assert mapped.losses == pytest.approx(read.losses, rel=0.02)
