"""The reader `columns:PATH`: CoNLL columns, one line per word with its labels, and a blank line after each sentence."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mt2st_fast.data.corpus import FileRead, ReadRecord, Splits
from mt2st_fast.data.readers.assembly import Section, assemble, complete_splits
from mt2st_fast.data.readers.files import find_splits
from mt2st_fast.data.readers.request import Reader, ReadRequest, Unlabelled, choose_tasks
from mt2st_fast.data.readers.table import is_no_number
from mt2st_fast.data.text.lines import open_lines
from mt2st_fast.errors import InputError
from mt2st_fast.spelling import counted

_HEADER = "# columns:"
_DOCUMENT = "-DOCSTART-"  # CoNLL-2003's mark between documents
# Comments before a sentence; note that a word may itself be "#".
_SAYS = re.compile(r"#\s+[\w.:-]+\s*=(?!=)|#\s+(id|sent_id|newdoc|newpar|text|source|global\.columns)\b.*=")
_COMMENT = re.compile(r"#(\s|$)|#[\w.:-]+\s*=")
_BESIDE_NUMBERS = re.compile("[0-9]+[-.][0-9]+")  # ranges of words (3-4) and empty nodes (3.1) in CoNLL-U
_BLANKS = re.compile("[ \t]+")
_MARKS = ("_", "-")  # in place of a label, as what tables have there
_EXTENSIONS = (".txt", ".conll", ".tsv", ".iob", ".iob2", ".bio", ".col", ".columns", ".data")


def read(request: ReadRequest) -> Splits:
    """Read tasks col1, col2, ..., or named by a first line `# columns: word pos chunk`; the word comes first.

    A row is a token, a unit is a sentence. If the first word is followed by a tab, only tabs separate columns, and an
    empty cell is a missing label; otherwise both blanks and tabs do. By default the last column is the main task, and
    all others are auxiliary. Commas may separate the names, too.
    """
    where = str(request.path)
    files = find_splits(request.path, _EXTENSIONS, request.measured)
    tables = {part: _Table(path) for part, path in files.items()}
    first = next(iter(tables.values()))  # the training table, if there is one
    existing = first.tasks
    for table in tables.values():
        if table.tasks != existing:
            raise InputError(
                f"{table.path}: has columns {', '.join(table.tasks)}, but {first.path.name} has {', '.join(existing)}"
            )
    main, auxiliary = choose_tasks(request, existing, existing[-1], existing, where)
    tasks = [task.name for task in (main, *auxiliary)]
    found = {part: table.section(tasks) for part, table in tables.items()}
    sections = complete_splits(found, where, request.measured)
    kinds = dict.fromkeys(tasks, "classes")
    notes = [f"{table.path.name}: {note}" for table in tables.values() for note in table.notes]
    record = ReadRecord(
        tuple(table.as_read(part) for part, table in tables.items()),
        understood={"columns": f"word, {', '.join(existing)}"},
    )
    return assemble(f"columns:{where}", sections, kinds, "token", main.name, tasks[1:], notes, record)


def sentences(request: ReadRequest) -> Unlabelled:
    """Return the words of every sentence, whatever columns follow them."""
    table = _Table(request.path, needs_labels=False)
    return Unlabelled(table.words(), table.notes)


READER = Reader(
    "columns",
    read,
    path="a file with one word and its labels per line, or a folder of such files",
    extensions=_EXTENSIONS,
    unlabelled=sentences,
)


class _Table:
    """The words and columns of one file."""

    def __init__(self, path: Path, needs_labels: bool = True) -> None:
        self.path = path
        self._needs_labels = needs_labels
        self.tasks: list[str] = []
        self._named = False
        self._sentences: list[list[list[str]]] = [[]]
        self._n_columns = 0
        self._comments: list[int] = []  # line numbers
        self._n_empty = self._n_marks = 0  # cells; lines
        self._blank_within: list[int] = []  # line numbers of labels that contain a blank
        self._marks: Counter[tuple[int, str]] = Counter()  # (column, label that may stand for none)
        text = open_lines(path, tell=False)
        lines = list(text)
        self._tabs = "\t" in _first_word_line(lines)
        self._n_columns = len(self._cells(_first_word_line(lines)))
        for number, line in lines:
            self._add(number, line)
        self._sentences = [sentence for sentence in self._sentences if sentence]
        if not self._sentences:
            raise InputError(f"{path}: contains no words")
        if self._n_columns > 1 and max(map(len, self._sentences)) > 1 and all(map(_is_count, self.words())):
            raise InputError(
                f"{path}: the first column counts the words of each sentence, but must have the words themselves; "
                "read CoNLL-U by conllu:PATH, and leave out that column of other files"
            )
        self.notes = [*self._said(), *text.notes]

    def as_read(self, part: str) -> FileRead:
        """Return what a report says of the file."""
        left_out = {"comments": len(self._comments), "marks between documents": self._n_marks}
        n_words = sum(map(len, self._sentences))
        return FileRead(
            str(self.path), part, len(self._sentences), n_words, {why: n for why, n in left_out.items() if n}
        )

    def words(self) -> list[list[str]]:
        """Return the words of every sentence."""
        return [[row[0] for row in sentence] for sentence in self._sentences]

    def section(self, tasks: list[str]) -> Section:
        column_of = {task: 1 + self.tasks.index(task) for task in tasks}
        return Section(
            self.words(),
            {
                task: [[row[column] or None for row in sentence] for sentence in self._sentences]
                for task, column in column_of.items()
            },
        )

    def _said(self) -> Iterator[str]:
        if n := len(self._comments):
            yield f"{counted(n, 'comment line')} (such as # id) left out; the first is line {self._comments[0]}"
        if self._n_empty:
            yield f"{counted(self._n_empty, 'cell is empty and counts', 'cells are empty and count')} as unlabelled"
        n_words = sum(map(len, self._sentences))
        for (column, mark), n in sorted(self._marks.items()):
            if n < n_words:  # else it fills a column that says nothing
                by_tabs = "" if self._tabs else "separate columns by tabs, and "
                yield (
                    f"column {self.tasks[column - 1]!r}: {mark} in {counted(n, 'cell')} is treated as a class; "
                    f"if it stands for no label, {by_tabs}leave these cells empty"
                )
        if n := len(self._blank_within):
            yield (
                f"labels containing a space, because columns are separated by tabs here: on {counted(n, 'line')}, the "
                f"first is line {self._blank_within[0]}"
            )

    def _cells(self, line: str) -> list[str]:
        if self._tabs:
            return [cell.strip(" ") for cell in line.split("\t")]
        return _BLANKS.split(line.strip(" \t"))

    def _add(self, number: int, line: str) -> None:
        if number == 1 and line.startswith(_HEADER):
            self._set_columns(line.removeprefix(_HEADER).replace(",", " ").split()[1:], number)
            return
        row = self._cells(line)
        if line.startswith("#") and self._is_comment(line, len(row)):
            self._comments.append(number)
        elif not line.strip() or line.split(None, 1)[0] == _DOCUMENT:
            self._sentences.append([])
            self._n_marks += bool(line.strip())
        else:
            self._add_word(number, row)

    def _is_comment(self, line: str, n_cells: int) -> bool:
        """Whether a line is a comment: `# key = value` anywhere, or before a sentence one without a word's number of
        columns.
        """
        if n_cells == self._n_columns:
            return bool(_SAYS.match(line))
        return bool(_SAYS.match(line)) or (not self._sentences[-1] and bool(_COMMENT.match(line)))

    def _add_word(self, number: int, row: list[str]) -> None:
        if not self._named:
            self._set_columns([f"col{i}" for i in range(1, len(row))], number)
        if len(row) != self._n_columns:
            raise InputError(
                f"{self.path}:{number}: {counted(len(row), 'column')}, but the lines before have {self._n_columns}; "
                f"columns are separated by {'tabs' if self._tabs else 'spaces'} here"
            )
        if not row[0]:
            raise InputError(f"{self.path}:{number}: no word before the first tab; add it")
        self._n_empty += row.count("")
        self._marks.update(
            (column, label)
            for column, label in enumerate(row[1:], 1)
            if label in _MARKS or is_no_number(label)
        )
        if self._tabs and any(" " in label for label in row[1:]):
            self._blank_within.append(number)
        self._sentences[-1].append(row)

    def _set_columns(self, tasks: list[str], number: int) -> None:
        if not tasks and self._needs_labels:
            raise InputError(
                f"{self.path}:{number}: a word without a label; put labels in the columns after the word"
            )
        if len(set(tasks)) < len(tasks):
            raise InputError(
                f"{self.path}:{number}: duplicate column name in {', '.join(tasks)}; rename one of them"
            )
        self.tasks, self._named = tasks, True
        self._n_columns = 1 + len(tasks)


def _first_word_line(lines: Sequence[tuple[int, str]]) -> str:
    """Return the first line that looks like a word; if all begin with #, the first that is not blank."""
    filled = [line for _, line in lines if line.strip() and not line.startswith(_DOCUMENT)]
    return next((line for line in filled if line[0] != "#"), filled[0] if filled else "")


def _is_count(words: Sequence[str]) -> bool:
    """Whether the words of a sentence are 1, 2, 3, ... or 0, 1, 2, ..., but for those such as 3-4 and 3.1."""
    numbers = [word for word in words if not _BESIDE_NUMBERS.fullmatch(word)]
    return any(numbers == list(map(str, range(first, first + len(numbers)))) for first in (0, 1))
