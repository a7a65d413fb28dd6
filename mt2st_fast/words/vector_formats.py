"""The file formats of word vectors, written and read in blocks.

- word2vec text (.txt, .vec): a line `T D`, then one line per word: the word and D numbers, separated by spaces.
  Numbers have nine significant digits, which restore every float32 bit for bit.
- GloVe text: the same without the first line; read only.
- word2vec binary (.bin): a line `T D`, then for each word: the word, a space, D little-endian float32, a line
  feed.
- safetensors: `vectors` (T, D) float32, `words` (bytes of a JSON list in UTF-8) as uint8, and, where they are
  known, `counts` (T,) int64.

Writers return how many words they wrote: the word2vec formats cannot hold a word that is empty or contains white space,
so these are left out. Readers return (words, vectors, counts or None).
"""

from __future__ import annotations

import json
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from mt2st_fast.data.text.lines import open_lines
from mt2st_fast.errors import InputError
from mt2st_fast.files import is_packed, reading
from mt2st_fast.spelling import counted

Table = tuple[list[str], np.ndarray, np.ndarray | None]
Writer = Callable[[BinaryIO, Sequence[str], np.ndarray, np.ndarray | None], int]
Reader = Callable[[Path], Table]
Rows = TypeVar("Rows", list[int], range)

log = logging.getLogger("mt2st_fast")
_BLOCK_BYTES = 1 << 20
_FASTTEXT_MODEL = (793_712_314).to_bytes(4, "little")  # the first bytes of fastText's own .bin
_LONGEST_WORD_BYTES = 1 << 16
_BLANKS = re.compile("[ \t]+")


def fits_word2vec(word: str) -> bool:
    """Whether the word2vec formats can hold a word: not empty, no white space or NUL, encodable as UTF-8."""
    return (
        bool(word)
        and word.split() == [word]
        and "\0" not in word
        and not any("\ud800" <= sign <= "\udfff" for sign in word)
    )


def write_text(
    file: BinaryIO, words: Sequence[str], vectors_td: np.ndarray, counts: np.ndarray | None
) -> int:
    """Write word2vec text, which has no place for counts."""
    D = vectors_td.shape[1]
    line = "%s" + " %.9g" * D
    kept = _rows_that_fit(words)
    file.write(f"{len(kept)} {D}\n".encode())
    for rows in _blocks(kept, D):
        # tolist gives Python floats, which % formats three times faster than numpy's.
        lines = [
            f"{line % (words[t], *row)}\n" for t, row in zip(rows, vectors_td[rows].tolist(), strict=True)
        ]
        file.write("".join(lines).encode())
    return len(kept)


def write_binary(
    file: BinaryIO, words: Sequence[str], vectors_td: np.ndarray, counts: np.ndarray | None
) -> int:
    """Write word2vec binary, which has no place for counts."""
    D = vectors_td.shape[1]
    kept = _rows_that_fit(words)
    file.write(f"{len(kept)} {D}\n".encode())
    for rows in _blocks(kept, D):
        block = vectors_td[rows].astype("<f4", copy=False)
        entries = [
            b"%b %b\n" % (words[t].encode(), row.tobytes()) for t, row in zip(rows, block, strict=True)
        ]
        file.write(b"".join(entries))
    return len(kept)


def write_safetensors(
    file: BinaryIO, words: Sequence[str], vectors_td: np.ndarray, counts: np.ndarray | None
) -> int:
    """Write safetensors without the library, whose writer holds a second copy of every tensor."""
    T, D = vectors_td.shape
    encoded = json.dumps(list(words)).encode()
    tensors: list[tuple[str, str, list[int], int]] = []
    if counts is not None:
        tensors.append(("counts", "I64", [T], 8 * T))
    tensors += [("vectors", "F32", [T, D], 4 * T * D), ("words", "U8", [len(encoded)], len(encoded))]
    header: dict[str, dict] = {"__metadata__": {"format": "mt2st_fast.words.vectors"}}
    end = 0
    for name, dtype, shape, size in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format requires tensors to begin at a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)
    if counts is not None:
        file.write(counts.astype("<i8").tobytes())
    for rows in _blocks(range(T), D):
        file.write(vectors_td[rows.start : rows.stop].astype("<f4", copy=False).tobytes())
    file.write(encoded)
    return T


def _rows_that_fit(words: Sequence[str]) -> list[int]:
    return [t for t, word in enumerate(words) if fits_word2vec(word)]


