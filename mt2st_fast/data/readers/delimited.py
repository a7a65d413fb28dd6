"""The reader `csv:PATH`: documents in a table with a header, one text column and columns of labels."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mt2st_fast.data.corpus import Splits
from mt2st_fast.data.readers.assembly import Section, assemble, complete_splits
from mt2st_fast.data.readers.files import find_splits
from mt2st_fast.data.readers.request import Reader, ReadRequest, TaskRequest, choose_tasks
from mt2st_fast.data.readers.table_rows import header_line, read_rows
from mt2st_fast.errors import InputError

_TEXT_COLUMNS = ("text", "sentence", "review", "content")
_EXTENSIONS = (".csv", ".tsv", ".tab")
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def read(request: ReadRequest) -> Splits:
    """Every column but the text is a task, a row and a unit is a document.

    A task is of classes, or as asked for: `name:regression`, `name:multilabel` (labels with | or ; between).
    An empty cell is a missing label. By default the first column after the text is the main task and the
    others are auxiliary, but for those that look like ids, numbers or text (or have one class only).
    """
    where = str(request.path)
    tables = {
        part: _read_table(path, request) for part, path in find_splits(request.path, _EXTENSIONS).items()
    }
    train = tables["train"]
    for table in tables.values():
        if table.header != train.header:
            raise InputError(
                f"{table.path}: the columns differ from the training file's, {', '.join(train.header)}"
            )
    unfit = [task for task in train.tasks if not train.is_fit(task)]
    default_auxiliary = [task for task in train.tasks if task not in unfit]
    main, auxiliary = choose_tasks(request, train.tasks, train.default_main, default_auxiliary, where)
    notes = (
        [] if request.auxiliary is not None else _notes(train, [task for task in unfit if task != main.name])
    )
    notes += [f"{table.path.name}: {note}" for table in tables.values() for note in table.notes]
    requests = [main, *auxiliary]
    sections = complete_splits({part: table.section(requests) for part, table in tables.items()}, where)
    kinds = {task.name: task.kind for task in requests}
    names = [task.name for task in auxiliary]
    return assemble(f"csv:{where}", sections, kinds, "document", main.name, names, notes)


READER = Reader(
    "csv",
    read,
    path="a table with a header and a column of text, or a folder of such",
    kinds=("classes", "labels", "values"),
    tokenizer="lowered words",
)


def _notes(train: "_Table", left_out: Sequence[str]) -> list[str]:
    return [
        f"column {task!r} is no auxiliary task: it has {train.n_classes(task)} classes" for task in left_out
    ]


def tokenize_text(text: str) -> list[str]:
    """Lower-case words, numbers and single punctuation marks of a text."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True, eq=False)
class _Table:
    """The header and the rows of one file; `line_numbers` say where each row ends."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    line_numbers: list[int]
    text_column: int
    notes: list[str]

    @property
    def tasks(self) -> list[str]:
        return self.header[: self.text_column] + self.header[self.text_column + 1 :]

    @property
    def default_main(self) -> str:
        after_text = self.header[self.text_column + 1 :]
        return (after_text or self.header)[0]

    def is_fit(self, task: str) -> bool:
        """Whether the column looks like classes, and not like ids, numbers or text."""
        return 2 <= self.n_classes(task) <= len(self.rows) / 2

    def n_classes(self, task: str) -> int:
        column = self.header.index(task)
        return len({row[column] for row in self.rows} - {""})

    def section(self, tasks: Sequence[TaskRequest]) -> Section:
        units = [tokenize_text(row[self.text_column]) for row in self.rows]
        return Section(units, {task.name: self._cells(task) for task in tasks})

    def _cells(self, task: TaskRequest) -> list[list]:
        column = self.header.index(task.name)
        return [
            [self._cell(row[column].strip(), task, number)]
            for row, number in zip(self.rows, self.line_numbers, strict=True)
        ]

    def _cell(self, text: str, task: TaskRequest, number: int) -> str | float | tuple[str, ...] | None:
        if not text:
            return None
        if task.kind == "labels":
            return tuple(label.strip() for label in re.split(r"[|;]", text) if label.strip())
        return self._number(text, task, number) if task.kind == "values" else text

    def _number(self, text: str, task: TaskRequest, number: int) -> float | None:
        if text.lower() == "nan":  # what pandas writes for none
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.inf
        if not math.isfinite(value):
            raise InputError(
                f"{self.path}:{number}: {text!r} in column {task.name!r} is no number; regression needs one"
            )
        return value


def _read_table(path: Path, request: ReadRequest) -> _Table:
    delimiter = _delimiter(path) if request.delimiter is None else _checked(request.delimiter)
    table = read_rows(path, delimiter)
    header, rows, notes = table.header, table.rows, table.notes
    named = [column for column, name in enumerate(header) if name]
    if len(named) < len(header):  # pandas' index, or what stands behind a last comma
        unnamed = [str(c + 1) for c in range(len(header)) if c not in named]
        notes.append(f"without a name in the header, and left out: column {', '.join(unnamed)}")
        header, rows = [header[c] for c in named], [[row[c] for c in named] for row in rows]
    text_column = _text_column(header, path, request.text_column)
    return _Table(path, header, rows, table.line_numbers, text_column, notes)


def _checked(delimiter: str) -> str:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter)
    if len(delimiter) != 1 or delimiter in '"\n\r':
        raise InputError(f"--delimiter is one character, or tab, not {delimiter!r}")
    return delimiter


def _delimiter(path: Path) -> str:
    """By the extension, or what the header has most of; csv.Sniffer guesses wrong on short headers."""
    if {".tsv", ".tab"} & {suffix.lower() for suffix in path.suffixes}:
        return "\t"
    return max(",;\t", key=re.sub(r'"[^"]*"', "", header_line(path)).count)


def _text_column(header: list[str], path: Path, wanted: str | None) -> int:
    if len(set(header)) < len(header):
        raise InputError(f"{path}:1: a column is named twice in the header: {', '.join(header)}")
    if wanted is not None and wanted not in header:
        raise InputError(f"{path}:1: there is no column {wanted!r}; the columns are {', '.join(header)}")
    lowered = [name.lower() for name in header]
    for name in _TEXT_COLUMNS if wanted is None else (wanted.lower(),):
        if name in lowered:
            if len(header) == 1:
                raise InputError(f"{path}:1: there is no column of labels beside {name!r}")
            return lowered.index(name) if wanted is None else header.index(wanted)
    raise InputError(
        f"{path}:1: no column is named {', '.join(_TEXT_COLUMNS)}; say which of {', '.join(header)} has the text: "
        "--text-column"
    )
