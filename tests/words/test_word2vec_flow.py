"""gensim's documented flow: build_vocab, train in parts, losses in callbacks, its defaults spelled out."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from mt2st_fast import InputError, Word2Vec

TEXT = [["a", "b", "c", "d"], ["b", "c", "e"], ["a", "d", "e", "a"]] * 60
MORE = [["new", "a", "words"], ["words", "b"]] * 10
SMALL = {"min_count": 1, "vector_size": 8}
SUBWORDS = {"min_n": 1, "max_n": 2, "bucket": 50}
KINDS = [{}, {"sg": 1}, SUBWORDS]


@pytest.mark.parametrize("options", KINDS)
def test_two_steps_give_the_bits_of_one(options):
    whole, steps = Word2Vec(TEXT, **SMALL, **options), Word2Vec(**SMALL, **options)
    steps.build_vocab(TEXT)
    assert (steps.corpus_count, steps.corpus_total_words) == (180, 660)
    steps.train(TEXT, total_examples=steps.corpus_count, total_words=660, epochs=steps.epochs)
    assert np.array_equal(steps.vectors, whole.vectors)
    assert np.array_equal(steps.syn1neg, whole.output_vectors)
    assert (whole.corpus_count, whole.corpus_total_words, whole.layer1_size) == (180, 660, 8)


def test_a_file_and_gensims_other_name_of_sentences(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(" ".join(s) + "\n" for s in TEXT), encoding="utf-8")
    file, named = Word2Vec(**SMALL), Word2Vec(**SMALL)
    file.build_vocab(corpus_file=path)
    file.train(corpus_file=str(path), total_words=file.corpus_total_words, epochs=2)
    named.build_vocab(corpus_iterable=TEXT)
    named.train(corpus_iterable=TEXT, total_examples=180, epochs=2)
    assert np.array_equal(file.vectors, named.vectors)
    assert file.corpus_count == 180
    with pytest.raises(InputError, match="give one of them"):
        named.train(TEXT, corpus_iterable=TEXT)


def test_words_that_min_count_leaves_out_are_in_the_totals():
    model = Word2Vec(min_count=2, vector_size=4)
    model.build_vocab([["a", "b", "rare"], ["a", "b"], []])
    assert (model.words, model.corpus_count, model.corpus_total_words) == (["a", "b"], 3, 5)


@pytest.mark.parametrize("options", KINDS)
def test_new_words_stand_behind_those_that_keep_what_they_learnt(options):
    model = Word2Vec(TEXT, **SMALL, **options)
    words, vectors, outputs = list(model.words), model.vectors.copy(), model.output_vectors.copy()
    rows, counts = model.input_rows.copy(), dict(zip(model.words, model.counts.tolist(), strict=True))
    model.build_vocab(MORE, update=True)
    assert model.words == [*words, "words", "new"]
    assert model.counts.tolist() == [counts[word] + 10 * (word in ("a", "b")) for word in words] + [20, 10]
    assert np.array_equal(model.vectors[:5], vectors)
    assert np.array_equal(model.output_vectors[:5], outputs)
    assert not model.output_vectors[5:].any()
    assert np.array_equal(model.input_rows[7:], rows[5:])  # of n-grams
    assert np.abs(model.input_rows[5:7]).min() > 0
    assert (model.corpus_count, model.corpus_total_words) == (20, 50)
    fresh = model.vectors[5:].copy()
    model.train(MORE, total_examples=model.corpus_count, epochs=3)
    assert not np.array_equal(model.vectors[5:], fresh)
    assert np.isfinite(model.vectors).all()


def test_an_update_leaves_rare_new_words_out_and_needs_words():
    model = Word2Vec(TEXT, min_count=15, vector_size=8)
    model.build_vocab(MORE, update=True)
    assert model.words[5:] == ["words"]
    model.build_vocab([["rare", "a"]], update=True)
    assert len(model.words) == 6
    with pytest.raises(InputError, match="has none yet: call build_vocab without it"):
        Word2Vec(**SMALL).build_vocab(MORE, update=True)


def test_wv_follows_an_update():
    pytest.importorskip("gensim")
    model = Word2Vec(TEXT, **SMALL)
    keyed = model.wv
    model.build_vocab(MORE, update=True)
    assert model.wv is keyed
    assert np.array_equal(keyed["new"], model.vector("new"))
    assert keyed.get_vecattr("words", "count") == 20


def test_words_from_their_counts():
    model = Word2Vec(min_count=2, vector_size=4)
    model.build_vocab_from_freq({"b": 2, "rare": 1, "a": 5}, corpus_count=3)
    assert (model.words, model.counts.tolist()) == (["a", "b"], [5, 2])
    assert (model.corpus_count, model.corpus_total_words) == (3, 8)
    model.build_vocab_from_freq({"c": 3, "a": 1}, update=True)
    assert (model.words, model.counts.tolist()) == (["a", "b", "c"], [6, 2, 3])


@pytest.mark.parametrize(
    ("counted", "message"), [({}, "no words"), ({"a": 2, "b": 0}, "'b' was seen 0 times")]
)
def test_words_that_were_never_seen_are_named(counted, message):
    with pytest.raises(InputError, match=message):
        Word2Vec(**SMALL).build_vocab_from_freq(counted)


def test_a_min_count_of_none_takes_all_words():
    assert np.array_equal(
        Word2Vec(TEXT, **(SMALL | {"min_count": 0})).vectors, Word2Vec(TEXT, **SMALL).vectors
    )
    with pytest.raises(InputError, match="min_count is -1"):
        Word2Vec(min_count=-1)


def test_training_in_parts_goes_on_from_what_is_there():
    model = Word2Vec(TEXT, **SMALL)
    assert model.epochs_done == 5
    before = model.vectors.copy()
    model.train(TEXT, epochs=1, start_alpha=1e-6, end_alpha=1e-6)
    assert 0 < np.abs(model.vectors - before).max() < 1e-3
    assert model.epochs_done == 6
    assert (model.alpha, model.min_alpha, model.epochs) == (0.025, 1e-4, 5)


def test_the_loss_grows_by_that_of_every_epoch():
    heard: list[float] = []

    class Listener:
        def on_train_begin(self, model):
            heard.append(model.get_latest_training_loss())

        def on_epoch_end(self, model):
            heard.append(model.get_latest_training_loss())

    model = Word2Vec(TEXT, compute_loss=True, epochs=2, callbacks=[Listener()], **SMALL)
    assert model.compute_loss
    first, second = model.losses
    assert first > 0
    assert heard == [0, first, first + second]
    model.train(TEXT, epochs=1, compute_loss=False, callbacks=[Listener()])
    assert heard[3:] == [0, model.losses[2]]
    assert not model.compute_loss


@pytest.mark.parametrize(
    ("most", "words"), [(None, "abcde"), (5, "abcde"), (4, "abcd"), (3, "a"), (2, "a"), (1, "a")]
)
def test_max_final_vocab_picks_the_min_count_as_gensim_does(most, words):
    counted = {"a": 9, "b": 4, "c": 4, "d": 4, "e": 1}
    text = [[word] * n for word, n in counted.items()]
    model = Word2Vec(min_count=1, vector_size=4, max_final_vocab=most)
    model.build_vocab(text)
    assert "".join(model.words) == words
    gensim = pytest.importorskip("gensim.models.word2vec")
    theirs = gensim.Word2Vec(min_count=1, vector_size=4, max_final_vocab=most)
    theirs.build_vocab(text)
    assert sorted(theirs.wv.index_to_key) == sorted(words)


def test_max_final_vocab_among_words_of_one_count_takes_the_first():
    model = Word2Vec([["d", "a", "c", "b"]] * 60, max_final_vocab=3, **SMALL)
    assert model.words == ["a", "b", "c"]
    with pytest.raises(InputError, match="smaller min_count"):
        Word2Vec([["d", "a", "c", "b"]] * 3, max_final_vocab=3, min_count=5)


def test_gensims_defaults_can_be_spelled_out_and_placed():
    gensim = pytest.importorskip("gensim.models.word2vec")
    theirs = {
        name: parameter.default
        for name, parameter in inspect.signature(gensim.Word2Vec.__init__).parameters.items()
        if name != "self"
    }
    ours = list(inspect.signature(Word2Vec.__init__).parameters)[1:]
    assert ours[: len(theirs)] == list(theirs)
    given = theirs | {"sentences": TEXT, "min_count": 1, "vector_size": 8, "workers": 2}
    plain = Word2Vec(TEXT, **SMALL)
    assert np.array_equal(Word2Vec(**given).vectors, plain.vectors)
    assert np.array_equal(Word2Vec(*given.values()).vectors, plain.vectors)
    assert (plain.hs, plain.sg, plain.negative, plain.window, plain.workers) == (0, 0, 5, 5, 2)
    steps = [name for name in inspect.signature(gensim.Word2Vec.train).parameters if name != "kwargs"]
    assert list(inspect.signature(Word2Vec.train).parameters)[3 : len(steps)] == steps[3:]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("hs", 1), ("cbow_mean", 0), ("null_word", 1), ("sorted_vocab", 0), ("trim_rule", lambda *_: 0),
        ("max_vocab_size", 1000), ("shrink_windows", False),
    ],
)  # fmt: skip
def test_what_is_not_done_here_is_refused_by_name(option, value):
    with pytest.raises(InputError, match=f"^{option}=.*: .* here") as caught:
        Word2Vec(TEXT, **{option: value}, **SMALL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_examples": 7}, "total_examples is 7, but the text has 180 sentences"),
        ({"total_words": 7}, "total_words is 7, but the text has 660 words"),
        ({"word_count": 7}, "word_count=7"),
        ({"epochs": 0}, "epochs is 0"),
        ({"start_alpha": 0.01, "end_alpha": 0.02}, r"from start_alpha \(0.01\) to end_alpha \(0.02\)"),
        ({"end_alpha": -1.0}, r"end_alpha \(-1.0\)"),
        ({"corpus_file": "x"}, "either sentences or a corpus_file"),
    ],
)
def test_what_train_cannot_use_is_named_and_changes_nothing(arguments, message):
    model = Word2Vec(TEXT, **SMALL)
    before = model.vectors.copy()
    with pytest.raises(InputError, match=message):
        model.train(TEXT, **arguments)
    assert np.array_equal(model.vectors, before)
    assert model.epochs_done == 5


def test_what_else_would_be_dropped_is_named():
    with pytest.raises(InputError, match=r"give them to train\(callbacks=\)"):
        Word2Vec(callbacks=[object()])
    with pytest.raises(InputError, match="keep_raw_vocab=True"):
        Word2Vec(**SMALL).build_vocab(TEXT, keep_raw_vocab=True)
    with pytest.raises(InputError, match="max_final_vocab is 0"):
        Word2Vec(max_final_vocab=0)
    with pytest.raises(InputError, match="comment is 3"):
        Word2Vec(comment=3)


def test_a_sample_of_one_or_more_is_a_count_as_in_gensim():
    gensim = pytest.importorskip("gensim.models.word2vec")
    from mt2st_fast.kernels.context.batch import word_sampler
    from mt2st_fast.words.word2vec_options import sampled_share

    model = Word2Vec(TEXT, sample=10, **SMALL)
    theirs = gensim.Word2Vec(min_count=1, vector_size=8, sample=10)
    theirs.build_vocab(TEXT)
    kept = word_sampler(model.counts, sampled_share(10, int(model.counts.sum()))).keep
    expected = [theirs.wv.get_vecattr(word, "sample_int") for word in model.words]
    np.testing.assert_allclose(kept.astype(float), expected, rtol=1e-6)
    assert kept.max() < 2**32 - 1
    assert np.isfinite(model.vectors).all()
    assert not np.array_equal(model.vectors, Word2Vec(TEXT, sample=0, **SMALL).vectors)


def test_totals_and_options_are_kept(tmp_path):
    model = Word2Vec(TEXT, max_final_vocab=4, comment="mine", compute_loss=True, **SMALL)
    model.save(tmp_path / "model")
    other = Word2Vec.load(tmp_path / "model")
    for name in ("max_final_vocab", "comment", "compute_loss", "corpus_count", "corpus_total_words"):
        assert getattr(other, name) == getattr(model, name), name
    assert other.get_latest_training_loss() == model.get_latest_training_loss() > 0
