"""Make a token file from text files of any size, which are read once, in blocks.

The numbers of words are written to a temporary file; when all words are counted, they are mapped to the ids of the
vocabulary. Memory only has to hold the different words and a few blocks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mt2st_fast.data.stream import write_stream
from mt2st_fast.data.text.word_files import number_blocks
from mt2st_fast.data.tokens import MISSING_WORD
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.environment import cpu_threads
from mt2st_fast.errors import InputError
from mt2st_fast.files import check_not_read, is_same_file, naming
from mt2st_fast.folder_lock import made
from mt2st_fast.kernels import WordCounter
from mt2st_fast.numbers import check_count, given

Progress = Callable[[str, int, int], None]

BLOCK_BYTES = 8 << 20  # of the temporary file
_END = -2


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`: what it read and wrote."""

    files: int
    bytes_read: int
    words_read: int
    words_kept: int
    types_read: int
    types_kept: int
    sentences: int


def prepare(
    corpus: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    lower: bool = False,
    min_count: int = 5,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Write the token file `out` (see mt2st_fast.data.stream) from text files and folders, also from .gz files.

    A line is a sentence; its words are separated by white space. Files of a folder (except hidden ones) are read in the
    order of their paths. processes: how many cores read at a time, by default as many as torch uses; the output does
    not depend on it. progress: called with the pass ("read", "write"), bytes done and bytes in total.

    Raises InputError for a corpus that is missing, not UTF-8, or has no word that occurs `min_count` times. In this
    case, or if interrupted, an older `out` stays as it was.
    """
    out = Path(out)
    paths = [Path(path) for path in ([corpus] if isinstance(corpus, str | Path) else corpus)]
    check_count(min_count=min_count, **given(processes=processes))
    if out.is_dir():
        raise InputError(f"{out} is a folder; pass the name of a file in it as out")
    files, report = _files_of(paths, out), progress or _ignored
    total = sum(path.stat().st_size for path in files)
    with (
        cpu_threads(processes),
        naming(out),
        made(out.parent),
        tempfile.TemporaryFile(dir=out.parent) as waiting,
    ):
        counter, before = WordCounter(), 0
        for path in files:
            for numbers, position in number_blocks(path, counter, may_be_empty=True):
                waiting.write(numbers.tobytes())
                report("read", before + position, total)
            before += path.stat().st_size
            report("read", before, total)
        words = [word.lower() for word in counter.words()] if lower else counter.words()
        types, counts = _counted(words, counter.counts)
        where = ", ".join(map(str, paths))
        if not types:
            raise InputError(f"{where}: contains no words; use a text with words")
        vocabulary = Vocabulary.from_counts(types, counts, min_count=min_count, where=where)
        # The number of an end, -1, selects the last entry.
        new_id = np.append(vocabulary.lookup(words), np.int32(_END))
        sentences = write_stream(out, _kept(waiting, new_id, report), vocabulary)
    return Prepared(
        files=len(files),
        bytes_read=total,
        words_read=int(counts.sum()),
        words_kept=int(vocabulary.counts.sum()),
        types_read=len(types),
        types_kept=len(vocabulary),
        sentences=sentences,
    )


def _ignored(stage: str, done: int, total: int) -> None:
    """Report to nobody."""


def _counted(words: Sequence[str], counts: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return the different words, some of which may be there several times in lower case, and their counts."""
    place_of = {word: place for place, word in enumerate(dict.fromkeys(words))}
    sums = np.zeros(len(place_of), np.int64)
    np.add.at(sums, np.fromiter(map(place_of.__getitem__, words), np.int64, len(words)), counts)
    return list(place_of), sums


def _kept(waiting: BinaryIO, new_id: np.ndarray, report: Progress) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the numbers of a file in blocks, as ids of the vocabulary, with the ends of sentences."""
    size = waiting.tell()
    waiting.seek(0)
    while numbers := waiting.read(BLOCK_BYTES // 4 * 4):
        yield _kept_ids_and_ends(new_id[np.frombuffer(numbers, dtype=np.int32)])
        report("write", waiting.tell(), size)


def _kept_ids_and_ends(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids that are kept, and for each line end how many of them precede it."""
    ids = ids[ids != MISSING_WORD]
    ends = np.flatnonzero(ids == _END)
    return ids[ids != _END], ends - np.arange(len(ends))


def _files_of(paths: Sequence[Path], out: Path) -> list[Path]:
    """Return the files to read, in order; never the output file."""
    files = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
            )
            files += [file for file in inside if not is_same_file(out, file)]
        elif path.is_file():
            check_not_read(out, [path])
            files.append(path)
        else:
            raise InputError(f"{path}: no such file or folder; check the path")
    if not files:
        raise InputError(f"{', '.join(map(str, paths)) or 'the corpus'}: no files to read; check the path")
    return files
