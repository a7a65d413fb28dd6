"""The columns of tables: which has the text, which can be tasks, and the cells of a task."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mt2st_fast.data.corpus import ColumnRead
from mt2st_fast.data.readers.narrowing import fits
from mt2st_fast.data.readers.request import TaskRequest
from mt2st_fast.data.readers.table_rows import Rows
from mt2st_fast.errors import InputError
from mt2st_fast.numbers import LARGEST
from mt2st_fast.spelling import in_any_case, listed, meant

MOST_DIGITS = 40  # of a cell in a message
TEXT_COLUMNS = ("text", "sentence", "review", "content")
# What pandas (if told to write something), R, spreadsheets and databases write for missing values.
_NO_NUMBER = frozenset({"nan", "<na>", "na", "n/a", "#n/a", "null"})
_TRUTHS = frozenset({"true", "false"})
_PANDAS_UNNAMED = re.compile(r"Unnamed: \d+")  # the name that pandas gives to a column without one
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,(\d+)")
_BETWEEN_LABELS = re.compile("[|;]")
_COMMA = re.compile(",")
_AROUND_LABELS = " []{}()'\""  # in a list as Python writes it
_INTEGER = re.compile(r"[+-]?\d+")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")  # or a decimal comma: the cell alone does not say
_COMMAS_AND_POINT = re.compile(r"([+-]?[1-9]\d{0,2}(?:,\d{3})+)((?:\.\d+)?)")

Cell = str | float | tuple[str, ...] | None


@dataclass(frozen=True, eq=False)
class Table:
    """The header and the rows of one file, with cells stripped of blanks; `line_numbers` say where rows end.

    left_out: how many lines were no rows, by kind. notes: lines about its columns. between_cells: the name of the
    delimiter, "" if there is none. lists: the columns whose cells are lists, here joined by |.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    line_numbers: list[int]
    left_out: Mapping[str, int]
    notes: tuple[str, ...] = ()
    between_cells: str = ""
    lists: frozenset[str] = frozenset()

    def column(self, name: str) -> Iterator[str]:
        """Return the cells of a column from top to bottom."""
        at = self.header.index(name)
        return (row[at] for row in self.rows)


def make_table(path: Path, read: Rows, between_cells: str = "") -> Table:
    """Return the named columns of what was read, and the rows that have any cell.

    Raises InputError for a column that is named twice and for a table without rows.
    """
    header = read.header
    named = [c for c, name in enumerate(header) if name and not _PANDAS_UNNAMED.fullmatch(name)]
    names = [header[c] for c in named]
    for c, name in zip(named, names, strict=True):
        if (second := header.index(name)) != c:
            raise InputError(
                f"{path}:1: duplicate column name {name!r} in the header (columns {second + 1} and {c + 1}); rename "
                "one of them"
            )
    rows, numbers = [], []
    for number, row in zip(read.line_numbers, read.rows, strict=True):
        cells = [row[c].strip() for c in named]
        if any(cells):
            rows.append(cells)
            numbers.append(number)
    if not rows:
        raise InputError(f"{path}: has a header but no rows")
    left_out = {**read.left_out, "rows of empty cells": len(read.rows) - len(rows)}
    notes = list(read.notes)
    if len(named) < len(header):  # pandas' index, or the part after a trailing comma
        unnamed = [str(c + 1) for c in range(len(header)) if c not in named]
        notes.append(f"left out because the header has no name for it: column {', '.join(unnamed)}")
    counts = {why: n for why, n in left_out.items() if n}
    return Table(path, names, rows, numbers, counts, tuple(notes), between_cells, frozenset(read.lists))


def text_column(table: Table, wanted: str | None, needs_labels: bool = True) -> str:
    """Return the column that has the text: the requested one, else one of TEXT_COLUMNS, in any case.

    needs_labels: whether there must be another column. Raises InputError where there is none, and where two differ just
    in case.
    """
    where = f"{table.path}:1"
    if wanted is not None:
        found = in_any_case(wanted, table.header)
        if found is None:
            raise InputError(
                f"{where}: no column {wanted!r}; available: {listed(table.header)}"
                + meant(wanted, table.header)
            )
        return _as_text(found, table, needs_labels)
    for name in TEXT_COLUMNS:
        alike = [column for column in table.header if column.casefold() == name]
        if len(alike) > 1:
            raise InputError(
                f"{where}: {' and '.join(alike)} are both columns; choose the text column with --text-column"
            )
        if alike:
            return _as_text(alike[0], table, needs_labels)
    raise InputError(
        f"{where}: no column is named {', '.join(TEXT_COLUMNS)}; choose the text column from {listed(table.header)} "
        f"with --text-column{' (the first line must be the header)' if table.between_cells else ''}"
    )


