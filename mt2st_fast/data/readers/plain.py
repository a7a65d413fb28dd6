"""The reader `text:PATH`: raw text without labels, one sentence or document a line."""

from pathlib import Path

from mt2st_fast.data.corpus import Splits
from mt2st_fast.data.readers.assembly import Section, assemble, complete_splits
from mt2st_fast.data.readers.delimited import tokenize_text
from mt2st_fast.data.readers.files import find_splits
from mt2st_fast.data.readers.request import Reader, ReadRequest
from mt2st_fast.data.text.lines import TextLines, open_lines
from mt2st_fast.errors import InputError

_EXTENSIONS = (".txt", ".text")


def read(request: ReadRequest) -> Splits:
    """A corpus without tasks."""
    files = find_splits(request.path, _EXTENSIONS)
    texts = {part: open_lines(path, tell=False) for part, path in files.items()}
    found = {part: _section(texts[part], path) for part, path in files.items()}
    sections = complete_splits(found, str(request.path))
    notes = [f"{path.name}: {note}" for part, path in files.items() for note in texts[part].notes]
    return assemble(f"text:{request.path}", sections, {}, "token", None, (), notes)


READER = Reader(
    "text",
    read,
    path="a text with a sentence or document a line, or a folder of such",
    kinds=(),
    tokenizer="lowered words",
)


def _section(text: TextLines, path: Path) -> Section:
    units = [words for _, line in text if (words := tokenize_text(line))]
    if not units:
        raise InputError(f"{path}: the file has no words")
    return Section(units, {})
