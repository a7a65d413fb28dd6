"""Character n-grams: fastText's parts and buckets, and the bags that hold them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mt2st_fast.data import bag_features
from mt2st_fast.data import character_ngrams as ngrams
from mt2st_fast.data.bag_features import BagFeatures
from mt2st_fast.data.character_ngrams import character_ngrams, ngram_hashes
from mt2st_fast.data.tokens import Tokens

WORDS = ["walking", "naïve", "日本語", "x😀y", "a", "é", "", "<", "walk", "\udce9t"]


def bags_of(features, documents):
    ids, bounds = features.bags(Tokens.of(documents))
    assert ids.dtype == np.int32
    return [ids[first:last].tolist() for first, last in itertools.pairwise(bounds)]


def fnv_1a(part):
    """fastText's hash, a byte at a time."""
    h = 2166136261
    for byte in part.encode("utf-8", "surrogatepass"):
        h ^= byte if byte < 128 else byte | 0xFFFFFF00
        h = h * 16777619 % 2**32
    return h


def test_parts_are_those_of_fasttext():
    # fasttext 0.9.3: get_subwords of a model with minn=1, maxn=3 and of one with minn=3, maxn=6
    assert character_ngrams("né", 1, 3) == ["<n", "<né", "n", "né", "né>", "é", "é>"]
    assert character_ngrams("walk", 3, 6) == [
        "<wa", "<wal", "<walk", "<walk>", "wal", "walk", "walk>", "alk", "alk>", "lk>",
    ]  # fmt: skip
    assert character_ngrams("né", 0, 3) == character_ngrams("né", 1, 3)
    assert character_ngrams("a", 4, 6) == []


@pytest.mark.parametrize(("minn", "maxn"), [(1, 1), (0, 3), (2, 2), (3, 6), (6, 40)])
def test_hashes_of_all_words_at_once_are_those_of_each_part(minn, maxn):
    hashes, bounds = ngram_hashes(WORDS, minn, maxn)
    assert hashes.dtype == np.uint32
    for word, (first, last) in zip(WORDS, itertools.pairwise(bounds), strict=True):
        assert hashes[first:last].tolist() == [fnv_1a(part) for part in character_ngrams(word, minn, maxn)]


def test_no_words_have_no_ngrams():
    hashes, bounds = ngram_hashes([], 3, 6)
    assert (len(hashes), bounds.tolist()) == (0, [0])


def test_subwords_are_those_of_fasttext():
    features = BagFeatures.learn(Tokens.of([["né", "né", "a"]]), 1, 1, 1000, minn=1, maxn=3)
    parts, ids = features.subwords("né")
    assert parts == ["né", "<n", "<né", "n", "né", "né>", "é", "é>"]
    buckets = [655, 143, 553, 165, 737, 777, 781]
    assert ids.tolist() == [0, *(2 + bucket for bucket in buckets)]
    parts, ids = features.subwords("né>")
    assert parts == ["<n", "<né", "n", "né", "né>", "é", "é>", "é>>", ">", ">>"]
    assert (ids - 2).tolist() == [*buckets, 385, 777, 493]


def test_bags_hold_the_ngrams_of_unknown_words_too():
    documents = [["b", "rare", "b"], [], ["rare"], ["b"]]
    features = BagFeatures.learn(Tokens.of([["b", "b"], ["c"]]), 2, 1, 1000, minn=2, maxn=3)
    b, rare = features.subwords("b")[1].tolist(), features.subwords("rare")[1].tolist()
    assert (b[0], len(b), len(rare)) == (0, 4, 9)
    assert min(b[1:] + rare) >= 1
    assert max(b + rare) < features.size == 1001
    assert bags_of(features, documents) == [b + rare + b, [], rare, b]


def test_word_ngrams_stand_behind_the_character_ngrams():
    documents = [["walking", "on", "walking"], ["on", "new", "walking"]]
    words = BagFeatures.learn(Tokens.of(documents), 1, 2, 1000)
    both = BagFeatures.learn(Tokens.of(documents), 1, 2, 1000, minn=3, maxn=4)
    assert both.vocabulary.words == words.vocabulary.words
    for document, of_words, of_both in zip(
        documents, bags_of(words, documents), bags_of(both, documents), strict=True
    ):
        parts = list(itertools.chain.from_iterable(both.subwords(word)[1].tolist() for word in document))
        assert of_both == parts + of_words[len(document) :]


def test_blocks_of_documents_change_nothing(monkeypatch):
    documents = [[WORDS[(i * j) % 5] for j in range(i % 4)] for i in range(23)]
    features = BagFeatures.learn(Tokens.of(documents), 2, 3, 1000, minn=2, maxn=4)
    at_once = bags_of(features, documents)
    monkeypatch.setattr(bag_features, "DOCUMENTS_AT_ONCE", 4)
    assert bags_of(features, documents) == at_once
    assert [bag for document in documents for bag in bags_of(features, [document])] == at_once
    assert bags_of(features, []) == []


def test_a_word_is_hashed_once(monkeypatch):
    asked = []

    def noted(words, minn, maxn):
        asked.extend(words)
        return ngram_hashes(words, minn, maxn)

    documents = [["a", "b", "a"], ["b"], ["a", "c"]]
    features = BagFeatures.learn(Tokens.of(documents), 1, 1, 100, minn=2, maxn=3)
    monkeypatch.setattr(ngrams, "ngram_hashes", noted)
    features.bags(Tokens.of(documents))
    assert sorted(asked) == ["a", "b", "c"]


def test_without_ngrams_there_are_no_buckets():
    assert BagFeatures.learn(Tokens.of([["a"]]), 1, 1, 1000).size == 1
