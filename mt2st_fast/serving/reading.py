"""Read text to be labelled from a file or a pipe, block by block, so that memory does not grow with the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from mt2st_fast.data.readers.conllu import FIRST_ID, check_form, is_word
from mt2st_fast.data.text.lines import TextLines
from mt2st_fast.data.text.tokenizers import Cut
from mt2st_fast.errors import InputError

WORDS_AT_ONCE = 8192
CONLLU_COLUMNS = 10

_Lines = Iterator[tuple[int, list[str]]]


@dataclass(slots=True)
class Unit:
    """A sentence or document: its words, and its lines in the input.

    words_at: for a CoNLL-U sentence, the index of each word's line in `lines`; None for plain text, where a unit is one
    line.
    """

    words: list[str]
    lines: list[str] = field(default_factory=list)
    words_at: list[int] | None = None


def read_units(chunks: Iterable[bytes], where: str, cut: Cut, kind: str = "auto") -> Iterator[list[Unit]]:
    """Yield blocks of units from the bytes of a text, split into lines as all readers do; `cut` splits a line into
    words.

    kind: "conllu", "text" (one unit per line), or "auto" (by the first line).

    Raises InputError, naming the line, for invalid UTF-8 or CoNLL-U.
    """
    lines = TextLines(chunks, where).blocks()
    if kind == "auto":
        lines, kind = _kind_of(lines)
    if kind == "conllu":
        units = _sentences(lines, where)
    elif kind == "text":
        units = (Unit(cut(line), [line]) for _, some in lines for line in some)
    else:
        raise InputError(f"input must be auto, conllu or text, not {kind!r}")
    return _blocks(units)


def _kind_of(lines: _Lines) -> tuple[_Lines, str]:
    """Return the same lines, and their kind by the first one that is neither empty nor a comment."""
    seen, kind = [], None
    for number, some in lines:
        seen.append((number, some))
        for line in some:
            if kind is None and line.strip() and not line.startswith("#"):
                columns = line.split("\t")
                is_word = len(columns) == CONLLU_COLUMNS and columns[0][:1].isdigit()
                kind = "conllu" if is_word else "text"
        if kind is not None:
            break
    return chain(seen, lines), kind or "text"


def _sentences(lines: _Lines, where: str) -> Iterator[Unit]:
    unit, words_at = Unit([]), list[int]()
    for first, some in lines:
        for at, line in enumerate(some):
            if not line or line.isspace():
                if unit.lines:
                    unit.words_at = words_at
                    yield unit
                    unit, words_at = Unit([]), []
                continue
            if line[0] != "#":
                if line.count("\t") != CONLLU_COLUMNS - 1:
                    raise _no_word(line, where, first + at)
                place, word, _ = line.split("\t", 2)
                place = place.strip(" ")
                if place.isdecimal() or is_word(place, where, first + at):
                    if place == FIRST_ID and words_at:  # the blank line before this sentence is missing
                        begun = _begin_of_next(unit, words_at[-1] + 1)
                        unit.words_at, unit.lines = words_at, unit.lines[: -len(begun) or None]
                        yield unit
                        unit, words_at = Unit([], begun), []
                    if " " in word:
                        word = word.strip(" ")
                    if not word:
                        check_form(word, where, first + at)
                    words_at.append(len(unit.lines))
                    unit.words.append(word)
            unit.lines.append(line)
    if unit.lines:
        unit.words_at = words_at
        yield unit


def _begin_of_next(unit: Unit, at: int) -> list[str]:
    """Return the lines of a unit from `at` on that belong to the next sentence: its comments, and its first range."""
    lines = unit.lines[at:]
    first = next((i for i, line in enumerate(lines) if line.startswith(("#", "1-", "0."))), len(lines))
    return lines[first:]


def _no_word(line: str, where: str, number: int) -> InputError:
    columns = 1 + line.count("\t")
    return InputError(
        f"{where}:{number}: a CoNLL-U line has 10 tab-separated columns, but this one has {columns}; if the file is "
        "text, use --input text"
    )


def _blocks(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    block: list[Unit] = []
    n_words = 0
    for unit in units:
        block.append(unit)
        n_words += 1 + len(unit.words)
        if n_words >= WORDS_AT_ONCE:
            yield block
            block, n_words = [], 0
    if block:
        yield block
