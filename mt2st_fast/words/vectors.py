"""Word vectors as a table with one word per row: for files, for gensim, and as a start for training."""

from __future__ import annotations

import contextlib
import reprlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mt2st_fast.errors import InputError
from mt2st_fast.files import writing
from mt2st_fast.words import vector_formats
from mt2st_fast.words.cosines import nearest_rows, unit_rows

SHOWN = 5  # words that a console shows of a table


@dataclass(frozen=True, eq=False, repr=False)
class WordVectors:
    """T words and their float32 vectors (T, D), in order of frequency where the file or `counts` say so.

    `counts` is int64 (T,) or None. `index_of` is the row of each word. The array is shared with the caller, and
    read-only here. Raises ValueError for parts that do not fit together and for a word that occurs twice.
    """

    words: Sequence[str]
    vectors: np.ndarray
    counts: np.ndarray | None = None
    index_of: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        vectors = np.asarray(self.vectors, dtype=np.float32).view()
        words = tuple(self.words)
        index_of = {word: t for t, word in enumerate(words)}
        if vectors.ndim != 2 or len(vectors) != len(words) or vectors.shape[1] < 1:
            raise ValueError(
                f"{len(words)} words need vectors of shape ({len(words)}, D), not {vectors.shape}"
            )
        if len(index_of) != len(words):
            twice = next(word for t, word in enumerate(words) if index_of[word] != t)
            raise ValueError(f"the word {twice!r} occurs twice")
        vectors.flags.writeable = False
        counts = None if self.counts is None else np.asarray(self.counts, dtype=np.int64)
        if counts is not None and counts.shape != (len(words),):
            raise ValueError(f"there are {len(words)} words, but counts have shape {counts.shape}")
        for name, value in (
            ("words", words),
            ("vectors", vectors),
            ("counts", counts),
            ("index_of", index_of),
        ):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        first = ", ".join(map(reprlib.repr, self.words[:SHOWN]))
        return (
            f"WordVectors({len(self):,} words of {self.dim} numbers: {first}{', ...' * (len(self) > SHOWN)})"
        )

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.vectors.shape[1]

    def select(self, rows: np.ndarray | Sequence[int]) -> WordVectors:
        """Return the words of some rows, in the order of `rows`; their vectors are copied."""
        rows = np.asarray(rows, dtype=np.int64)
        counts = None if self.counts is None else self.counts[rows]
        return WordVectors([self.words[t] for t in rows], self.vectors[rows], counts)

    def by_frequency(self) -> np.ndarray:
        """Return the rows, the most frequent word first; without counts, in the order of the file."""
        return np.arange(len(self)) if self.counts is None else np.argsort(-self.counts, kind="stable")

    def write(self, path: str | Path) -> int:
        """Write a file, whole or not at all, in the format of its suffix, and return how many words it holds.

        `.txt` and `.vec` are word2vec text, `.bin` is word2vec binary, each also as `.gz`; `.safetensors` also holds
        counts. The word2vec formats cannot hold a word that is empty or contains white space, so these are left out.
        Raises InputError for another suffix.
        """
        path = Path(path)
        write = vector_formats.WRITERS[_suffix_of(path, "written as")]
        with writing(path) as file:
            return write(file, self.words, self.vectors, self.counts)

    @classmethod
    def read(cls, path: str | Path) -> WordVectors:
        """Read vectors that `write`, word2vec, gensim, fastText (.vec) or GloVe wrote; text and binary also as .gz.

        Raises InputError, which names the place, for a file that is missing, damaged or in no known format.
        """
        path = Path(path)
        words, vectors_td, counts = vector_formats.READERS[_suffix_of(path, "read from")](path)
        if not words:
            raise InputError(f"{path}: contains no words")
        finite = np.isfinite(vectors_td.max(axis=1)) & np.isfinite(vectors_td.min(axis=1))
        if not finite.all():
            raise InputError(
                f"{path}: the vector of {words[int(finite.argmin())]!r} is not finite; remove the word"
            )
        try:
            return cls(words, vectors_td, counts)
        except ValueError as error:
            raise InputError(f"{path}: {error}; the file is damaged") from None

    def to_keyed_vectors(self) -> Any:
        """Return a gensim.models.KeyedVectors that shares this table. Raises InputError where gensim is missing."""
        return keyed_vectors(self.words, self.vectors, self.counts)

    def nearest(self, queries: Sequence[str], neighbours: int = 5) -> dict[str, list[tuple[str, float]]]:
        """Return, for each query that is in the table, the other words of highest cosine, and the cosines."""
        unit_td = unit_rows(self.vectors)
        rows = {query: self.index_of[query] for query in queries if query in self.index_of}
        return {
            query: [
                (self.words[t], cosine)
                for t, cosine in nearest_rows(unit_td[row], unit_td, neighbours, (row,))
            ]
            for query, row in rows.items()
        }


