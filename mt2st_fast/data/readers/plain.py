"""The reader `text:PATH`: raw text without labels, one sentence or document a line."""

from pathlib import Path

from mt2st_fast.data.corpus import Splits
from mt2st_fast.data.readers.assembly import Section, assemble, complete_splits
from mt2st_fast.data.readers.delimited import tokenize_text
from mt2st_fast.data.readers.files import find_splits, numbered_lines
from mt2st_fast.data.readers.request import ReadRequest
from mt2st_fast.errors import InputError

_EXTENSIONS = (".txt", ".text")


def read(request: ReadRequest) -> Splits:
    """A corpus without tasks. Raises InputError where a task was asked for."""
    if request.requested:
        raise InputError(
            f"text:{request.path} has no labels for task {request.requested[0].name!r}; "
            "readers with labels are stdlib, conllu:PATH, columns:PATH and csv:PATH"
        )
    found = {part: _read_section(path) for part, path in find_splits(request.path, _EXTENSIONS).items()}
    sections = complete_splits(found, str(request.path))
    return assemble(f"text:{request.path}", sections, {}, "token", None, ())


def _read_section(path: Path) -> Section:
    units = [words for _, line in numbered_lines(path) if (words := tokenize_text(line))]
    if not units:
        raise InputError(f"{path}: the file has no words")
    return Section(units, {})
