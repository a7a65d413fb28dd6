"""The reader `columns:PATH`: CoNLL columns, a word and its labels a line, a blank line after a sentence."""

import re
from pathlib import Path

from mt2st_fast.data.corpus import FileRead, ReadRecord, Splits
from mt2st_fast.data.readers.assembly import Section, assemble, complete_splits
from mt2st_fast.data.readers.files import find_splits, numbered_lines
from mt2st_fast.data.readers.request import Reader, ReadRequest, choose_tasks
from mt2st_fast.errors import InputError

_HEADER = "# columns:"
# What stands before a sentence and says something about it; a word may be a "#" itself.
_COMMENT = re.compile(r"#\s+(id|sent_id|newdoc|newpar|text|source|global\.columns)\b")
_EXTENSIONS = (".txt", ".conll", ".tsv", ".iob", ".iob2", ".bio", ".col", ".columns", ".data")


def read(request: ReadRequest) -> Splits:
    """Tasks col1, col2, ... or as a first line `# columns: word pos chunk` names them; the word comes first.

    A row is a token, a unit is a sentence. By default the last column is the main task, all others are
    auxiliary.
    """
    where = str(request.path)
    tables = {part: _Table(path) for part, path in find_splits(request.path, _EXTENSIONS).items()}
    existing = tables["train"].tasks
    for table in tables.values():
        if table.tasks != existing:
            raise InputError(
                f"{table.path}: has columns {', '.join(table.tasks)}, the training file {', '.join(existing)}"
            )
    main, auxiliary = choose_tasks(request, existing, existing[-1], existing, where)
    tasks = [task.name for task in (main, *auxiliary)]
    sections = complete_splits({part: table.section(tasks) for part, table in tables.items()}, where)
    kinds = dict.fromkeys(tasks, "classes")
    notes = [
        f"{table.path.name}: {table.comments:,} lines of comments (# id and the like) were left out"
        for table in tables.values()
        if table.comments
    ]
    record = ReadRecord(
        tuple(table.as_read(part) for part, table in tables.items()),
        understood={"columns": f"word, {', '.join(existing)}"},
    )
    return assemble(f"columns:{where}", sections, kinds, "token", main.name, tasks[1:], notes, record)


READER = Reader("columns", read, path="a file with a word and its labels a line, or a folder of such")


class _Table:
    """The words and columns of one file."""

    def __init__(self, path: Path):
        self.path = path
        self.tasks: list[str] = []
        self._sentences: list[list[list[str]]] = [[]]
        self._n_columns = 0
        self.comments = self._marks = 0
        for number, line in numbered_lines(path):
            self._add(number, line)
        self._sentences = [sentence for sentence in self._sentences if sentence]
        if not self._sentences:
            raise InputError(f"{path}: the file has no words")

    def as_read(self, part: str) -> FileRead:
        """What a report says of the file."""
        left_out = {"comments": self.comments, "marks between documents": self._marks}
        n_words = sum(map(len, self._sentences))
        return FileRead(
            str(self.path), part, len(self._sentences), n_words, {why: n for why, n in left_out.items() if n}
        )

    def section(self, tasks: list[str]) -> Section:
        column_of = {task: 1 + self.tasks.index(task) for task in tasks}
        return Section(
            [[row[0] for row in sentence] for sentence in self._sentences],
            {
                task: [[row[column] for row in sentence] for sentence in self._sentences]
                for task, column in column_of.items()
            },
        )

    def _add(self, number: int, line: str) -> None:
        row = line.split()
        if number == 1 and line.startswith(_HEADER):
            self._set_columns(line.removeprefix(_HEADER).split()[1:], number)
        elif (
            not self._sentences[-1] and _COMMENT.match(line) and ("=" in line or len(row) != self._n_columns)
        ):
            self.comments += 1
        elif not row or row[0] == "-DOCSTART-":  # CoNLL-2003's mark between documents
            self._sentences.append([])
            self._marks += bool(row)
        else:
            self._add_word(number, row)

    def _add_word(self, number: int, row: list[str]) -> None:
        if not self._n_columns:
            self._set_columns([f"col{i}" for i in range(1, len(row))], number)
        if len(row) != self._n_columns:
            raise InputError(
                f"{self.path}:{number}: {len(row)} columns where the lines before have {self._n_columns}"
            )
        self._sentences[-1].append(row)

    def _set_columns(self, tasks: list[str], number: int) -> None:
        if not tasks:
            raise InputError(
                f"{self.path}:{number}: a word without a label; labels stand in the columns after it"
            )
        if len(set(tasks)) < len(tasks):
            raise InputError(f"{self.path}:{number}: a column is named twice in {', '.join(tasks)}")
        self.tasks = tasks
        self._n_columns = 1 + len(tasks)
