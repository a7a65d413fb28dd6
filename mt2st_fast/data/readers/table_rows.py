"""The rows of a table as text, with their lines, and safe from rows that a stray quotation mark would merge.

A quoted cell may extend over several lines; a note says so. If one of these lines is a row by itself, the mark was
meant as a character and not as the beginning of a cell: this is refused.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from mt2st_fast.data.text.lines import open_lines
from mt2st_fast.errors import InputError
from mt2st_fast.spelling import counted

MOST_CHARACTERS = 2**31 - 1  # of a cell; csv's default limit is 131,072
_MARK = '"'
# "# domain = news", "# written by hand": texts may begin so, too, which the number of cells shows.
_SAYS = re.compile(r"#\s*[\w.:-]+\s*=")
_COMMENT = re.compile(rf"{_SAYS.pattern}|#(\s|$)")
_SEPARATOR = re.compile(r'"?sep=(.)"?')  # what Excel writes and reads


@dataclass(eq=False)
class Rows:
    """The header and the rows of one file.

    `line_numbers` say where each row ends, `notes` what was left out and why, `left_out` how many of the lines; `lists`
    names the columns with lists (only in JSON), `delimiter` is what is between cells ("" in JSON).
    """

    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    line_numbers: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    lists: set[str] = field(default_factory=set)
    delimiter: str = ""


@dataclass(frozen=True, eq=False)
class _LongRow:
    """A row over several lines: its index among the rows, and its lines with their numbers."""

    row: int
    lines: Sequence[tuple[int, str]]


def read_rows(path: Path, choose: Callable[[str | None, str], str]) -> Rows:
    """Read all rows of a table, without blank lines and comments (`# domain = news`, without the header's number of
    cells).

    choose: returns the delimiter for the one that Excel states before the header (`sep=;`; else None) and the header's
    line. The file is opened once, as it may be a pipe.

    Raises InputError, naming the line, for a row with another number of cells than the header, for a quotation mark
    that is not closed, and for one that is closed so late that rows would be merged.
    """
    text = open_lines(path, tell=False)
    lines_left = iter(text)
    before = list(_to_header(lines_left))
    header_line = before[-1][1] if before else ""
    if _is_object(header_line):
        raise InputError(f"{path}:{before[-1][0]}: is a JSON object and no header; use jsonl:{path}")
    delimiter = choose(_said_delimiter(before), header_line)
    feed = _Feed(chain(before, lines_left))
    # In tables with tabs, a quotation mark is an ordinary character.
    quoting: Any = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    csv.field_size_limit(MOST_CHARACTERS)
    reader = csv.reader(feed, delimiter=delimiter, quoting=quoting, strict=True)
    try:
        header = _names(next(reader, []))
        if not header:
            raise InputError(f"{path}: has neither a header nor rows")
        table = Rows(header, delimiter=delimiter)
        long_rows, comments, headers, blank = [], [], [], 0
        feed.header_read = True
        feed.taken.clear()
        for row in reader:
            lines, feed.taken = feed.taken, []
            if len(row) != len(header):
                if len(row) < 2 and not "".join(row).strip():  # a blank line
                    blank += 1
                    continue
                if len(lines) == 1 and _COMMENT.match(lines[0][1]):
                    comments.append(lines[0][0])
                    continue
                raise _other_cells(path, lines, len(row), len(header), tabs=delimiter == "\t")
            if _names(row) == header:  # from joined files
                headers.append(lines[0][0])
                continue
            if len(lines) > 1:
                long_rows.append(_LongRow(len(table.rows), lines))
            table.rows.append(row)
            table.line_numbers.append(lines[-1][0])
    except csv.Error as error:
        raise _unreadable(path, feed.taken, error) from None
    if not table.rows:
        raise InputError(f"{path}: has a header but no rows")
    _check_not_merged(path, table, long_rows, delimiter)
    comments = [*feed.comments, *comments]
    table.left_out = {"blank lines": blank, "comments": len(comments), "repeated headers": len(headers)}
    table.notes = [
        *_left_out("comments (#)", comments),
        *_left_out("repetitions of the header, as in concatenated files", headers),
        *_long(long_rows),
        *(_marked(table) if delimiter == "\t" else ()),
        *text.notes,
    ]
    return table


def _to_header(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield the lines up to the first one that is neither blank nor a comment."""
    for number, line in lines:
        yield number, line
        if line.strip() and not _is_comment(line):
            return


def _said_delimiter(lines: Sequence[tuple[int, str]]) -> str | None:
    """Return the delimiter that Excel states in a line before the header, `sep=;`; None without such a line."""
    said = _SEPARATOR.fullmatch(lines[0][1]) if lines else None
    return said[1] if said else None


def _is_object(line: str) -> bool:
    """Whether a line is one object of JSON lines, whose commas would otherwise be between cells."""
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


