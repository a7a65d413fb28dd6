"""Tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_BARS = re.compile(r"\\*\|")


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a table. A column whose name ends in ":" is right-aligned and shown without the colon.

    A cell may hold any text: bars and line breaks are escaped. Raises ValueError for a row with another number of cells
    than there are columns.
    """
    names = [column.removesuffix(":") for column in columns]
    lines = [_row(names), "|" + "|".join("---:" if c.endswith(":") else "---" for c in columns) + "|"]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(columns)} columns: {row}")
        lines.append(_row(row))
    return lines


def one_line(text: object) -> str:
    """Return a text without its line breaks."""
    return " ".join(str(text).split())


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(_BARS.sub(_escaped, one_line(cell)) for cell in cells) + " |"


def _escaped(bar: re.Match[str]) -> str:
    """Escape a bar, and each of the backslashes before it, with a backslash."""
    return "".join(f"\\{sign}" for sign in bar[0])
