"""The reader `conllu:PATH`: Universal Dependencies treebanks (https://universaldependencies.org/format.html)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mt2st_fast.data.corpus import FileRead, ReadRecord, Splits
from mt2st_fast.data.readers.assembly import Section, assemble, complete_splits
from mt2st_fast.data.readers.files import find_parts
from mt2st_fast.data.readers.request import Reader, ReadRequest, choose_tasks
from mt2st_fast.data.text.lines import open_lines
from mt2st_fast.errors import InputError
from mt2st_fast.spelling import counted

_COLUMN_OF = {"upos": 3, "xpos": 4, "deprel": 7}
_FEATS_COLUMN = 5
_NO_LABEL = ("_", "")
_DEFAULT_MAIN = "upos"
_DEFAULT_AUXILIARY = ("xpos", "deprel", "feats.Number", "feats.VerbForm")
FIRST_ID = "1"
_EXTENSIONS = (".conllu", ".conll", ".txt")


def read(request: ReadRequest) -> Splits:
    """Read tasks upos, xpos, deprel and feats.NAME; a row is a token, a unit is a sentence.

    A token without the feature NAME has the class "_" of that feature (a label, as the language's grammar says so); "_"
    in another column means not annotated, so there is no label, as in an empty cell of any column. Multiword ranges and
    empty nodes are left out. Raises InputError for a word without a form.
    """
    files = find_parts(request.path, _EXTENSIONS, request.measured)
    notes = [
        f"{part} was read from {', '.join(path.name for path in paths)}"
        for part, paths in files.items()
        if len(paths) > 1
    ]
    rows_of: dict[str, list[list[list[str]]]] = {part: [] for part in files}
    read_files = []
    for part, paths in files.items():
        for path in paths:
            sentences, left_out = _read_sentences(path, notes)
            rows_of[part] += sentences
            n_words = sum(map(len, sentences))
            read_files.append(FileRead(str(path), part, len(sentences), n_words, left_out))
    existing = _existing_tasks(
        [row for sentences in rows_of.values() for sentence in sentences for row in sentence]
    )
    default_auxiliary = [task for task in _DEFAULT_AUXILIARY if task in existing]
    main, auxiliary = choose_tasks(request, existing, _DEFAULT_MAIN, default_auxiliary, str(request.path))
    tasks = [task.name for task in (main, *auxiliary)]
    sections = {part: _section(sentences, tasks) for part, sentences in rows_of.items()}
    return assemble(
        f"conllu:{request.path}",
        complete_splits(sections, str(request.path), request.measured),
        dict.fromkeys(tasks, "classes"),
        "token",
        main.name,
        tasks[1:],
        notes,
        ReadRecord(tuple(read_files)),
    )


READER = Reader(
    "conllu",
    read,
    path="a Universal Dependencies treebank file, or a folder with its splits",
    extensions=_EXTENSIONS,
)


def _read_sentences(path: Path, notes: list[str]) -> tuple[list[list[list[str]]], dict[str, int]]:
    """Return the ten columns of each word of each sentence, and by kind how many lines are no words.

    Notes on the file are appended to `notes`.
    """
    sentences: list[list[list[str]]] = [[]]
    left_out: Counter[str] = Counter()
    text = open_lines(path, tell=False)
    joined, uncounted = [], []  # lines
    looked_at = _LabelCells()
    for number, line in text:
        if not line.strip():
            sentences.append([])
        elif line.startswith("#"):
            left_out["comments"] += 1
        elif (row := _parse_word(line, path, number)) is not None:
            if row[0] == FIRST_ID and sentences[-1]:
                sentences.append([])
                joined.append(number)
            if int(row[0]) != len(sentences[-1]) + 1:
                uncounted.append(number)
            sentences[-1].append(row)
            looked_at.add(row, number)
        else:
            left_out["ranges of words and empty nodes"] += 1
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        raise InputError(f"{path}: contains no sentences")
    notes += [
        f"{path.name}: {note}" for note in (*_misplaced(joined, uncounted), *looked_at.notes(), *text.notes)
    ]
    return sentences, dict(left_out)


class _LabelCells:
    """What the cells of a file's words have that is no label, or not a single one."""

    def __init__(self) -> None:
        self._n_empty = self._first_empty = 0  # cells; a line
        self._n_words: Counter[str] = Counter()  # by analysis (the cell with the features)
        self._first_line: dict[str, int] = {}  # by analysis

    def add(self, row: list[str], number: int) -> None:
        """Look at the columns of a word on a line."""
        if "" in row and (n := sum(not row[column] for column in (*_COLUMN_OF.values(), _FEATS_COLUMN))):
            self._first_empty = self._first_empty or number
            self._n_empty += n
        analysis = row[_FEATS_COLUMN]
        self._n_words[analysis] += 1
        self._first_line.setdefault(analysis, number)

    def notes(self) -> Iterator[str]:
        """Yield a line about each kind of such cells."""
        if self._n_empty:
            yield (
                f"{counted(self._n_empty, 'cell is', 'cells are')} empty and so no label, the first is on line "
                f"{self._first_empty}; not annotated is written _"
            )
        twice = [analysis for analysis in self._n_words if _has_a_name_twice(analysis)]
        if twice:
            yield (
                f"{self._words(twice)} a feature twice, of which the first counts ({twice[0]}, line "
                f"{self._first_line[twice[0]]})"
            )
        bare = [analysis for analysis in self._n_words if _has_a_bare_part(analysis)]
        if bare:
            yield (
                f"{self._words(bare)} features that are not NAME=VALUE, and so no task ({bare[0]}, line "
                f"{self._first_line[bare[0]]})"
            )

    def _words(self, analyses: Sequence[str]) -> str:
        return counted(sum(self._n_words[analysis] for analysis in analyses), "word has", "words have")


def _misplaced(joined: Sequence[int], uncounted: Sequence[int]) -> Iterator[str]:
    """Yield notes on sentences that directly follow another one without a blank line, and on words with a wrong id."""
    if joined:
        yield (
            f"{counted(len(joined), 'sentence is', 'sentences are')} not preceded by a blank line; the first begins on "
            f"line {joined[0]}"
        )
    if uncounted:
        yield (
            f"{counted(len(uncounted), 'word id is', 'word ids are')} not consecutive from 1; the first is on line "
            f"{uncounted[0]}. Is a line missing?"
        )


def _parse_word(line: str, path: Path, number: int) -> list[str] | None:
    """Return the columns of a line, or None for a multiword range (1-2) or an empty node (1.1)."""
    row = line.split("\t")
    if " " in line:  # blanks at the ends of a cell are not part of it
        row = [cell.strip(" ") for cell in row]
    if len(row) != 10:
        raise InputError(
            f"{path}:{number}: a CoNLL-U line must have 10 tab-separated columns, this one has {len(row)}"
        )
    if not is_word(row[0], str(path), number):
        return None
    check_form(row[1], str(path), number)
    return row


def is_word(place: str, where: str, number: int) -> bool:
    """Whether the first cell of a line is the id of a word, and not a multiword range (1-2) or an empty node (1.1).

    Raises InputError for anything else.
    """
    if place.isdecimal():
        return True
    first, separator, second = place.replace(".", "-", 1).partition("-")
    if separator and first.isdecimal() and second.isdecimal():
        return False
    raise InputError(
        f"{where}:{number}: the word id {place!r} is not a number (1), a range (1-2) or an empty node (1.1)"
    )


def check_form(form: str, where: str, number: int) -> None:
    """Raise InputError for a word without a form, the second cell of its line."""
    if not form:
        raise InputError(f"{where}:{number}: there is no word in the second column; add it")


def _existing_tasks(rows: list[list[str]]) -> list[str]:
    """Return the annotated columns, then the features that occur."""
    columns = [
        task for task, column in _COLUMN_OF.items() if any(row[column] not in _NO_LABEL for row in rows)
    ]
    analyses = {row[_FEATS_COLUMN] for row in rows}
    features = {name for analysis in analyses for name, _ in _features(analysis)}
    return columns + [f"feats.{name}" for name in sorted(features)]


def _section(sentences: list[list[list[str]]], tasks: list[str]) -> Section:
    words = [[row[1] for row in sentence] for sentence in sentences]
    return Section(words, {task: _cells(sentences, task) for task in tasks})


def _cells(sentences: list[list[list[str]]], task: str) -> list[list[str | None]]:
    if task in _COLUMN_OF:
        column = _COLUMN_OF[task]
        return [
            [None if row[column] in _NO_LABEL else row[column] for row in sentence] for sentence in sentences
        ]
    name = task.removeprefix("feats.")
    analyses = {row[_FEATS_COLUMN] for sentence in sentences for row in sentence}
    value_of = {analysis: _feature(analysis, name) for analysis in analyses}
    return [[value_of[row[_FEATS_COLUMN]] for row in sentence] for sentence in sentences]


def _feature(analysis: str, name: str) -> str | None:
    """Return the value of a feature in `A=x|B=y`, "_" where it is absent, and None in an empty cell."""
    return next((value for key, value in _features(analysis) if key == name), "_" if analysis else None)


def _features(analysis: str) -> Iterator[tuple[str, str]]:
    """Yield (name, value) for the parts of `A=x|B=y` that have both."""
    for part in analysis.split("|"):
        name, _, value = part.partition("=")
        if name and value:
            yield name, value


def _has_a_name_twice(analysis: str) -> bool:
    names = [name for name, _ in _features(analysis)]
    return len(set(names)) < len(names)


def _has_a_bare_part(analysis: str) -> bool:
    return analysis not in _NO_LABEL and len(list(_features(analysis))) < analysis.count("|") + 1
