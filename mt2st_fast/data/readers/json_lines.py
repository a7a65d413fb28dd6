"""The reader `jsonl:PATH`: documents as JSON objects, one a line, with a key for the text and keys for labels."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mt2st_fast.data.corpus import Splits
from mt2st_fast.data.readers.documents import read_documents, texts_of
from mt2st_fast.data.readers.request import Reader, ReadRequest, Unlabelled
from mt2st_fast.data.readers.table import Table, make_table
from mt2st_fast.data.readers.table_rows import Rows
from mt2st_fast.data.text.lines import open_lines
from mt2st_fast.errors import InputError
from mt2st_fast.spelling import listed

_EXTENSIONS = (".jsonl", ".ndjson", ".json")
_BETWEEN_LABELS = "|;"  # see `table.Columns.cells`
_FIX = "write one JSON object a line"
MOST_KEYS = 1000  # a map from ids to values would make a column of every id


def read(request: ReadRequest) -> Splits:
    """Read a file of JSON objects, or a folder of such, whose rows are documents (see documents.py).

    The columns are the keys of all objects, in order of appearance; of an object within an object, `outer.inner`. null,
    an empty string, an empty list and a missing key are a missing label. Lists of strings or numbers are labels of a
    multi-label task; keys with other lists are left out, and a note says so.
    """
    return read_documents(request, "jsonl", _EXTENSIONS, _read_table)


def texts(request: ReadRequest) -> Unlabelled:
    """Return the text of every object."""
    return texts_of(request, read_objects(request.path))


READER = Reader(
    "jsonl",
    read,
    path="JSON objects, one a line, with a key for the text, or a folder of such files",
    kinds=("classes", "labels", "values"),
    tokenizer="lowered words",
    level="document",
    options=("text_column",),
    extensions=_EXTENSIONS,
    unlabelled=texts,
)


def _read_table(path: Path) -> Table:
    return make_table(path, read_objects(path))


def read_objects(path: Path) -> Rows:
    """Return the objects of a file as the rows of a table whose columns are their keys.

    Raises InputError, naming the line, for what is no JSON object, for a key that is there twice, and for text that
    cannot be written as UTF-8.
    """
    text = open_lines(path, tell=False)
    found, blank = _Objects(path), 0
    for number, line in text:
        if line.strip():
            found.add(_parsed(line, path, number), number)
        else:
            blank += 1
    return found.rows(text.notes, {"blank lines": blank})


class _Objects:
    """The objects of a file so far, each as its cells by key."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells: list[dict[str, str]] = []
        self._numbers: list[int] = []
        self._keys: dict[str, int] = {}  # in order of appearance: how many objects have each
        self._lists: dict[str, set[int]] = {}  # by key, the places of the objects that have a list
        self._unusable: dict[str, None] = {}  # keys of lists of objects

    def add(self, found: dict[str, Any], number: int) -> None:
        """Take the object of a line."""
        cells: dict[str, str] = {}
        for key, value in _leaves(found, "", self._path, number):
            if key in cells:
                raise InputError(f"{self._path}:{number}: two values are called {key!r}; rename one of them")
            if isinstance(value, list):
                if any(isinstance(item, dict | list) for item in value):
                    self._unusable[key] = None
                    continue
                self._lists.setdefault(key, set()).add(len(self._cells))
                labels = (_label(item, key, self._path, number) for item in value if item is not None)
                cells[key] = "|".join(labels)
            else:
                cells[key] = _text(value, self._path, number)
            self._keys[key] = self._keys.get(key, 0) + 1
        if len(self._keys) > MOST_KEYS:
            raise InputError(
                f"{self._path}:{number}: the objects have more than {MOST_KEYS:,} different keys, such as "
                f"{next(reversed(self._keys))!r}; use keys for what all rows have, and put names that differ into "
                "values"
            )
        self._cells.append(cells)
        self._numbers.append(number)

    def rows(self, notes: list[str], left_out: dict[str, int]) -> Rows:
        """Return the table of all objects. Raises InputError if it has no column, or a label that would be split."""
        header = [key for key in self._keys if key not in self._unusable and not self._is_nothing(key)]
        if not header:
            raise InputError(f"{self._path}: no object has a key with a text or a label; {_FIX}")
        lists = {key for key in header if key in self._lists}
        for key in lists:
            self._check_single_labels(key)
        rows = [[cells.get(key, "") for key in header] for cells in self._cells]
        notes = [*self._notes(header), *notes]
        return Rows(header, rows, self._numbers, notes, left_out, lists)

    def _is_nothing(self, key: str) -> bool:
        """Whether a key is null where it is not an object, whose own keys are the columns."""
        return any(other.startswith(f"{key}.") for other in self._keys) and not any(
            cells.get(key) for cells in self._cells
        )

    def _check_single_labels(self, key: str) -> None:
        """Raise InputError for a single value among lists that has a sign between labels in it."""
        for place, (cells, number) in enumerate(zip(self._cells, self._numbers, strict=True)):
            if place not in self._lists[key]:
                _label(cells.get(key, ""), key, self._path, number)

    def _notes(self, header: Sequence[str]) -> Iterator[str]:
        if self._unusable:
            yield f"left out because they hold lists of objects or of lists: {listed(list(self._unusable))}"
        if missing := [key for key in header if self._keys[key] < len(self._cells)]:
            first = next(
                n for n, cells in zip(self._numbers, self._cells, strict=True) if missing[0] not in cells
            )
            yield (
                f"not every object has the keys {listed(missing)}: {len(self._cells) - self._keys[missing[0]]:,} have "
                f"no {missing[0]!r}, the first on line {first}"
            )


