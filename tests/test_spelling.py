"""Names that were written otherwise."""

from __future__ import annotations

import pytest

from mt2st_fast.spelling import (
    alike,
    counted,
    in_any_case,
    listed,
    meant,
    one_number_each,
    other_spelling,
    told_apart,
)


def test_lists_end_somewhere():
    assert listed([]) == "none"
    assert listed(["a", "b"]) == "a, b"
    assert listed(map(str, range(1005)), 2) == "0, 1 and 1,003 more"


def test_what_is_counted_is_one_or_several():
    assert counted(1, "line") == "1 line"
    assert [counted(n, "cell is", "cells are") for n in (0, 1, 1005)] == [
        "0 cells are",
        "1 cell is",
        "1,005 cells are",
    ]


@pytest.mark.parametrize(
    ("name", "found"), [("Text", "Text"), ("text", "text"), ("TEXT", None), ("LABEL", "Label"), ("tex", None)]
)
def test_a_name_is_found_in_any_case_where_only_one_is_meant(name, found):
    assert in_any_case(name, ["Text", "text", "Label"]) == found


def test_the_nearest_name_is_asked_for():
    assert meant("sentimnet", ["text", "Sentiment"]) == " (did you mean 'Sentiment'?)"
    assert meant("zzz", ["text", "Sentiment"]) == ""


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (["0", "1", "0.0", "1.0"], {"0.0": "0", "1.0": "1"}),
        (["-1", "-1.00", "2.0"], {"-1.00": "-1"}),
        (["0.0", "1.0"], {}),  # nothing beside them
        (["1", "1.0", "none"], {"1.0": "1"}),
        (["1", "1.0", "1.1"], {}),  # decimals, or versions
        (["1", "1.0", "1.0.1"], {}),
        (["01", "1.0"], {}),
    ],
)
def test_whole_numbers_are_one_class_each(names, alike):
    assert one_number_each(names) == alike


@pytest.mark.parametrize(
    ("name", "known"), [("1.0", "1"), ("1", "1.0"), ("TRUE", "True"), (" a ", "a"), ("b", None), ("a", None)]
)
def test_another_spelling_of_a_known_name_is_found(name, known):
    assert other_spelling(name, ["1", "True", "a"] if known != "1.0" else ["1.0"]) == known


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("pos", "neg", "Pos"), "'pos' and 'Pos'"),
        (("not ok", "not  ok"), r"'not ok' and 'not  ok'"),
        (("n\u00e9", "ne\u0301"), r"'n\xe9' and 'ne\u0301'"),  # both are shown as é
        (("pos", "pos\u200b"), r"'pos' and 'pos\u200b'"),
        (("a", "b", "1", "1.0", "", "é", "e"), None),
    ],
)
def test_names_that_look_the_same_are_told_apart(names, told):
    assert [" and ".join(told_apart(group)) for group in alike(names)] == ([] if told is None else [told])
    if told is not None:
        assert other_spelling(names[0], names[1:]) == names[-1]
