"""Read what is to be labelled: text from a file or a pipe, block by block, so that memory does not grow with the input;
tables and columns as the readers of training data read them.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from mt2st_fast.data.readers import READERS
from mt2st_fast.data.readers.conllu import FIRST_ID, check_form, is_word
from mt2st_fast.data.readers.files import extension_of
from mt2st_fast.data.readers.request import ReadRequest
from mt2st_fast.data.readers.table import TEXT_COLUMNS
from mt2st_fast.data.text.lines import TextLines
from mt2st_fast.data.text.tokenizers import Cut
from mt2st_fast.errors import InputError
from mt2st_fast.spelling import in_shell

log = logging.getLogger("mt2st_fast")
WORDS_AT_ONCE = 8192
LEAST_LINES = 5  # fewer lines that look like columns may do so by chance
MOST_LINES = 100  # lines that are looked at
STANDARD_INPUT = "standard input"  # how messages name it
CONLLU_COLUMNS = 10

_Lines = Iterator[tuple[int, list[str]]]


@dataclass(slots=True)
class Unit:
    """A sentence or document: its words, and its lines in the input.

    words_at: for a CoNLL-U sentence, the index of each word's line in `lines`; None for plain text, where a unit is one
    line, and for a cell of a table, which is one line here although it may have several.
    """

    words: list[str]
    lines: list[str] = field(default_factory=list)
    words_at: list[int] | None = None


def read_units(chunks: Iterable[bytes], where: str, cut: Cut, kind: str = "auto") -> Iterator[list[Unit]]:
    """Yield blocks of units from the bytes of a text, split into lines as all readers do; `cut` splits a line into
    words.

    kind: "conllu", "text" (one unit per line), or "auto" (by the first line).

    Raises InputError, naming the line, for invalid UTF-8 or CoNLL-U; with "auto" also for what is no text by its name
    or its lines.
    """
    lines = TextLines(chunks, where).blocks()
    if kind == "auto":
        lines, kind = _kind_of(lines, where)
    if kind == "conllu":
        units = _sentences(lines, where)
    elif kind == "text":
        units = (Unit(cut(line), [line]) for _, some in lines for line in some)
    else:
        raise InputError(f"input must be auto, conllu or text, not {kind!r}")
    return _blocks(units)


def read_rows(
    kind: str, path: Path, cut: Cut, text_column: str | None, delimiter: str | None
) -> Iterator[list[Unit]]:
    """Yield blocks of units from a file of a kind that training reads and that is no text: a unit a row, or a sentence.

    Raises InputError for a file that cannot be read so, at once.
    """
    reader = READERS[kind]
    assert reader.unlabelled is not None  # the caller has asked
    if path.is_dir():
        raise InputError(f"{path}: is a folder; use one of its files")
    found = reader.unlabelled(ReadRequest(path, None, None, text_column=text_column, delimiter=delimiter))
    for note in found.notes:
        log.warning("%s: %s", path, note)
    return _blocks(
        Unit(cut(unit), [unit]) if isinstance(unit, str) else Unit(unit, [" ".join(unit)])
        for unit in found.units
    )


def _kind_of(lines: _Lines, where: str) -> tuple[_Lines, str]:
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
    if kind == "text":
        _check_is_text(seen[-1][1], where)
    return chain(seen, lines), kind or "text"


def _check_is_text(lines: Sequence[str], where: str) -> None:
    """Raise InputError where a file has another kind by its name, or by its lines: each of them would get an answer."""
    ending = extension_of(Path(where))
    of_name = [name for name, reader in READERS.items() if ending in reader.extensions]
    kinds = [name for name in of_name if READERS[name].unlabelled is not None]
    if not kinds or kinds != of_name:  # such as .txt, which may be anything
        kinds = [name for name, look_like in _BY_LINES.items() if look_like(lines[:MOST_LINES])][:1]
    if kinds:
        path = where if Path(where).exists() else "/dev/stdin" if where == STANDARD_INPUT else "FILE"
        specs = " or ".join(in_shell(f"{name}:{path}") for name in kinds)
        raise InputError(
            f"{where}: does not look like text with one unit per line; use {specs} to label what is in it, or "
            "--input text to label each line"
        )


def _look_like_columns(lines: Sequence[str]) -> bool:
    """Whether lines are a word and its labels each: they have the same number of cells, and blank lines between."""
    filled = [line for line in lines if line.strip()]
    widths = {len(line.split()) for line in filled}
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    between = any(not line.strip() for line in lines[first : first + len(filled)])
    return len(filled) >= LEAST_LINES and between and len(widths) == 1 and widths.pop() > 1


def _look_like_objects(lines: Sequence[str]) -> bool:
    """Whether all lines are JSON objects with keys."""
    return all(_is_object(line) for line in lines if line.strip())


def _is_object(line: str) -> bool:
    try:
        return line.lstrip().startswith("{") and bool(json.loads(line))
    except ValueError:
        return False


def _look_like_table(lines: Sequence[str]) -> bool:
    """Whether the first line is a header of several names without blanks, one of which is a table's text column."""
    header = next((line for line in lines if line.strip()), "").lstrip("\ufeff")
    cells = [cell.strip('"').lower() for cell in re.split(r"[,;\t|]", header)]
    named = all(cell and not re.search(r"\s", cell) for cell in cells)
    return named and len(cells) > 1 and any(cell in TEXT_COLUMNS for cell in cells)


_BY_LINES = {"jsonl": _look_like_objects, "csv": _look_like_table, "columns": _look_like_columns}


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