def _parsed(line: str, path: Path, number: int) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):  # json itself keeps the last one
            twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
            raise InputError(f"{path}:{number}: the key {twice!r} is there twice; rename one of them")
        return found

    try:
        value = json.loads(line, object_pairs_hook=unique, parse_constant=_constant)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        _refuse_line(line, path, number, error)
    if not isinstance(value, dict):
        if number == 1 and isinstance(value, list):
            raise InputError(f"{path}:1: the file is one JSON list; {_FIX}")
        raise InputError(f"{path}:{number}: {_shown(line)} is no JSON object; {_FIX}")
    return value


def _refuse_line(line: str, path: Path, number: int, error: Exception) -> NoReturn:
    if line.strip() in ("[", "{") or (number == 1 and line.lstrip().startswith("[")):
        raise InputError(f"{path}:{number}: a JSON value goes over several lines; {_FIX}") from None
    if isinstance(error, json.JSONDecodeError):
        why = f"is not JSON ({error.msg} at column {error.colno}); {_FIX}"
    elif isinstance(error, RecursionError):
        why = f"is not JSON (nested too deeply); {_FIX}"
    else:  # Python's limit, as converting them takes a time quadratic in their number
        why = "has a number of thousands of digits; write it as a text, or shorter"
    raise InputError(f"{path}:{number}: {_shown(line)} {why}") from None


def _constant(name: str) -> str:
    """Return NaN and the infinities, which Python writes although JSON has none, as their text."""
    return {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}[name]


def _leaves(found: dict[str, Any], prefix: str, path: Path, number: int) -> Iterator[tuple[str, Any]]:
    """Yield the values that are no objects, by their path of keys."""
    for name, value in found.items():
        key = f"{prefix}{_text(' '.join(name.split()), path, number)}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{key}.", path, number)
        else:
            yield key, value


def _text(value: Any, path: Path, number: int) -> str:
    """Return a value as the text of a cell: 1.0 as "1", true as "true", null as ""."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))  # pandas writes whole numbers so, where one is missing
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        bad = text[error.start].encode("unicode_escape").decode()
        raise InputError(
            f"{path}:{number}: {bad} is half of a character and no text; write the whole character"
        ) from None
    return text


def _label(item: Any, key: str, path: Path, number: int) -> str:
    label = _text(item, path, number)
    if any(sign in label for sign in _BETWEEN_LABELS):
        raise InputError(
            f"{path}:{number}: the label {label!r} in {key!r} contains | or ;, which separate labels; rename it"
        )
    return label


def _shown(line: str) -> str:
    return repr(line if len(line) <= 40 else f"{line[:37]}...")
