"""train_supervised: what stands in a file is what is trained, tested and predicted."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from mt2st_fast import InputError
from mt2st_fast.data.bag_features import BagFeatures
from mt2st_fast.data.batches import batch_size_for
from mt2st_fast.data.labelled_text import read_labelled_text, target_columns
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.words.bag_training import keeping_random_numbers, rate_for
from mt2st_fast.words.supervised import train_supervised

WORDS = {"sport": "goal match team", "food": "soup bread salt"}
STEMS = {"sport": ["kick", "sprint", "wrestl", "jump"], "food": ["grill", "roast", "stew", "simmer"]}
ENDINGS = ["", "s", "ed", "ing", "er"]
TONES = {"good": "great fine", "bad": "poor dull"}


def write(path, n=300, seed=0, families=True):
    rng = random.Random(seed)
    lines = []
    for _ in range(n):
        topic, tone = rng.choice(list(WORDS)), rng.choice(list(TONES))
        words = rng.choices(WORDS[topic].split(), k=3) + rng.choices(TONES[tone].split(), k=2) + ["the", "a"]
        rng.shuffle(words)
        labels = [f"__label__topic__{topic}", f"__label__tone__{tone}"] if families else [f"__label__{topic}"]
        lines.append(" ".join([*labels, *words]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_labels_by_family_anywhere_in_the_line(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("a __label__x b __label__topic__sport\n\n__label__topic__a__b c\n", encoding="utf-8")
    text = read_labelled_text(path)
    assert text.documents.vocabulary.words == ["a", "b", "c"]
    assert text.documents.ids.tolist() == [0, 1, 2]
    assert text.documents.bounds.tolist() == [0, 2, 3]
    found = {
        family: [(of.names[v], d) for v, d in zip(of.values, of.documents, strict=True)]
        for family, of in text.labels.items()
    }
    assert found == {"label": [("x", 0)], "topic": [("sport", 0), ("a__b", 1)]}
    assert text.families == ("label", "topic")


def test_a_family_with_two_labels_on_a_line_is_multi_label(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("__label__a __label__b x\n__label__a x\ny __label__k__1\n", encoding="utf-8")
    columns = target_columns(read_labelled_text(path))
    assert columns["label"].kind == "labels"
    np.testing.assert_array_equal(columns["label"].values, [[1, 1], [1, 0], [np.nan, np.nan]])
    assert columns["k"].kind == "classes"
    assert columns["k"].values.tolist() == [-100, -100, 0]


def test_bags_hold_known_words_and_the_ngrams_of_their_own_document():
    documents = [["b", "a", "b"], [], ["b", "a"], ["rare", "b"]]
    features = BagFeatures.learn(Tokens.of(documents), min_count=2, word_ngrams=2, buckets=1000)
    ids, bounds = features.bags(Tokens.of(documents))
    bags = [ids[first:last].tolist() for first, last in itertools.pairwise(bounds)]
    assert features.vocabulary.words == ["b", "a"]
    assert [bag[:n] for bag, n in zip(bags, (3, 0, 2, 1), strict=True)] == [[0, 1, 0], [], [0, 1], [0]]
    assert list(map(len, bags)) == [5, 0, 3, 2]
    ba, ab = bags[0][3:]
    assert bags[2][2] == ba
    assert len({ba, ab, bags[3][1]}) == 3
    assert all(2 <= gram < 1002 for gram in (ba, ab, bags[3][1]))


def test_trigrams_do_not_cross_documents():
    documents = [["x", "y", "z"], ["x", "y"], ["z"]]
    features = BagFeatures.learn(Tokens.of(documents), min_count=1, word_ngrams=3, buckets=10**6)
    _, bounds = features.bags(Tokens.of(documents))
    assert np.diff(bounds).tolist() == [3 + 2 + 1, 2 + 1, 1]


@pytest.mark.parametrize("word_ngrams", [1, 2])
def test_it_learns_every_family(tmp_path, word_ngrams):
    train, test = write(tmp_path / "train.txt"), write(tmp_path / "test.txt", seed=1)
    model = train_supervised(train, dim=10, epoch=10, word_ngrams=word_ngrams, bucket=500, batch_size=32)
    assert model.labels == {"topic": ("food", "sport"), "tone": ("bad", "good")}
    assert min(model.test(test).values()) > 0.97
    found = model.predict("the goal was poor", k=2)
    assert found.labels[0] == "sport"
    assert found.probabilities[0] > found.probabilities[1]
    assert sum(found.probabilities) == pytest.approx(1.0)
    assert model.predict("the goal was poor", family="tone").labels == ("bad",)


def test_models_of_several_threads_are_those_of_one_and_the_callers_random_numbers_go_on(tmp_path):
    def table(seed):
        return train_supervised(path, dim=8, epoch=1, seed=seed, device="cpu").encoder.table.detach().numpy()

    path = write(tmp_path / "train.txt")
    torch.manual_seed(3)
    alone, drawn = [table(seed) for seed in range(6)], torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(4), drawn)
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(table, range(6)))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_trainings_that_overlap_leave_the_callers_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one, other = ExitStack(), ExitStack()
    for training, seed in ((one, 1), (other, 2)):
        training.enter_context(keeping_random_numbers)
        torch.manual_seed(seed)
    one.close()
    other.close()
    assert torch.equal(torch.rand(4), expected)


def write_inflected(path, left_out, n=600, seed=0):
    """Documents about sport or food, of stems in several forms, but for the forms left out."""
    rng = random.Random(seed)
    lines = []
    for _ in range(n):
        topic = rng.choice(list(STEMS))
        words = [rng.choice(STEMS[topic]) + rng.choice(ENDINGS) for _ in range(8)]
        words = [word for word in words if word not in left_out] + ["the", "was"]
        lines.append(f"__label__{topic} " + " ".join(words))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def test_an_unseen_form_of_a_word_is_near_to_its_stem_and_is_classified(tmp_path):
    unseen = {stem + "ing": (stem, topic) for topic, stems in STEMS.items() for stem in stems[:2]}
    train = write_inflected(tmp_path / "train.txt", unseen)
    model = train_supervised(train, dim=16, epoch=10, minn=3, maxn=5, bucket=20_000, batch_size=32)
    others = {topic: [w for w in model.words if w.startswith(tuple(STEMS[topic]))] for topic in STEMS}
    for word, (stem, topic) in unseen.items():
        assert word not in model.words
        assert model.predict(word).labels == (topic,)
        vector = model.vector(word)
        assert np.isfinite(vector).all()
        to_stem = cosine(vector, model.vector(stem))
        strangers = [w for other in STEMS if other != topic for w in others[other]]
        assert to_stem > 0.5 + max(cosine(vector, model.vector(w)) for w in strangers)
    without = train_supervised(train, dim=16, epoch=1, bucket=20_000, batch_size=32)
    assert not without.vector("kicking").any()


@pytest.mark.parametrize("word", ["goal", "goalkeeper", "über", "日本", "", "two words"])
def test_a_vector_is_the_mean_of_the_rows_of_the_subwords(tmp_path, word):
    model = train_supervised(write(tmp_path / "train.txt"), dim=10, epoch=1, minn=2, maxn=3, bucket=300)
    table = model.trainer.encoder.table.detach().numpy()
    parts, ids = model.features.subwords(word)
    assert len(parts) == len(ids)
    expected = table[ids].mean(0) if len(ids) else np.zeros(10)
    np.testing.assert_allclose(model.vector(word), expected, atol=1e-6)


def test_a_sentence_holds_the_ngrams_of_its_words(tmp_path):
    model = train_supervised(write(tmp_path / "train.txt"), dim=10, epoch=1, minn=2, maxn=3, bucket=300)
    table = model.trainer.encoder.table.detach().numpy()
    rows = np.concatenate([model.features.subwords(word)[1] for word in ("goal", "unseen")])
    np.testing.assert_allclose(model.text_vector("goal unseen"), table[rows].mean(0), atol=1e-6)
    assert not model.text_vector(" ").any()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("no label here\n", {}, "no line has a label; write labels like __label__sport"),
        ("", {}, "the file is empty"),
        ("__label__a x\n", {"main": "topic"}, "has no label family topic; available: label"),
        ("__label__a x\n", {"min_count": 2}, "no word occurs at least 2 times"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, options, message):
    path = tmp_path / "train.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        train_supervised(path, **options)


@pytest.mark.parametrize(("minn", "maxn"), [(3, 2), (3, 0)])
def test_ngram_lengths_out_of_range_are_named(tmp_path, minn, maxn):
    with pytest.raises(ValueError, match=rf"minn \({minn}\) and maxn \({maxn}\) must satisfy") as caught:
        train_supervised(write(tmp_path / "train.txt", n=3), minn=minn, maxn=maxn)
    assert "\n" not in str(caught.value)


def test_defaults_go_by_the_number_of_documents():
    sizes = [batch_size_for(n, 64) for n in (1, 400, 8_500, 20_000, 50_000, 10**7)]
    assert sizes == [64, 64, 64, 128, 512, 512]
    rates = [rate_for(size) for size in (1, 64, 128, 256, 512, 4096)]
    assert rates[:2] == [pytest.approx(0.03)] * 2
    assert rates[-2:] == [pytest.approx(0.2)] * 2
    assert rates == sorted(rates)
    assert [batch_size_for(n, 16) for n in (60, 1_600, 200_000)] == [16, 16, 512]
