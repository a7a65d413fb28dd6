"""The reader `csv:PATH`: documents in a table with a header, one text column and columns of labels."""

import re
from pathlib import Path

from mt2st_fast.data.corpus import Splits
from mt2st_fast.data.readers.documents import read_documents, texts_of
from mt2st_fast.data.readers.request import Reader, ReadRequest, Unlabelled
from mt2st_fast.data.readers.table import Table, make_table
from mt2st_fast.data.readers.table_rows import Rows, read_rows
from mt2st_fast.errors import InputError

_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar", " ": "blank"}
_EXTENSIONS = (".csv", ".tsv", ".tab")


def read(request: ReadRequest) -> Splits:
    """Read a table, or a folder of such, whose rows are documents (see documents.py)."""
    return read_documents(request, "csv", _EXTENSIONS, lambda path: _read_table(path, request))


def texts(request: ReadRequest) -> Unlabelled:
    """Return the text of every row of a table."""
    rows, between_cells = _read_rows(request.path, request)
    return texts_of(request, rows, between_cells)


READER = Reader(
    "csv",
    read,
    path="a table with a header and a text column, or a folder of such tables",
    kinds=("classes", "labels", "values"),
    tokenizer="lowered words",
    level="document",
    options=("text_column", "delimiter"),
    extensions=_EXTENSIONS,
    unlabelled=texts,
)


def _read_table(path: Path, request: ReadRequest) -> Table:
    return make_table(path, *_read_rows(path, request))


def _read_rows(path: Path, request: ReadRequest) -> tuple[Rows, str]:
    """Return the rows of a table, and the name of what is between cells."""
    given = None if request.delimiter is None else _checked(request.delimiter)
    rows = read_rows(path, lambda said, header: given or _delimiter(path, said, header))
    return rows, _NAMES.get(rows.delimiter, repr(rows.delimiter))


def _checked(delimiter: str) -> str:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter)
    if len(delimiter) != 1 or delimiter in '"\n\r':
        raise InputError(
            f"--delimiter must be one character or tab, and no quotation mark or line end, not {delimiter!r}"
        )
    return delimiter


def _delimiter(path: Path, said: str | None, header: str) -> str:
    """Choose the delimiter by the extension, or the most frequent in the header; csv.Sniffer fails on short headers."""
    if {".tsv", ".tab"} & {suffix.lower() for suffix in path.suffixes}:
        return "\t"
    return said or max(",;\t|", key=re.sub(r'"[^"]*"', "", header).count)
