"""The reader `text:PATH`: raw text without labels, one sentence or document per line."""

from pathlib import Path

from mt2st_fast.data.corpus import FileRead, ReadRecord, Splits
from mt2st_fast.data.readers.assembly import Section, assemble, complete_splits
from mt2st_fast.data.readers.files import find_splits
from mt2st_fast.data.readers.request import Reader, ReadRequest
from mt2st_fast.data.text.lines import TextLines, open_lines
from mt2st_fast.data.text.tokenizers import lowered_words_and_marks
from mt2st_fast.errors import InputError

_EXTENSIONS = (".txt", ".text")


def read(request: ReadRequest) -> Splits:
    """Read a corpus without tasks."""
    found, files, notes = {}, [], []
    for part, path in find_splits(request.path, _EXTENSIONS, request.measured).items():
        text = open_lines(path, tell=False)
        found[part], without_words = _read_section(text, path)
        n_words = sum(map(len, found[part].units))
        left_out = {"lines without words": without_words} if without_words else {}
        files.append(FileRead(str(path), part, len(found[part].units), n_words, left_out))
        notes += [f"{path.name}: {note}" for note in text.notes]
    sections = complete_splits(found, str(request.path), request.measured)
    return assemble(f"text:{request.path}", sections, {}, "token", None, (), notes, ReadRecord(tuple(files)))


READER = Reader(
    "text",
    read,
    path="a text with one sentence or document per line, or a folder of such files",
    kinds=(),
    tokenizer="lowered words",
    extensions=_EXTENSIONS,
)


def _read_section(text: TextLines, path: Path) -> tuple[Section, int]:
    """Return the lines that have words, and how many have none."""
    lines = [lowered_words_and_marks(line) for _, line in text]
    units = [words for words in lines if words]
    if not units:
        raise InputError(f"{path}: contains no words")
    return Section(units, {}), len(lines) - len(units)
