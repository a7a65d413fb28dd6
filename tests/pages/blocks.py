"""The code blocks of a page, in order, and what the page says of how they are tested.

A block is run as it stands. An HTML comment on the line before it may say otherwise, with a reason:

    <!-- parsed: REASON -->     its commands are parsed by the programs that they call, and not run
    <!-- not run: REASON -->    nothing is tested

The first line of a page may be `<!-- goes on from PAGE -->`: its blocks find the files that the blocks of PAGE leave.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))

_FENCE = re.compile(r"(\s*)```(.*)")
_MARK = re.compile(r"<!-- (parsed|not run): (.+) -->")
_BEFORE = re.compile(r"<!-- goes on from ([\w./-]+) -->")


@dataclass(frozen=True)
class Block:
    """line: of the page, counted from 1, that its code begins on. mark: "" for what is run as it stands."""

    page: str
    line: int
    language: str
    code: str
    mark: str = ""
    reason: str = ""


@cache
def text_of(page: str) -> str:
    """A page by its path under docs/, or README.md."""
    return ((ROOT if page == "README.md" else DOCS) / page).read_text("utf-8")


@cache
def blocks_of(page: str) -> tuple[Block, ...]:
    """Its blocks in order. Raises ValueError for a fence that is not closed, is indented or names no language."""
    found, lines = [], text_of(page).splitlines()
    opened: int | None = None
    for number, line in enumerate(lines, 1):
        fence = _FENCE.fullmatch(line)
        if fence is None:
            continue
        if opened is not None:
            found.append(_block(page, lines, opened, number))
            opened = None
        elif fence[1] or not fence[2]:
            raise ValueError(f"{page}, line {number}: a fence stands at the margin and names a language")
        else:
            opened = number
    if opened is not None:
        raise ValueError(f"{page}, line {opened}: the block is not closed")
    return tuple(found)


def _block(page: str, lines: list[str], opened: int, closed: int) -> Block:
    """opened, closed: the lines of its fences, counted from 1."""
    before = lines[opened - 2].strip() if opened >= 2 else ""
    mark = _MARK.fullmatch(before)
    marked = (mark[1], mark[2]) if mark else ("", "")
    code = "".join(f"{line}\n" for line in lines[opened : closed - 1])
    return Block(page, opened + 1, lines[opened - 1].strip("` "), code, *marked)


def page_before(page: str) -> str | None:
    """The page whose files this one begins with."""
    first = _BEFORE.match(text_of(page))
    return first[1] if first else None