def _as_text(text: str, table: Table, needs_labels: bool) -> str:
    """Return the column, if its cells are texts, and there is another one where that is needed."""
    check_texts(text, table)
    if needs_labels and len(table.header) == 1:
        between = table.between_cells
        fix = f"; is {between} the right delimiter? Set another with --delimiter" if between else ""
        raise InputError(f"{table.path}:1: has no label column besides {text!r}{fix}")
    return text


def check_texts(text: str, table: Table) -> None:
    """Raise InputError if cells of the text column are lists."""
    if text in table.lists:
        raise InputError(
            f"{table.path}: {text!r} has lists, but is the text column; write a text as one string"
        )


def aligned(table: Table, train: Table) -> Table:
    """Return the table with the columns of training, in their order; names may differ in case.

    Columns that training lacks are left out, and those that only training has stay absent; notes say so.
    """
    if table.header == train.header:
        return table
    place_of: dict[str, int] = {}
    for at, name in enumerate(table.header):
        known = in_any_case(name, train.header)
        if known is not None and (known not in place_of or name == known):
            place_of[known] = at
    header = [name for name in train.header if name in place_of]
    foreign = [name for at, name in enumerate(table.header) if at not in place_of.values()]
    notes = list(table.notes)
    if foreign:
        notes.append(f"left out because the training file has no such column: {listed(foreign)}")
    if renamed := [table.header[place_of[name]] for name in header if table.header[place_of[name]] != name]:
        notes.append(f"matched to the training file's columns ignoring case: {listed(renamed)}")
    places = [place_of[name] for name in header]
    rows = [[row[at] for at in places] for row in table.rows]
    lists = frozenset(name for name in header if table.header[place_of[name]] in table.lists)
    return replace(table, header=header, rows=rows, notes=tuple(notes), lists=lists)


