"""Consoles of the commands: user text is printed literally, and a line stays one line."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

MOST_NOTES = 8


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console without markup and emoji codes: a column may be named `[/5]` or `:heart:`."""
    return Console(stderr=stderr, markup=False, emoji=False)


def say(console: Console, *parts: str | tuple[str, str]) -> None:
    """Print texts and (text, style) pairs as one line, whatever the width."""
    console.print(Text.assemble(*(p if isinstance(p, tuple) else (p, "") for p in parts)), soft_wrap=True)


def say_notes(console: Console, notes: Sequence[str], where: str) -> None:
    """Print the first notes, one per line, and say where to find the others."""
    for note in notes[:MOST_NOTES]:
        say(console, note)
    if len(notes) > MOST_NOTES:
        say(console, f"... and {len(notes) - MOST_NOTES:,} more notes on the data in {where}")