class _Feed:
    """Lines for csv.reader, recording those that the current row has taken."""

    def __init__(self, lines: Iterable[tuple[int, str]]) -> None:
        self._lines = iter(lines)
        self.taken: list[tuple[int, str]] = []
        self.comments: list[int] = []  # before the header
        self.header_read = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, line = next(self._lines)
        while not self.header_read and not self.taken and (not line.strip() or _is_comment(line)):
            if line.strip() and not _SEPARATOR.fullmatch(line):
                self.comments.append(number)
            number, line = next(self._lines)
        self.taken.append((number, line))
        return f"{line}\n"


def _is_comment(line: str) -> bool:
    """Whether a line before the header is none: `# key = value`, words, or `sep=;`; but `# ,text` names columns."""
    return (
        bool(_SEPARATOR.fullmatch(line))
        or bool(_SAYS.match(line))
        or (bool(_COMMENT.match(line)) and not re.search(r"[,;\t|]", line))
    )


def _other_cells(path: Path, lines: Sequence[tuple[int, str]], n: int, wanted: int, tabs: bool) -> InputError:
    first, last = lines[0][0], lines[-1][0]
    if first == last:
        sign = "; in a tab-separated file quotation marks are plain text, and no cell spans lines"
        return InputError(
            f"{path}:{last}: {counted(n, 'cell')}, but the header has {wanted}; add or remove "
            f"cells{sign if tabs and _MARK in lines[0][1] else ''}"
        )
    return InputError(
        f"{path}:{first}: {counted(n, 'cell')}, but the header has {wanted}: a quotation mark in this line is not "
        f"closed before line {last}; close it, or double it if it is part of the text"
    )


def _unreadable(path: Path, lines: Sequence[tuple[int, str]], error: csv.Error) -> InputError:
    first, last = lines[0][0], lines[-1][0]
    if first == last:
        return InputError(
            f"{path}:{first}: cannot parse the row ({error}); double the quotation marks inside a cell"
        )
    return InputError(
        f"{path}:{first}: a quoted cell begins in this line and is malformed up to line {last} ({error}); close the "
        "quotation mark, or double it if it is part of the text"
    )


def _check_not_merged(path: Path, table: Rows, long_rows: Sequence[_LongRow], delimiter: str) -> None:
    """Raise InputError if a line inside a row over several lines is a row by itself.

    It is one if it has the header's number of cells and, in some column, a value that other rows have there, too.
    Columns with cells over several lines are text and are not considered.
    """
    if not long_rows:
        return
    n = len(table.header)
    of_text = {c for long in long_rows for c in range(n) if "\n" in table.rows[long.row][c]}
    known = {c: {row[c] for row in table.rows} - {""} for c in range(n) if c not in of_text}
    for long in long_rows:
        for i, (number, line) in enumerate(long.lines):
            cells = line.split(delimiter)
            if len(cells) != n:
                continue
            # The mark opens after the row's own first cells, and closes before its last ones.
            marked = [c for c, cell in enumerate(cells) if _MARK in cell]
            first = marked[0] + 1 if i == 0 and marked else 0
            last = marked[-1] if i == len(long.lines) - 1 and marked else n
            if any(cells[c] in known.get(c, ()) for c in range(first, last)):
                raise InputError(
                    f"{path}:{long.lines[0][0]}: a quoted cell begins in this line and is not closed before line "
                    f"{long.lines[-1][0]}, but line {number} is a row by itself; close the mark, or double it if it "
                    "is part of the text"
                )


def _left_out(what: str, numbers: Sequence[int]) -> list[str]:
    """Return a note on lines that were left out."""
    return (
        [f"{counted(len(numbers), 'line')} left out: {what}; the first is line {numbers[0]}"]
        if numbers
        else []
    )


def _names(row: Sequence[str]) -> list[str]:
    """Return the names of columns in a header line."""
    return [" ".join(name.split()) for name in row]


def _marked(table: Rows) -> list[str]:
    """Return a note on a table with tabs that looks as if its cells were quoted."""
    pairs = zip(table.line_numbers, table.rows, strict=True)
    numbers = [
        number
        for number, row in pairs
        if any(len(c) > 1 and c[0] == c[-1] == _MARK and c.count(_MARK) % 2 == 0 for c in row)
    ]
    if not numbers:
        return []
    return [
        f"cells in quotation marks, which are kept as text because the file is tab-separated: on "
        f"{counted(len(numbers), 'line')}, the first is line {numbers[0]}"
    ]


def _long(long_rows: Sequence[_LongRow]) -> list[str]:
    if not long_rows:
        return []
    first, last = long_rows[0].lines[0][0], long_rows[0].lines[-1][0]
    some = f"{len(long_rows):,} rows have" if len(long_rows) > 1 else "a row has"
    return [f"{some} quoted cells that span several lines; the first spans lines {first} to {last}"]
