"""The reader `text:PATH`: raw text without labels, one sentence or document a line."""

from pathlib import Path

from mt2st_fast.data.corpus import Splits
from mt2st_fast.data.readers.assembly import Section, assemble, complete_splits
from mt2st_fast.data.readers.delimited import tokenize_text
from mt2st_fast.data.readers.files import find_splits, numbered_lines
from mt2st_fast.data.readers.request import Reader, ReadRequest
from mt2st_fast.errors import InputError

_EXTENSIONS = (".txt", ".text")


def read(request: ReadRequest) -> Splits:
    """A corpus without tasks."""
    found = {part: _read_section(path) for part, path in find_splits(request.path, _EXTENSIONS).items()}
    sections = complete_splits(found, str(request.path))
    return assemble(f"text:{request.path}", sections, {}, "token", None, ())


READER = Reader(
    "text",
    read,
    path="a text with a sentence or document a line, or a folder of such",
    kinds=(),
    tokenizer="lowered words",
)


def _read_section(path: Path) -> Section:
    units = [words for _, line in numbered_lines(path) if (words := tokenize_text(line))]
    if not units:
        raise InputError(f"{path}: the file has no words")
    return Section(units, {})
