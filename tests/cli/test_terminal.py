"""What a terminal shows is whole, whatever its width."""

from __future__ import annotations

import codecs
import io

import pytest
from rich.console import Console
from rich.table import Table

from mt2st_fast.cli.terminal import MOST_TABLE_WIDTH, in_ascii, say_table


@pytest.mark.parametrize("width", [20, 60, 200])
@pytest.mark.parametrize("no_wrap", [False, True])
def test_no_number_and_no_name_of_a_table_is_cut_short(width: int, no_wrap: bool) -> None:
    cells = ["alternate-steps (torch)", "-1,051.1816", "0.9286", "+425 %", "2 of 3"]
    table = Table()
    for i in range(len(cells)):
        table.add_column(f"name {i} of it", no_wrap=no_wrap)
    table.add_row(*cells)
    console = Console(file=io.StringIO(), width=width)
    say_table(console, table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    words = cells if no_wrap else " ".join(cells).split()
    assert all(word in shown for word in words), shown
    assert console.width == width


@pytest.mark.parametrize("width", range(20, 60, 3))
def test_a_table_is_shown_to_its_right_edge(width: int) -> None:
    table = Table("task", "outputs", "metric", "dev, last active", "test, at the end", "retired at step")
    table.add_row("topic", "2", "accuracy", "1.0000", "1.0000", "18")
    console = Console(file=io.StringIO(), width=width)
    say_table(console, table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert {line[-1] for line in lines} == set("┓┃┩│┘")
    assert len(set(map(len, lines))) == 1


def test_what_an_encoding_does_not_have_is_written_in_ascii() -> None:
    codecs.register_error(in_ascii.__name__, in_ascii)
    assert "4 µs × 2, – … 字 ’s".encode("ascii", in_ascii.__name__) == b"4 us x 2, - ... ? 's"
    assert "–é.txt: \udcc3\udca9.txt".encode("ascii", in_ascii.__name__) == "-?.txt: é.txt".encode()
    assert "\udcc3.txt".encode("utf-8", in_ascii.__name__) == b"?.txt"


def test_a_word_of_any_length_does_not_make_a_table_of_any_width() -> None:
    table = Table("word")
    table.add_row("x" * 5000)
    console = Console(file=io.StringIO(), width=80)
    say_table(console, table)
    assert max(map(len, console.file.getvalue().splitlines())) == MOST_TABLE_WIDTH  # type: ignore[attr-defined]
