"""The container of text: what it holds, what it refuses, and how it is renumbered."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mt2st_fast.data import Tokens, Vocabulary
from mt2st_fast.errors import InputError

TEXT = [["b", "a", "b"], [], ["c"]]


def test_words_are_numbered_by_falling_count_then_alphabetically() -> None:
    text = Tokens.of(TEXT)
    assert text.vocabulary.words == ["b", "a", "c"]
    assert text.vocabulary.counts.tolist() == [2, 1, 1]
    assert (text.ids.tolist(), text.bounds.tolist(), text.n_units) == ([0, 1, 0, 2], [0, 3, 3, 4], 3)
    assert (text.ids.dtype, text.bounds.dtype) == (np.int32, np.int64)
    assert Tokens.of([]).n_units == 0


def test_words_outside_a_vocabulary_are_missing() -> None:
    vocabulary = Vocabulary(["a", "b"], [5, 1])
    text = Tokens.of(TEXT, vocabulary)
    assert text.ids.tolist() == Tokens.of(TEXT).in_vocabulary(vocabulary).ids.tolist() == [1, 0, 1, -1]
    assert text.in_vocabulary(Vocabulary(["b"], [1])).ids.tolist() == [0, -1, 0, -1]


def test_the_same_ids_are_not_copied() -> None:
    text = Tokens.of(TEXT)
    assert text.in_vocabulary(Vocabulary(["b", "a", "c", "d"], [1, 1, 1, 1])).ids is text.ids


def test_rarer_words_become_missing() -> None:
    text = Tokens.of([*TEXT, ["b", "a"]]).in_vocabulary(Vocabulary(["b", "a"], [3, 2]))
    assert (text.ids.tolist(), text.ids.dtype) == ([0, 1, 0, -1, 0, 1], np.int32)
    again = text.in_vocabulary(Vocabulary(["b"], [3]))
    assert (again.ids.tolist(), again.bounds.tolist()) == ([0, -1, 0, -1, 0, -1], [0, 3, 3, 4, 6])


@pytest.mark.parametrize(
    ("ids", "bounds"),
    [
        ([0, 3], [0, 2]),
        ([0, -2], [0, 2]),
        ([0, 1], [0, 1]),
        ([0, 1], [1, 2]),
        ([0, 1], [0, 2, 1, 2]),
        ([0, 1], []),
    ],
)
def test_numbers_that_kernels_must_not_see_are_refused(ids: list[int], bounds: list[int]) -> None:
    vocabulary = Vocabulary(["a", "b", "c"], [1, 1, 1])
    with pytest.raises(ValueError, match=r"outside the vocabulary|bounds"):
        Tokens(np.array(ids, np.int32), np.array(bounds, np.int64), vocabulary)
    with pytest.raises(ValueError, match="int32"):
        Tokens(np.array([0], np.int64), np.array([0, 1]), vocabulary)


@pytest.mark.parametrize(("sentences", "message"), [(["a b"], "split it"), ([["a", 3]], "not 3")])
def test_what_is_no_list_of_words_is_named(sentences: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Tokens.of(sentences)


@pytest.mark.parametrize(
    "content",
    [
        [],
        [1],
        {},
        {"words": ["a"]},
        {"words": ["a"], "counts": [1, 2]},
        {"words": ["a", "a"], "counts": [1, 2]},
        {"words": ["a"], "counts": [-1]},
        {"words": ["a"], "counts": [1.5]},
        {"words": [1], "counts": [1]},
        {"words": "a", "counts": 1},
        {"words": ["a"], "counts": [1 << 70]},
    ],
)
def test_a_damaged_vocabulary_is_refused(content: object) -> None:
    with pytest.raises(ValueError, match=r"vocabulary|words but counts"):
        Vocabulary.from_json(json.dumps(content).encode())