def _suffix_of(path: Path, done: str) -> str:
    """Return the suffix that names a file's format, without .gz. Raises InputError for another one; done: "read from"
    or "written as".
    """
    packed = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if packed else path).suffix.lower()
    if suffix not in vector_formats.READERS or (packed and suffix == ".safetensors"):
        raise InputError(
            f"{path}: vectors can be {done} .txt, .vec and .bin (also with .gz) and .safetensors; rename the file"
        )
    return suffix


def gensims_class() -> Any:
    """Return gensim.models.KeyedVectors. Raises InputError where gensim is missing."""
    try:
        from gensim.models import KeyedVectors
    except ImportError:
        raise InputError(f"this needs gensim, which is not installed: {_how_to_install_gensim()}") from None
    return KeyedVectors


def _how_to_install_gensim() -> str:
    """gensim 4.4 has no wheel for Python 3.14, and its C code does not compile there."""
    if sys.version_info >= (3, 14):
        return "gensim 4.4 cannot be installed on Python 3.14; use Python 3.13"
    return "pip install gensim"


def import_gensim_early() -> None:
    """Import gensim, where it is installed, so that the first look-up does not wait half a second for the import."""
    with contextlib.suppress(Exception):  # a broken gensim is reported where it is needed
        gensims_class()


def keyed_vectors(words: Sequence[str], vectors: np.ndarray, counts: np.ndarray | None = None) -> Any:
    """Return a gensim.models.KeyedVectors that shares the table. Raises InputError where gensim is missing."""
    keyed = gensims_class()(vectors.shape[1])
    keyed.index_to_key = list(words)
    keyed.key_to_index = {word: t for t, word in enumerate(keyed.index_to_key)}
    keyed.vectors = vectors
    if counts is not None:
        keyed.expandos["count"] = counts.copy()
    return keyed


def frequent_words(vectors: WordVectors, limit: int) -> np.ndarray:
    """Return the rows of the most frequent words that consist of letters, at most `limit`; never words of count 0."""
    counts = vectors.counts
    rows = [
        t for t in vectors.by_frequency() if vectors.words[t].isalpha() and (counts is None or counts[t] > 0)
    ]
    return np.asarray(rows[:limit], dtype=np.int64)


def telling_neighbours(vectors: WordVectors, queries: int = 5, neighbours: int = 5) -> dict[str, list[str]]:
    """Return the nearest neighbours of some frequent words.

    Only the 5,000 most frequent words are searched, as the vector of a rare word says little. The queries have more
    than three letters: the most frequent words are function words, whose neighbours say little.
    """
    frequent = vectors.select(frequent_words(vectors, 5000))
    chosen = [word for word in frequent.words if len(word) > 3][:queries]
    return {word: [other for other, _ in near] for word, near in frequent.nearest(chosen, neighbours).items()}


@dataclass(frozen=True)
class Coverage:
    """How many words of a vocabulary a file of vectors has: exactly, or in lower case."""

    words: int
    exact: int
    lowered: int

    @property
    def share(self) -> float:
        """The share of words that were found."""
        return (self.exact + self.lowered) / max(1, self.words)

    def __str__(self) -> str:
        lowered = f", {self.lowered:,} of them in lower case" if self.lowered else ""
        return f"{self.exact + self.lowered:,} of {self.words:,} words found ({self.share:.1%}{lowered})"


def initial_table(
    vectors: WordVectors, words: Sequence[str], *, seed: int = 0
) -> tuple[np.ndarray, Coverage]:
    """Return a float32 table (T, D) to start training T words from, and how many of them the vectors cover.

    A word takes its own vector, or else that of its lower-case form. The others are drawn from a normal distribution
    with the standard deviation of all numbers of the file, so that no row stands out by its length.
    """
    found = np.fromiter((vectors.index_of.get(word, -1) for word in words), np.int64, len(words))
    exact = int((found >= 0).sum())
    for t in np.flatnonzero(found < 0).tolist():
        found[t] = vectors.index_of.get(words[t].lower(), -1)
    known = found >= 0
    drawn = np.random.default_rng(seed).standard_normal((len(words), vectors.dim), dtype=np.float32)
    drawn *= standard_deviation(vectors.vectors)
    drawn[known] = vectors.vectors[found[known]]
    return drawn, Coverage(len(words), exact, int(known.sum()) - exact)


def standard_deviation(vectors_td: np.ndarray) -> np.float32:
    """Return the standard deviation of all numbers, in float64 and by blocks of rows, without a second copy of the
    table.
    """
    step = max(1, (1 << 17) // vectors_td.shape[1])
    total = squares = 0.0
    for start in range(0, len(vectors_td), step):
        block = vectors_td[start : start + step].astype(np.float64)
        total, squares = total + float(block.sum()), squares + float(np.square(block).sum())
    mean = total / vectors_td.size
    return np.float32(np.sqrt(max(0.0, squares / vectors_td.size - mean * mean)))
