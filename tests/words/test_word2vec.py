"""Word2Vec: gensim's arguments and vectors, bad input named in one line."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from mt2st_fast import InputError, Word2Vec
from mt2st_fast.data import TokenStream, prepare

GensimsWord2Vec = pytest.importorskip("gensim.models").Word2Vec

SMALL = {"vector_size": 20, "min_count": 2, "window": 3}


def two_topics(n: int = 1500, seed: int = 0) -> list[list[str]]:
    """Sentences of words of one topic each."""
    generator = np.random.default_rng(seed)
    topics = [[f"{name}{i}" for i in range(12)] for name in ("sea", "sky")]
    return [list(generator.choice(topics[i % 2], 8)) for i in range(n)]


def test_wv_is_gensims_keyed_vectors():
    gensim = pytest.importorskip("gensim")
    model = Word2Vec(two_topics(100), **SMALL)
    assert isinstance(model.wv, gensim.models.KeyedVectors)
    assert model.wv.index_to_key == model.words
    assert np.array_equal(model.wv[model.words[3]], model.vectors[3])
    assert model.wv.get_vecattr(model.words[0], "count") == model.tables.counts[0]
    assert len(model.wv.most_similar(model.words[0], topn=3)) == 3


def test_a_file_and_a_list_train_alike(tmp_path):
    sentences = two_topics(50)
    path = tmp_path / "text.txt"
    path.write_text("".join(" ".join(s) + "\n" for s in sentences), encoding="utf-8")
    a, b = Word2Vec(sentences, **SMALL), Word2Vec(corpus_file=path, **SMALL)
    assert a.words == b.words
    assert np.array_equal(a.vectors, b.vectors)
    assert not np.array_equal(a.vectors, Word2Vec(sentences, seed=2, **SMALL).vectors)


def test_rare_words_are_left_out_and_unknown_ones_skipped():
    model = Word2Vec([["a", "b", "a", "b", "rare"]] * 1 + [["a", "b"]] * 5, vector_size=4, min_count=2)
    assert model.words == ["a", "b"]
    model.train([["a", "new", "b"]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sentences": []}, "no words"),
        ({"sentences": [["once"]]}, "smaller min_count"),
        ({"sentences": "a string"}, "not one string"),
        ({"sentences": ["a string"]}, "split it"),
        ({"corpus_file": "no-such-file.txt"}, "no-such-file.txt: there is no such file"),
        ({"sentences": [["a"]], "corpus_file": "x"}, "either sentences or"),
        ({"window": 0}, "window must be a whole number of at least 1, not 0"),
        ({"negative": 0}, "negative must be a whole number of at least 1, not 0"),
        ({"hs": 2}, "hs is 2; it must be 1"),
        ({"hs": 1, "negative": 0, "max_n": 3}, "hs=1 is not supported with n-grams"),
        ({"null_word": 1}, "null_word=1"),
        ({"max_vocab_size": 0}, "max_vocab_size must be a whole number of at least 1, not 0"),
        ({"max_final_vocab": 0}, "max_final_vocab must be a whole number of at least 1, not 0"),
        ({"alpha": 0.0}, "min_alpha"),
        ({"min_n": 3, "max_n": 2}, r"min_n \(3\) and max_n \(2\) must satisfy"),
        ({"min_n": -1, "max_n": 2}, "min_n must be a whole number of at least 0"),
        ({"max_n": -1}, "max_n must be a whole number of at least 0"),
        ({"max_n": 3, "bucket": 0}, "bucket must be a whole number of at least 1"),
        ({"max_n": 3, "bucket": 3_000_000_000}, "bucket must be at most 2,000,000,000, not 3,000,000,000"),
        ({"vector_size": 10**9}, "vector_size must be at most 1,048,576, not 1,000,000,000"),
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


STEMS = {"sea": ["sail", "swim", "anchor", "float"], "sky": ["glid", "hover", "thunder", "drizzl"]}
ENDINGS = ["", "s", "ed", "ing", "er"]
UNSEEN = {stem + "ing": (stem, topic) for topic, stems in STEMS.items() for stem in stems[:2]}
SUBWORDS = {"min_n": 3, "max_n": 5, "bucket": 5000}


def inflected(n: int = 1500, seed: int = 0) -> list[list[str]]:
    """Sentences of stems of one topic each, in several forms, but for those of UNSEEN."""
    generator = np.random.default_rng(seed)
    forms = [
        [stem + ending for stem in stems for ending in ENDINGS if stem + ending not in UNSEEN]
        for stems in STEMS.values()
    ]
    return [list(generator.choice(forms[i % 2], 8)) for i in range(n)]


@pytest.mark.parametrize("sg", [0, 1])
def test_an_unseen_form_of_a_word_is_near_to_its_stem(sg):
    model = Word2Vec(inflected(), sg=sg, sample=0, epochs=5, **SMALL, **SUBWORDS)

    def cosine(one: str, other: str) -> float:
        a, b = model.vector(one), model.vector(other)
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    for word, (stem, topic) in UNSEEN.items():
        assert word not in model.words
        strangers = [other for names in STEMS if names != topic for other in STEMS[names]]
        assert cosine(word, stem) > 0.3 + max(cosine(word, other) for other in strangers)
    assert model.losses[-1] < model.losses[0]


def test_a_word_is_the_mean_of_its_own_row_and_those_that_gensim_gives_its_ngrams():
    fasttext = pytest.importorskip("gensim.models.fasttext")
    model = Word2Vec(inflected(200), epochs=1, **SMALL, **SUBWORDS)
    V = len(model.words)
    assert model.tables.input_rows.shape == (V + 5000, 20)
    assert model.tables.output_vectors.shape == model.vectors.shape == (V, 20)
    for word in ("sails", "sailing", "été", "日本"):
        buckets = fasttext.ft_ngram_hashes(word, 3, 5, 5000)
        rows = [V + bucket for bucket in buckets]
        rows += [model.words.index(word)] if word in model.words else []
        np.testing.assert_allclose(model.vector(word), model.tables.input_rows[rows].mean(0), atol=1e-6)
    assert np.array_equal(model.wv["sails"], model.vector("sails"))


def test_means_of_blocks_of_words_are_those_of_all(monkeypatch):
    model = Word2Vec(inflected(200), epochs=1, **SMALL, **SUBWORDS)
    monkeypatch.setattr("mt2st_fast.words.word_tables.WORDS_AT_ONCE", 7)
    np.testing.assert_array_equal(model.tables.means(), model.vectors)


def test_subwords_train_the_same_bits_every_time_and_epochs_one_by_one():
    sentences = inflected(200)
    first, second = (Word2Vec(sentences, epochs=2, **SMALL, **SUBWORDS) for _ in range(2))
    assert np.array_equal(first.tables.input_rows, second.tables.input_rows)
    before = first.vectors.copy()
    first.train(sentences, epochs=1)
    assert not np.array_equal(first.vectors, before)
    assert np.isfinite(first.tables.input_rows).all()


def test_without_subwords_only_known_words_have_a_vector():
    model = Word2Vec(two_topics(100), epochs=1, **SMALL)
    assert np.array_equal(model.vector(model.words[2]), model.vectors[2])
    with pytest.raises(KeyError, match="'unseen' is not in the vocabulary and has no character n-grams"):
        model.vector("unseen")
    with pytest.raises(KeyError, match="has no character n-grams"):
        Word2Vec(inflected(50), epochs=1, **SMALL, **SUBWORDS).vector("")
    with pytest.raises(InputError, match="call train"):
        Word2Vec(**SMALL, **SUBWORDS).vector("before")


def test_a_token_file_trains_as_its_text_does_and_stays_mapped(tmp_path):
    text, file = tmp_path / "text.txt", tmp_path / "text.tokens"
    text.write_text("\n".join(" ".join(sentence) for sentence in two_topics(300)) + "\n", encoding="utf-8")
    prepare(text, file, min_count=2)
    mapped, read = Word2Vec(corpus_file=file, **SMALL), Word2Vec(corpus_file=text, **SMALL)
    stream = TokenStream.open(file)
    assert np.array_equal(mapped._known(stream).ids, stream.ids)
    assert mapped._known(stream).ids is stream.ids
    assert sorted(mapped.words) == sorted(read.words)
    # Words of one count may stand in another order, and so draw other negatives.
    assert mapped.losses == pytest.approx(read.losses, rel=0.02)


def test_what_is_no_folder_of_a_word2vec_is_named(tmp_path):
    """gensim's file, another one, and the folder of a run."""
    gensims = GensimsWord2Vec([["a", "b"]] * 5, min_count=1, vector_size=2)
    gensims.save(str(tmp_path / "gensims"))
    with pytest.raises(
        InputError, match=r"gensims: is a pickle, as gensim writes, .* read them with WordVectors"
    ):
        Word2Vec.load(tmp_path / "gensims")
    (tmp_path / "text").write_text("2 2\n")
    with pytest.raises(InputError, match=r"text: is a file, and a model is a folder here"):
        Word2Vec.load(tmp_path / "text")
    (tmp_path / "run" / "model").mkdir(parents=True)
    with pytest.raises(
        InputError, match=r"run: is a run of train, which has no Word2Vec; .* mt2st_fast.load"
    ):
        Word2Vec.load(tmp_path / "run")
