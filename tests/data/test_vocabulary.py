"""Vocabulary order and files; the rows of subwords."""

import subprocess
import sys

import numpy as np
import pytest

from mt2st_fast.data import Vocabulary, subword_rows
from mt2st_fast.data.subwords import word_shape
from mt2st_fast.errors import InputError


def test_ids_run_by_training_count_then_alphabet_and_unseen_types_come_last():
    vocabulary = Vocabulary.build(["b", "c", "a", "c", "b", "z"], ["new", "a"], ["late", "new"])
    assert vocabulary.words == ["b", "c", "a", "z", "late", "new"]
    assert vocabulary.counts.tolist() == [2, 2, 1, 1, 0, 0]
    assert vocabulary.counts.dtype == np.int64
    ids = vocabulary.ids_of(["new", "b", "b"])
    assert ids.tolist() == [5, 0, 0]
    assert ids.dtype == np.int32


NAMES = [
    ["", "a", "a\0", "a\0\0", "a\0b", "b", "\0"],
    ["internationa", "international", "internationally", "internet", "inter", "interna\0", "interna"],
    ["é", "e", "z", "\ud800", "\uffff", "🙂", "日本語", "日本", "\x7f", "\x80"],
    ["two\nlines", "two", "lines", "twolines", "two\nlinesx"],
    [f"{'same-beginning' * 2}{i}" for i in range(40)],
    [str(i) for i in range(300)],
]


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("most", [1, 2, 50])
def test_words_of_one_count_stand_in_pythons_order(names, most):
    rng = np.random.default_rng(most)
    words, counts = (
        [names[i] for i in rng.permutation(len(names))],
        rng.integers(1, most, len(names), endpoint=True),
    )
    expected = sorted(zip(words, counts.tolist(), strict=True), key=lambda item: (-item[1], item[0]))
    vocabulary, id_of = Vocabulary.numbered(words, counts)
    assert list(zip(vocabulary.words, vocabulary.counts.tolist(), strict=True)) == expected
    assert [vocabulary.words[i] for i in id_of] == words
    assert id_of.dtype == np.int32
    least = int(counts.max())
    for frequent in (Vocabulary.from_counts(words, counts, min_count=least), vocabulary.frequent(least)):
        assert frequent.words == [word for word, count in expected if count >= least]


def test_a_vocabulary_without_words():
    assert Vocabulary.numbered([], np.empty(0, np.int64))[0].words == []
    assert Vocabulary.from_counts([], []).words == []


def test_frequent_types_of_a_vocabulary_in_another_order():
    assert Vocabulary(["rare", "often"], [1, 9]).frequent(2).words == ["often"]
    with pytest.raises(InputError, match="no word occurs at least 10 times"):
        Vocabulary(["rare", "often"], [1, 9]).frequent(10)


def test_json_keeps_words_counts_and_ids():
    vocabulary = Vocabulary.build(["ä", '"quoted"', "ä"], ["日本"])
    loaded = Vocabulary.from_json(vocabulary.to_json().encode())
    assert loaded.words == vocabulary.words
    assert loaded.counts.tolist() == vocabulary.counts.tolist()
    assert loaded.ids_of(["日本"]).tolist() == [2]


def test_ids_of_names_an_unknown_word():
    with pytest.raises(InputError, match="'x' is not in the vocabulary of 1 types"):
        Vocabulary.build(["a"]).ids_of(["a", "x"])


def test_frequent_types_have_their_own_row_and_rare_ones_share_unk():
    table = subword_rows(["the", "of", "once", "never"], np.array([9, 2, 1, 0]), buckets=10)
    assert table.rows.dtype == np.int32
    assert table.padding_row == 0
    assert table.rows[:, 0].tolist() == [1, 2, 3, 3]
    assert table.num_rows == 1 + 2 + 1 + 10


def test_hashed_rows_are_prefixes_suffixes_and_shape_padded_at_the_end():
    table = subword_rows(["banana", "of"], np.array([5, 5]), buckets=1000)
    # banana: 3 prefixes, 4 suffixes, shape; of: 2 prefixes, 2 suffixes, shape
    assert table.rows.shape == (2, 1 + 8)
    assert (table.rows[1, 6:] == 0).all()
    hashed = np.concatenate([table.rows[0, 1:], table.rows[1, 1:6]])
    assert hashed.min() > 3
    assert hashed.max() < table.num_rows


def test_words_share_the_rows_of_the_parts_they_share():
    table = subword_rows(["walking", "talking", "Walking"], np.zeros(3), buckets=20_000)
    walking, talking, capital = (set(row.tolist()) for row in table.rows)
    assert len(walking & talking) == 1 + 4 + 1  # <unk>, four suffixes, the shape
    assert len(walking & capital) == 1 + 3 + 4  # all but the shape


def test_character_ngrams_are_off_until_asked_for():
    plain = subword_rows(["abc"], np.zeros(1), max_prefix=0, max_suffix=0, shape=False)
    ngrams = subword_rows(["abc"], np.zeros(1), max_prefix=0, max_suffix=0, shape=False, min_n=3, max_n=5)
    assert plain.rows.shape == (1, 1)
    assert ngrams.rows.shape == (1, 1 + 3 + 2 + 1)  # <abc> has 3 trigrams, 2 four-grams, 1 five-gram


def test_no_buckets_leave_one_row_a_type():
    table = subword_rows(["a", "b"], np.array([2, 1]), buckets=0)
    assert table.rows.tolist() == [[1], [2]]
    assert table.num_rows == 3


@pytest.mark.parametrize(
    ("word", "shape"), [("Hello", "Xx"), ("USA", "X"), ("e-mail", "x-x"), ("3rd", "dx"), ("__init__", "_x_")]
)
def test_word_shape(word, shape):
    assert word_shape(word) == shape


def test_hashed_rows_are_the_same_in_another_process():
    code = (
        "import numpy as np; from mt2st_fast.data.subwords import subword_rows; "
        "print(subword_rows(['banana'], np.zeros(1)).rows.tolist())"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == str(subword_rows(["banana"], np.zeros(1)).rows.tolist())


def test_get_gives_the_default_for_an_unknown_word():
    vocabulary = Vocabulary(["a", "b"], [2, 1])
    assert [vocabulary.get(word, -1) for word in ("b", "c", "a")] == [1, -1, 0]
