"""The one writer of tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    """The lines of a table; its first `words` columns and the last of an empty name or "required" stand to the left."""
    left = [column < words or name in ("", "required", "of") for column, name in enumerate(heading)]
    rule = ["---" if is_left else "---:" for is_left in left]
    return [f"| {' | '.join(row)} |" for row in (heading, rule, *rows)]
