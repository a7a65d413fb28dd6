"""Classes that training never saw, and texts that it sees in every part: how many of which part, in one line."""

from __future__ import annotations

import numpy as np
import pytest

from mt2st_fast.data import MISSING, Corpus, Splits, TargetColumn, Tokens, Vocabulary
from mt2st_fast.data.record import alike_classes, labels_read, never_seen, repeated_texts, unseen_classes


def splits_of(kind, names, **columns):
    """Documents of one word, with those targets of the task t in each part."""

    def corpus(values):
        target = np.array(values, np.int64 if kind == "classes" else np.float32)
        n = len(target)
        return Corpus(
            np.zeros(n, np.int32), np.arange(n + 1), {"t": TargetColumn(kind, names, target)}, "document"
        )

    parts = {part: corpus(columns[part]) for part in ("train", "dev", "test")}
    return Splits(**parts, vocabulary=Vocabulary(["w"], np.array([1])), name="x", main="t")


def test_classes_are_counted_by_part_the_most_frequent_first():
    splits = splits_of("classes", tuple("abcd"), train=[0, 1, MISSING], dev=[2, 3, 3, 0], test=[1, 3])
    [unseen] = unseen_classes(splits)
    assert unseen.rows == {"dev": 3, "test": 1}
    assert unseen.names == ("d", "c")
    assert unseen.line() == (
        "t: classes that do not occur in training, so they cannot be learned, in 3 dev rows and 1 test row: d, c"
    )
    assert never_seen(splits.train.column("t")) == ("c", "d")
    [labels] = labels_read(splits)
    assert labels["labelled"] == {"train": 2, "dev": 4, "test": 2}
    assert labels["unseen"] == {"dev": 3, "test": 1}


def test_labels_are_counted_by_row():
    rows = [[1, 0, 0], [np.nan, np.nan, np.nan]]
    splits = splits_of("labels", tuple("abc"), train=rows, dev=[[1, 1, 1], [1, 0, 0]], test=rows)
    [unseen] = unseen_classes(splits)
    assert unseen.rows == {"dev": 1}
    assert unseen.names == ("b", "c")


def test_a_class_in_another_spelling_is_told():
    names = ("True", "TRUE", "x", "y")
    [unseen] = unseen_classes(splits_of("classes", names, train=[0], dev=[1, 2, 3], test=[1]))
    assert unseen.line().endswith(
        ": TRUE, x, y; training has 'True', not 'TRUE': spell them alike in every file"
    )


def test_training_classes_that_look_alike_are_told():
    names = ("Pos", "pos", "n\u00e9", "ne\u0301", "x", "X")
    splits = splits_of("classes", names, train=[0, 1, 2, 3, 4], dev=[5], test=[1])
    assert alike_classes(splits) == [
        "t: different classes, though they differ just in case, blanks or signs that look alike: 'Pos' and 'pos', "
        "'n\\xe9' and 'ne\\u0301'; spell them alike if they are the same"
    ]
    assert "training has 'x', not 'X'" in unseen_classes(splits)[0].line()
    assert alike_classes(splits_of("classes", ("a", "b"), train=[0, 1], dev=[0], test=[0])) == []
    assert alike_classes(splits_of("values", ("t",), train=[[1]], dev=[[2]], test=[[3]])) == []


def test_nothing_is_said_where_training_saw_all_or_there_are_numbers():
    assert unseen_classes(splits_of("classes", ("a", "b"), train=[0], dev=[0], test=[MISSING])) == []
    assert unseen_classes(splits_of("values", ("t",), train=[[1]], dev=[[2]], test=[[3]])) == []


TEN, FOUR = "ten words that nobody would write twice by chance here", "so few are everyday"


def splits_of_texts(level="document", files_of=None, **texts):
    """Texts of each part, in files of so many."""
    vocabulary = Vocabulary.build(*(" ".join(part).split() for part in texts.values()))

    def corpus(part):
        tokens = Tokens.of([text.split() for text in part], vocabulary)
        groups = None if files_of is None else np.arange(0, len(part) + 1, files_of)
        return Corpus(tokens.ids, tokens.bounds, {}, level, groups)

    return Splits(**{part: corpus(own) for part, own in texts.items()}, vocabulary=vocabulary, name="x")


def numbered(n, of=TEN):
    return [f"{of} {i}" for i in range(n)]


TRAIN, OTHERS = [*numbered(100), FOUR], numbered(147, "other words of a text that is not there")


def test_held_out_texts_that_are_training_texts_are_told_in_one_line():
    [line] = repeated_texts(splits_of_texts(train=TRAIN, dev=OTHERS, test=[*OTHERS, *TRAIN[7:10]]))
    assert line == (
        "in the training text too, word for word: 3 of 150 test documents (2 % of the rows), those under 5 words not "
        "counted; results on them are partly from memory, so remove them from one of the parts"
    )
    both = splits_of_texts("token", train=TRAIN, dev=TRAIN[:3], test=[*OTHERS, *TRAIN[:9]])
    [line] = repeated_texts(both)
    assert (
        "word: 3 of 3 dev sentences (100 % of the rows) and 9 of 156 test sentences (6 % of the rows),"
        in line
    )
    assert repeated_texts(splits_of_texts(train=TRAIN, dev=TRAIN[:9], test=OTHERS), ["test"]) == ()


@pytest.mark.parametrize(
    "test",
    [[*OTHERS, "a longer text than the others are", *TRAIN[7:10]], TRAIN[:2], [FOUR] * 20, []],
    ids=["under 2 %", "two of two", "everyday texts", "empty"],
)
def test_nothing_is_said_of_few_texts_and_of_everyday_ones(test):
    assert repeated_texts(splits_of_texts(train=TRAIN, dev=[], test=test)) == ()


def test_lines_that_files_share_are_nothing_but_whole_files_are():
    train = TRAIN[:100]
    assert repeated_texts(splits_of_texts(files_of=20, train=train, dev=[], test=train[1:41])) == ()
    [line] = repeated_texts(splits_of_texts(files_of=10, train=train, dev=[], test=train[:40]))
    assert "word: 4 of 4 test files (100 %" in line
