"""Consoles of the commands: user text is printed literally, and a line stays one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mt2st_fast.files import STANDARD_OUTPUT, naming

MOST_NOTES = 8
MOST_TABLE_WIDTH = 200  # a single word may be longer than any screen


class _Console(Console):
    """A console whose errors are those of its stream, for `main` to tell."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print as rich does; an error of a full disk names the stream."""
        with naming("standard error" if self.stderr else STANDARD_OUTPUT):
            super().print(*args, **kwargs)

    def on_broken_pipe(self) -> None:
        """Leave: rich would do so with the exit code of a failure."""
        leave_unread()


IN_ASCII = {"–": "-", "−": "-", "’": "'", "…": "...", "×": "x", "µ": "u"}


def in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write what an encoding does not have as it is written in ASCII, or as ?: a handler of encoding errors.

    In ASCII, letters of a path are the bytes that it was given in, which a terminal may show all the same.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    if error.encoding == "ascii" and "\udc80" <= error.object[error.start] <= "\udcff":
        return bytes([ord(error.object[error.start]) - 0xDC00]), error.start + 1
    return "".join(IN_ASCII.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


def leave_unread() -> NoReturn:
    """End a command whose output nobody reads any more, as SIGPIPE does: with nothing said, and exit code 141.

    It is called where the error is, as typer would end the command with the exit code of a failure.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails as well
    sys.exit(141)


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console without markup and emoji codes: a column may be named `[/5]` or `:heart:`."""
    return _Console(stderr=stderr, markup=False, emoji=False)


def say(console: Console, *parts: str | tuple[str, str]) -> None:
    """Print texts and (text, style) pairs as one line, whatever the width."""
    console.print(Text.assemble(*(p if isinstance(p, tuple) else (p, "") for p in parts)), soft_wrap=True)


def say_table(console: Console, table: Table) -> None:
    """Print a table, wider than the console if need be: rich would cut words and numbers short (0.9…)."""
    options = console.options.update(max_width=MOST_TABLE_WIDTH)
    for column in table.columns:
        found = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
        column.min_width = max(each.maximum if column.no_wrap else each.minimum for each in found)
    own = console.width
    needed = Measurement.get(console, options, table).minimum
    console.width = max(own, min(needed, MOST_TABLE_WIDTH))
    try:
        # rich shares out widths in whole numbers, and may end a letter or two wider, which it would cut off.
        console.print(table, crop=needed >= MOST_TABLE_WIDTH)
    finally:
        console.width = own


def say_notes(console: Console, notes: Sequence[str], where: str) -> None:
    """Print the first notes, one per line, and say where to find the others."""
    for note in notes[:MOST_NOTES]:
        say(console, note)
    if len(notes) > MOST_NOTES:
        say(console, f"... and {len(notes) - MOST_NOTES:,} more notes on the data in {where}")
