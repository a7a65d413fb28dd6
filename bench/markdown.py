"""Tables of the report: which columns stand to the left."""

from __future__ import annotations

from collections.abc import Sequence

from mt2st_fast.runs.markdown import markdown_table


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    """The lines of a table; its first `words` columns and the last of an empty name or "required" stand to the left."""
    left = [column < words or name in ("", "required", "of") for column, name in enumerate(heading)]
    names = [name if is_left else f"{name}:" for name, is_left in zip(heading, left, strict=True)]
    return markdown_table(names, rows)