def _blocks(rows: Rows, D: int) -> Iterator[Rows]:
    """Cut the rows of a table into pieces of about a mebibyte."""
    size = max(1, _BLOCK_BYTES // (4 * D))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def read_text(path: Path) -> Table:
    """Read word2vec text, or GloVe text where the first line is no `T D`."""
    text = open_lines(path, joined=False)
    blocks = text.blocks()
    number, lines = next(blocks)
    sizes = _sizes(lines[0])
    T, D = (None, len(_BLANKS.split(lines[0].strip(" \t"))) - 1) if sizes is None else sizes
    if D < 1:
        raise InputError(
            f"{path}:1: is neither `WORDS NUMBERS` nor a word and its numbers; pass a file of vectors"
        )
    table = _GrowingTable(path, T, D)
    if sizes is not None:
        number, lines = 2, lines[1:]
    elif len(lines) > 1:
        _check_second(path, lines[1], D)
    for first, some in chain([(number, lines)], blocks):
        _read_lines(path, first, some, D, table)
    if text.ends_open:  # half of a number is a number, too
        log.warning("%s: its last line has no end; if the file was cut off, so may be its last number", path)
    return table.words, table.finished(), None


class _GrowingTable:
    """Words and their rows; where T is not known in advance, the table grows in place."""

    def __init__(self, path: Path, T: int | None, D: int) -> None:
        self._path, self._expected = path, T
        self.words: list[str] = []
        self._rows_td = _empty_table(path, 1024 if T is None else T, D)

    def add(self, words: list[str], rows: np.ndarray, line: int) -> None:
        """Append rows (n, D); `line` is the line number of the first."""
        start, end = len(self.words), len(self.words) + len(words)
        if self._expected is not None and end > self._expected:
            raise InputError(
                f"{self._path}:{line + self._expected - start}: there are more words than the {self._expected} "
                "stated in the first line; correct that line"
            )
        if end > len(self._rows_td):
            self._rows_td.resize((max(end, 2 * len(self._rows_td)), self._rows_td.shape[1]), refcheck=False)
        self._rows_td[start:end] = rows
        self.words += words

    def finished(self) -> np.ndarray:
        """Return the table of all words."""
        if self._expected is not None and len(self.words) < self._expected:
            raise InputError(
                f"{self._path}: ends after {len(self.words)} of {self._expected} words; the file is truncated, copy "
                "it again"
            )
        self._rows_td.resize((len(self.words), self._rows_td.shape[1]), refcheck=False)
        return self._rows_td


def _read_lines(path: Path, number: int, lines: list[str], D: int, table: _GrowingTable) -> None:
    """Add the words of some lines, the first of which is line `number`."""
    stripped = [line.rstrip(" \t") for line in lines]
    split = [line.partition(" ") for line in stripped]
    rows = _parse_all([numbers for _, _, numbers in split], D)
    if rows is not None:
        table.add([word for word, _, _ in split], rows, number)
    else:  # some word contains spaces, a line is empty, or something is wrong
        for i, line in enumerate(stripped, start=number):
            if line:
                word, row = _parse_line(path, i, line, D)
                table.add([word], row, i)


def _parse_all(numbers: list[str], D: int) -> np.ndarray | None:
    """Parse n lines of numbers as (n, D); None unless every line has D finite numbers separated by single spaces."""
    if any(line.count(" ") != D - 1 for line in numbers):
        return None
    try:
        with warnings.catch_warnings():  # NumPy warns when it stops at something that is no number
            warnings.simplefilter("error")
            # Each line holds at most D numbers, so the total shows whether each holds exactly D.
            rows = np.fromstring(" ".join(numbers), dtype=np.float32, sep=" ")
    except (ValueError, DeprecationWarning, RuntimeWarning):
        return None
    return rows.reshape(-1, D) if rows.size == D * len(numbers) and np.isfinite(rows).all() else None


def _parse_line(path: Path, number: int, line: str, D: int) -> tuple[str, np.ndarray]:
    # The word is everything before the last D numbers: it may contain blanks and non-ASCII white space.
    fields = _BLANKS.split(line)
    if len(fields) <= D:
        raise InputError(
            f"{path}:{number}: has {counted(len(fields) - 1, 'number')}, not {D}; the file is damaged, or does not "
            "contain word vectors"
        )
    fields = fields[-D:]
    word = re.split(rf"(?:[ \t]+[^ \t]+){{{D}}}$", line, maxsplit=1)[0]
    if _ends_in_a_number(word):
        raise InputError(
            f"{path}:{number}: has more than {counted(D, 'number')} after its word; the file is damaged, or a word "
            "has a blank before a number: write _ for it"
        )
    try:
        row = np.array([_number(field) for field in fields], dtype=np.float64)
    except ValueError:
        raise InputError(
            f"{path}:{number}: is not a word and {counted(D, 'number')}; the file is damaged, or does not "
            "contain word vectors"
        ) from None
    if not (np.abs(row) <= np.finfo(np.float32).max).all():
        raise InputError(f"{path}:{number}: has a number that is not finite in float32; remove the word")
    return word, row.astype(np.float32)


def _ends_in_a_number(word: str) -> bool:
    """Whether the last part of a word with blanks is a number, and so may be one too many of its line."""
    _, *others = _BLANKS.split(word.strip(" \t"))
    try:
        return bool(others) and math.isfinite(_number(others[-1]))  # "inf" and "nan" are words
    except ValueError:
        return False


def _number(field: str) -> float:
    """Parse a number as C does: `float` also takes 1_000 and digits of other scripts. Raises ValueError."""
    if not field.isascii() or "_" in field:
        raise ValueError(field)
    return float(field)


def _check_second(path: Path, line: str, D: int) -> None:
    """Raise InputError if line 2 has more than D numbers: the first line, which determines D, is then damaged."""
    fields = _BLANKS.split(line.strip(" \t"))
    try:
        _number(fields[-D - 1] if len(fields) > D + 1 else "none")
    except ValueError:
        return
    raise InputError(
        f"{path}:1: has {counted(D, 'number')} but line 2 has more; the file is damaged, copy it again"
    )


def read_binary(path: Path) -> Table:
    """Read word2vec binary, with a line feed after each vector (word2vec) or without (gensim)."""
    with reading(path) as file:
        first = file.readline(100)
        sizes = _sizes(first.decode("latin-1"))
        if first.startswith(_FASTTEXT_MODEL):
            raise InputError(
                f"{path}: is a fastText model, not word2vec binary; use the .vec file that fastText writes next to "
                "it, or write its vectors with gensim (load_facebook_vectors, then save_word2vec_format)"
            )
        if sizes is None:
            raise InputError(
                f"{path}: does not begin with `WORDS NUMBERS`; is it word2vec binary? Name text files .txt"
            )
        T, D = sizes
        vectors_td = _empty_table(path, T, D)
        words: list[str] = []
        held, place = b"", 0
        for t in range(T):
            space = held.find(b" ", place)
            while space < 0 or len(held) < space + 1 + 4 * D:
                more = file.read(max(_BLOCK_BYTES, 4 * D))
                if not more or (space < 0 and len(held) - place > _LONGEST_WORD_BYTES):
                    raise InputError(f"{path}: is cut off or damaged at word {t + 1} of {T}; copy it again")
                held, place = held[place:] + more, 0
                space = held.find(b" ")
            try:
                words.append(held[place:space].lstrip(b"\n").decode())
            except UnicodeDecodeError:
                raise InputError(f"{path}: word {t + 1} is not UTF-8; the file is damaged") from None
            vectors_td[t] = np.frombuffer(held, "<f4", D, space + 1)
            place = space + 1 + 4 * D
        if (held[place:] + file.read(2)).strip(b"\n"):
            raise InputError(f"{path}: has more data after its {counted(T, 'word')}; copy the file again")
    return words, vectors_td, None


def read_safetensors(path: Path) -> Table:
    """Read what `write_safetensors` wrote."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path}: there is no such file; check the path")
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            if not {"vectors", "words"} <= names:
                raise InputError(
                    f"{path}: holds {', '.join(sorted(names)) or 'nothing'}, not `vectors` and `words`; "
                    "write it with WordVectors.write"
                )
            words = json.loads(file.get_tensor("words").tobytes())
            vectors_td = file.get_tensor("vectors")
            counts = file.get_tensor("counts") if "counts" in names else None
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not a complete safetensors file ({error}); copy it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if vectors_td.dtype != np.float32 or not (
        isinstance(words, list) and all(isinstance(w, str) for w in words)
    ):
        raise InputError(f"{path}: `vectors` must be float32 and `words` a JSON list of strings")
    return words, vectors_td, counts


def _sizes(line: str) -> tuple[int, int] | None:
    """Return (T, D) of a first line `T D`, None for another line."""
    fields = line.split()
    if (
        line.isascii()
        and len(fields) == 2
        and all(field.isdigit() and len(field) < 16 for field in fields)
        and int(fields[1])
    ):
        return int(fields[0]), int(fields[1])
    return None


def _empty_table(path: Path, T: int, D: int) -> np.ndarray:
    """Return an uninitialized float32 (T, D). Raises InputError if there is not enough memory."""
    # A damaged first line must not exhaust the memory: a word takes at least two bytes for each number.
    if T > 1024 and not is_packed(path) and path.stat().st_size < T * D * 2:
        raise InputError(
            f"{path}: is too short for the {T} words of dimension {D} stated in its first line; copy it again"
        )
    try:
        return np.empty((T, D), dtype=np.float32)
    except (MemoryError, ValueError):
        raise InputError(f"{path}: {T} words of dimension {D} do not fit into memory") from None


WRITERS: dict[str, Writer] = {
    ".txt": write_text,
    ".vec": write_text,
    ".bin": write_binary,
    ".safetensors": write_safetensors,
}
READERS: dict[str, Reader] = {
    ".txt": read_text,
    ".vec": read_text,
    ".bin": read_binary,
    ".safetensors": read_safetensors,
}
