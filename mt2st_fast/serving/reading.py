"""Text to be labelled, from a file or a pipe: a block at a time, so that memory does not grow with the input."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import BinaryIO

from mt2st_fast.data.readers.delimited import tokenize_text
from mt2st_fast.errors import InputError

WORDS_AT_ONCE = 8192
CONLLU_COLUMNS = 10
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")

# How a text is cut into words, by the name that a reader of training data has for it. Where files say themselves what a
# word is (conllu, columns), other text is cut at blanks and around punctuation marks.
TOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "words": _WORD.findall,
    "lowered words": tokenize_text,
    "blanks": str.split,
}


@dataclass
class Unit:
    """A sentence or document: its words, and the lines that it stood on.

    words_at: of a CoNLL-U sentence, which of the lines each word stands on; None for plain text, a unit a line.
    """

    words: list[str]
    lines: list[str] = field(default_factory=list)
    words_at: list[int] | None = None


def read_units(file: BinaryIO, where: str, tokenizer: str, kind: str = "auto") -> Iterator[list[Unit]]:
    """Blocks of units of a text in UTF-8; kind: "conllu", "text" (a unit a line), or "auto", by the first line.

    Raises InputError, naming the line, for what is no UTF-8 or no CoNLL-U.
    """
    lines = _decoded(file, where)
    if kind == "auto":
        lines, kind = _kind_of(lines)
    if kind == "conllu":
        units = _sentences(lines, where)
    elif kind == "text":
        cut = TOKENIZERS[tokenizer]
        units = (Unit(cut(line), [line]) for _, line in lines)
    else:
        raise InputError(f"an input is auto, conllu or text, not {kind!r}")
    return _blocks(units)


def _decoded(file: BinaryIO, where: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{where}:{number}: is not UTF-8 (byte {error.start + 1}); convert the text to UTF-8"
            ) from None
        yield number, text.rstrip("\r\n").removeprefix("\ufeff")


def _kind_of(lines: Iterator[tuple[int, str]]) -> tuple[Iterator[tuple[int, str]], str]:
    """The same lines, and what they are: by the first one that is neither empty nor a comment."""
    seen = []
    kind = "text"
    for number, line in lines:
        seen.append((number, line))
        if line.strip() and not line.startswith("#"):
            columns = line.split("\t")
            is_word = len(columns) == CONLLU_COLUMNS and columns[0][:1].isdigit()
            kind = "conllu" if is_word else "text"
            break
    return chain(seen, lines), kind


def _sentences(lines: Iterable[tuple[int, str]], where: str) -> Iterator[Unit]:
    unit = Unit([], [], [])
    for number, line in lines:
        if not line.strip():
            if unit.lines:
                yield unit
            unit = Unit([], [], [])
            continue
        if not line.startswith("#"):
            columns = line.split("\t")
            if len(columns) != CONLLU_COLUMNS:
                raise InputError(
                    f"{where}:{number}: a CoNLL-U line has 10 columns with tabs between them, this one has "
                    f"{len(columns)}; is it text? Then give --input text"
                )
            if columns[0].isdecimal():  # no range (1-2), no empty node (1.1)
                assert unit.words_at is not None
                unit.words_at.append(len(unit.lines))
                unit.words.append(columns[1])
        unit.lines.append(line)
    if unit.lines:
        yield unit


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


def words_of(units: Sequence[Unit]) -> list[list[str]]:
    """The words of every unit."""
    return [unit.words for unit in units]
