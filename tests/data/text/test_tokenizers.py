"""Words of a text are those of one pattern, though most pieces of a text are cut once and remembered."""

from __future__ import annotations

import random
import re

import pytest

from mt2st_fast.data.text import tokenizers
from mt2st_fast.data.text.tokenizers import TOKENIZERS, WORD

# Letters of several kinds, marks that hold words together, every kind of blank.
LETTERS = "aAßΣσİı1_'’-.,…日😀\u0301 \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u2028\u3000\u200b\ufeff"


@pytest.mark.parametrize("seed", range(4))
def test_words_are_those_of_the_pattern(seed):
    draw = random.Random(seed)
    for _ in range(200):
        text = "".join(draw.choices(LETTERS, k=draw.randrange(60)))
        assert TOKENIZERS["words"](text) == re.findall(WORD, text)
        assert TOKENIZERS["lowered words"](text) == re.findall(WORD, text.lower())


@pytest.mark.parametrize("most", [1, 3])
def test_few_pieces_are_remembered_and_none_that_is_long(monkeypatch, most):
    pieces = tokenizers._Pieces()
    monkeypatch.setattr(tokenizers, "_pieces", pieces)
    monkeypatch.setattr(tokenizers, "MOST_PIECES", most)
    for text in ("a, b, c, d,", "a, a, b", "x" * 1000 + ","):
        assert TOKENIZERS["words"](text) == re.findall(WORD, text)
        assert len(pieces) <= most
    assert max(map(len, pieces)) < 10