class Columns:
    """The columns of the aligned tables of all files: their content, and what each can be used for."""

    def __init__(self, tables: Mapping[str, Table], text: str) -> None:
        self._tables, self.text = tables, text
        self._first = next(iter(tables.values()))  # the training table, if there is one
        self._counts: dict[str, Counter[str]] = {}  # counts of a column's cells, over all files
        self.names = [name for name in self._first.header if name != text]
        self._seen = {name: set(self._first.column(name)) - {""} for name in (text, *self.names)}
        self.unfit = [name for name in self.names if not self._is_fit(name)]

    def values(self, name: str) -> set[str]:
        """Return a column's different cells in the first (training) file, without empty ones, or nan for none."""
        seen = self._seen[name]
        return {cell for cell in seen if not is_no_number(cell)} if self.nan_is_none(name) else seen

    def nan_is_none(self, name: str) -> bool:
        """Whether nan means a missing value, and no class: if all other cells are numbers, or true and false."""
        seen = {cell.casefold() for cell in self._seen[name]} - _NO_NUMBER
        return bool(seen) and (seen <= _TRUTHS or all(map(is_number, seen)))

    def _is_fit(self, name: str) -> bool:
        """Whether the column looks like classes, and not like ids, numbers, text or lists."""
        return not self.holds_lists(name) and 2 <= len(self.values(name)) <= len(self._first.rows) / 2

    def holds_single_labels(self, name: str) -> bool:
        """Whether no cell of a column has several labels, in any file."""
        self.read_as(name, "")
        return not self.holds_lists(name) and not any(
            _BETWEEN_LABELS.search(cell) for cell in self._counts[name]
        )

    def seems_to_hold_sets(self, name: str, between: re.Pattern[str] = _BETWEEN_LABELS) -> bool:
        """Whether different cells are made of fewer labels between | or ;, as where a row has any of a few tags."""
        cells = self.values(name)
        labels = {label.strip(_AROUND_LABELS) for cell in cells for label in between.split(cell)}
        return len(labels) < len(cells)

    def seems_to_hold_sets_by_commas(self, name: str) -> bool:
        """Whether that is so between commas, which separate no labels here: names such as "Bath, UK" have them, too."""
        return not self.has_decimal_commas(name) and self.seems_to_hold_sets(name, _COMMA)

    def holds_lists(self, name: str) -> bool:
        """Whether cells of the column are lists, in the first file."""
        return name in self._first.lists

    @property
    def default_main(self) -> str:
        """The first column after the text that looks like classes, else one before it, else the first after it."""
        at = self.names.index(self.behind_text)
        candidates = [*self.names[at:], *self.names[:at]]
        return next((name for name in candidates if name not in self.unfit), self.behind_text)

    @property
    def behind_text(self) -> str:
        """The first column after the text, or the first one."""
        return [*self.names[self._first.header.index(self.text) :], *self.names][0]

    def cells(self, part: str, task: TaskRequest) -> list[Cell]:
        """Return a task's cells in the file of a part, None for no label. Raises InputError for a cell that is no
        number.
        """
        table = self._tables[part]
        if task.name not in table.header:
            return [None] * len(table.rows)
        none = _NO_NUMBER if task.kind == "values" or self.nan_is_none(task.name) else frozenset()
        texts = table.column(task.name)
        if task.kind == "values" and self.has_decimal_commas(task.name):
            texts = (text.replace(",", ".") for text in texts)
        return [
            None if not text or text.casefold() in none else _cell(text, task, table.path, number)
            for text, number in zip(texts, table.line_numbers, strict=True)
        ]

    def has_decimal_commas(self, name: str) -> bool:
        """Whether all cells are numbers, some with a comma, and one of these commas cannot separate thousands."""
        seen = {cell for cell in self._seen[name] if not is_no_number(cell)}
        commas = [found[1] for cell in seen if (found := _DECIMAL_COMMA.fullmatch(cell))]
        return any(len(decimals) != 3 for decimals in commas) and all(
            _INTEGER.fullmatch(cell) or _DECIMAL_COMMA.fullmatch(cell) for cell in seen
        )

    def marks_of_nothing(self, name: str) -> list[str]:
        """Return how a column's cells say that they are missing, such as nan and NA; over all files."""
        self.read_as(name, "")
        return sorted(filter(is_no_number, self._counts[name]))

    def read_as(self, name: str, taken_as: str) -> ColumnRead:
        """Return what a report says of a column, over all files."""
        if name not in self._counts:
            tables = [table for table in self._tables.values() if name in table.header]
            self._counts[name] = Counter(cell for table in tables for cell in table.column(name))
        counts = self._counts[name]
        nan = sum(n for cell, n in counts.items() if is_no_number(cell))
        return ColumnRead(name, taken_as, len(counts) - ("" in counts), counts[""], nan)


def is_no_number(cell: str) -> bool:
    """Whether a cell has what others write for a missing value."""
    return cell.casefold() in _NO_NUMBER


def _cell(text: str, task: TaskRequest, path: Path, number: int) -> Cell:
    if task.kind == "labels":
        return tuple(label.strip() for label in _BETWEEN_LABELS.split(text) if label.strip())
    if task.kind == "classes":
        return text
    if not is_number(text):
        raise InputError(
            f"{path}:{number}: {_shown(text)} in column {task.name!r} is not a number; {_fix_of(text)}"
        )
    value = float(text)
    if not fits(value):
        raise InputError(
            f"{path}:{number}: {text[:MOST_DIGITS]} in column {task.name!r} is beyond {LARGEST:.2g}, the largest "
            "number of float32, in which models learn; write the column in another unit"
        )
    return value


def _fix_of(text: str) -> str:
    """Say what to do about a cell that is not a number."""
    if _THOUSANDS.fullmatch(text):
        without, with_point = text.replace(",", ""), text.replace(",", ".")
        return f"write {without} if the comma separates thousands, or {with_point} if it is a decimal comma"
    if found := _COMMAS_AND_POINT.fullmatch(text):
        return f"write {found[1].replace(',', '')}{found[2]}"
    if _DECIMAL_COMMA.fullmatch(text):
        return f"write {text.replace(',', '.')}"
    return "regression needs a number, or an empty cell where there is none"


def _shown(text: str) -> str:
    return repr(text if len(text) <= MOST_DIGITS else f"{text[:MOST_DIGITS]}...")


def is_number(text: str) -> bool:
    """Whether a cell is a finite number."""
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False
