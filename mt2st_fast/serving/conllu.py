"""Sentences in CoNLL-U with predicted labels, for CoNLL-U input and for lines of text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mt2st_fast.serving.reading import Unit

_COLUMN_OF = {"upos": 3, "xpos": 4, "deprel": 7}
_FEATS, _MISC = 5, 9
_FEATURE = "feats."
_LINE_END = re.compile(r"[\r\n]")
_Places = Mapping[str, tuple[int, str]]  # {task: (column, the name before its label in that column, or "")}


def sentences(units: Sequence[Unit], labels: Mapping[str, Sequence[Any]]) -> str:
    """Return the text of units. labels: {task: one label for every word of all units}."""
    place_of = {task: _place(task) for task in labels}
    [(column, name), *others] = place_of.values()
    if not name and not others and all(unit.words_at is None for unit in units):
        return _one_column(units, column, *labels.values())
    out: list[str] = []
    begin = 0
    for unit in units:
        end = begin + len(unit.words)
        if unit.words or unit.words_at is not None:  # an empty line is no sentence
            out += _sentence(unit, place_of, {task: found[begin:end] for task, found in labels.items()})
            out.append("")
        begin = end
    return "\n".join(out) + "\n" if out else ""


def _place(task: str) -> tuple[int, str]:
    if task in _COLUMN_OF:
        return _COLUMN_OF[task], ""
    if task.startswith(_FEATURE):
        return _FEATS, task.removeprefix(_FEATURE)
    return _MISC, task


def shares_its_column(task: str) -> bool:
    """Whether labels of a task stand as name=label beside others, in FEATS or MISC."""
    return bool(_place(task)[1])


def _sentence(unit: Unit, place_of: _Places, found: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return the lines of a sentence, with the labels in their columns."""
    if unit.words_at is None:
        lines = [_text_of(unit)]
        lines += [f"{i}\t{word}" + "\t_" * 8 for i, word in enumerate(unit.words, 1)]
        words_at: Sequence[int] = range(1, len(lines))
    else:
        lines, words_at = list(unit.lines), unit.words_at
    for task, (column, name) in place_of.items():
        for at, label in zip(words_at, found[task], strict=True):
            shown = label if isinstance(label, str) else "|".join(map(str, label))
            columns = lines[at].split("\t", column + 1)
            columns[column] = _with(columns[column], name, shown) if name else shown
            lines[at] = "\t".join(columns)
    return lines


def _text_of(unit: Unit) -> str:
    """Return the comment with the text of a sentence; the cell of a table may have line ends, a comment may not."""
    text = unit.lines[0]
    return f"# text = {' '.join(text.split()) if _LINE_END.search(text) else text}"


def _with(cell: str, name: str, value: str) -> str:
    """Set a name in a cell such as A=x|B=y; the value "_" removes it, as words without that feature have it."""
    pairs = [pair for pair in cell.split("|") if pair != "_" and pair.partition("=")[0] != name]
    if value != "_":
        pairs.append(f"{name}={value}")
    return "|".join(sorted(pairs, key=str.lower)) or "_"


# --- Lines of text and one column: the most frequent case --------------------------------------------------


def _one_column(units: Sequence[Unit], column: int, labels: Sequence[str]) -> str:
    """Return the text of all units at once, joined from prepared pieces: this takes a tenth of a microsecond per word.

    A line is its beginning (for a first word with the text between sentences), the word, and the end.
    """
    begins: list[str] = []
    words: list[str] = []
    for unit in units:
        if not unit.words:
            continue  # an empty line is no sentence
        first = len(begins)
        begins += _numbers(len(unit.words))
        begins[first] = f"\n{_text_of(unit)}\n1\t"
        words += unit.words
    if not words:
        return ""
    begins[0] = begins[0].removeprefix("\n")
    pieces = [""] * (3 * len(words))
    pieces[0::3], pieces[1::3] = begins, words
    pieces[2::3] = list(map(_Ends(column).__getitem__, labels))
    return "".join(pieces) + "\n"


class _Ends(dict[str, str]):
    """The rest of a line after the word, by the label, for labels in one column."""

    def __init__(self, column: int) -> None:
        super().__init__()
        self._before, self._after = "\t_" * (column - 2) + "\t", "\t_" * (_MISC - column) + "\n"

    def __missing__(self, label: str) -> str:
        end = self[label] = f"{self._before}{label}{self._after}"
        return end


_NUMBERS: list[str] = []


def _numbers(n: int) -> list[str]:
    """Return the beginnings of the lines of n words."""
    if n > len(_NUMBERS):
        _NUMBERS.extend(f"{i}\t" for i in range(len(_NUMBERS) + 1, 2 * n))
    return _NUMBERS[:n]
