"""Consoles of the commands: what a user named is printed as it is named, and a line stays a line."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

MOST_NOTES = 8


def plain_console(*, stderr: bool = False) -> Console:
    """A console that knows neither markup nor emoji codes: a column may be named `[/5]` or `:heart:`."""
    return Console(stderr=stderr, markup=False, emoji=False)


def say(console: Console, *parts: str | tuple[str, str]) -> None:
    """Print one line, whatever the width, of texts and (text, style) pairs."""
    console.print(Text.assemble(*(p if isinstance(p, tuple) else (p, "") for p in parts)), soft_wrap=True)


def say_notes(console: Console, notes: Sequence[str], where: str) -> None:
    """A line for each of the first notes, and one that says where the others are."""
    for note in notes[:MOST_NOTES]:
        say(console, note)
    if len(notes) > MOST_NOTES:
        say(console, f"... and {len(notes) - MOST_NOTES:,} more notes on the data in {where}")
