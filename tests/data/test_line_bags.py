"""Bags of lines in blocks: those that the documents of a file have, wherever the blocks end."""

from __future__ import annotations

import numpy as np
import pytest

from mt2st_fast.data import line_bags
from mt2st_fast.data.bag_features import BagFeatures
from mt2st_fast.data.line_bags import LineBags
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError

WORDS = [f"w{i}" for i in range(40)]
FEATURES = {
    "words": BagFeatures(Vocabulary(WORDS[:30], [1] * 30), 1, 0),
    "word n-grams": BagFeatures(Vocabulary(WORDS[:30], [1] * 30), 3, 1000),
    "both": BagFeatures(Vocabulary(WORDS[:30], [1] * 30), 2, 1000, 2, 4),
}


def documents(n=200):
    rng = np.random.default_rng(0)
    return [[WORDS[i] for i in rng.integers(0, 40, rng.integers(0, 9))] for _ in range(n)]


@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("block", [1, 7, 200])
@pytest.mark.parametrize("most_words", [1 << 22, 20])
def test_blocks_have_the_bags_of_the_whole(kind, block, most_words, monkeypatch):
    monkeypatch.setattr(line_bags, "MOST_WORDS", most_words)
    given = documents()
    wanted_ids, wanted_bounds = FEATURES[kind].bags(Tokens.of(given))
    make_bags = LineBags(FEATURES[kind], "__label__")
    ids, lengths = [], []
    for first in range(0, len(given), block):
        lines = [" __label__x ".join(words) for words in given[first : first + block]]
        found, bounds = make_bags(lines)
        ids.append(found)
        lengths.append(np.diff(bounds))
    assert np.concatenate(ids).tolist() == wanted_ids.tolist()
    assert np.concatenate(lengths).tolist() == np.diff(wanted_bounds).tolist()


def test_no_lines_have_no_bags():
    ids, bounds = LineBags(FEATURES["both"], "__label__")([])
    assert (len(ids), bounds.tolist()) == (0, [0])


def test_half_a_character_is_named():
    with pytest.raises(InputError, match="a lone surrogate"):
        LineBags(FEATURES["words"], "__label__")(["a", "\ud800"])
