"""Tables in Markdown."""

from __future__ import annotations

import pytest

from mt2st_fast.markdown import markdown_table


def test_numbers_stand_to_the_right():
    assert markdown_table(("task", "steps:"), [("a", 3), ("b", "–")]) == [
        "| task | steps |",
        "|---|---:|",
        "| a | 3 |",
        "| b | – |",
    ]


def test_no_cell_breaks_the_table():
    (*_, row) = markdown_table(("task", "why"), [("a|b", "one\ntwo")])
    assert row == r"| a\|b | one two |"


def test_a_backslash_before_a_bar_does_not_free_it():
    (*_, row) = markdown_table(("task",), [("a\\|b",)])
    assert row == r"| a\\\|b |"


def test_a_row_of_another_width_is_refused():
    with pytest.raises(ValueError, match="1 cells in a table of 2 columns"):
        markdown_table(("task", "why"), [("a",)])
