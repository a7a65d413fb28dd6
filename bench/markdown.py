"""Tables of the report, with the alignment of their columns."""

from __future__ import annotations

from collections.abc import Sequence

from mt2st_fast.markdown import markdown_table


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    """Return a table's lines; the first `words` columns and those named "", "required" or "of" are left-aligned."""
    left = [column < words or name in ("", "required", "of") for column, name in enumerate(heading)]
    names = [name if is_left else f"{name}:" for name, is_left in zip(heading, left, strict=True)]
    return markdown_table(names, rows)
