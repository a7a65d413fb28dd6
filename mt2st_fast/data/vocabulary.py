"""The vocabulary: word types, their int32 ids and their counts in the training text."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from mt2st_fast.errors import InputError, OptionError

_HEAD_BYTES = 8


class Vocabulary:
    """T word types. Ids are in order of descending training count, then alphabetical; unseen types come last.

    `words` is a list of T strings and `counts` an int64 array (T,). Types of the development and test text have ids,
    too (with count 0), because hashed subwords can describe a word that has no row of its own.
    """

    def __init__(self, words: Sequence[str], counts: np.ndarray | Sequence[int]) -> None:
        """Take types that are already in id order; `from_counts` and `build` sort them."""
        self.words = list(words)
        self.counts = np.asarray(counts, dtype=np.int64)
        if self.counts.shape != (len(self.words),):
            raise ValueError(f"{len(self.words)} words but counts of shape {self.counts.shape}")
        if len(self._id_of) != len(self.words):
            raise ValueError("the vocabulary contains a word twice")

    @classmethod
    def _of_different(cls, words: list[str], counts: np.ndarray) -> "Vocabulary":
        """Make a vocabulary of words that are known to differ, so that the look-up table is only built when needed."""
        vocabulary = cls.__new__(cls)
        vocabulary.words, vocabulary.counts = words, counts
        return vocabulary

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return dict(zip(self.words, range(len(self.words)), strict=True))

    @classmethod
    def build(cls, training_words: Iterable[str], *other_words: Iterable[str]) -> "Vocabulary":
        """Count the training words; add the types of the other iterables (development, test) with count 0."""
        count_of = Counter(training_words)
        for words in other_words:
            for word in set(words) - count_of.keys():
                count_of[word] = 0
        return cls.from_counts(list(count_of), list(count_of.values()))

    @classmethod
    def from_counts(
        cls,
        words: Iterable[str],
        counts: np.ndarray | Sequence[int],
        *,
        min_count: int = 0,
        where: str = "the text",
    ) -> "Vocabulary":
        """Sort the types seen at least `min_count` times, given in any order, into id order.

        Raises InputError, about `where`, if there are types but none that frequent.
        """
        words, counts = list(words), np.asarray(counts, dtype=np.int64)
        if len(words) != len(counts):
            raise ValueError(f"{len(words)} words but {len(counts)} counts")
        kept = np.flatnonzero(counts >= min_count).tolist()
        if words and not kept:
            raise OptionError(
                f"{where}: no word occurs at least {min_count} times (the most frequent occurs {counts.max()} "
                "times); use more text or a smaller ",
                "min_count",
            )
        if len(kept) < len(words):
            words, counts = [words[i] for i in kept], counts[kept]
        return cls.numbered(words, counts)[0]

    @classmethod
    def numbered(cls, words: Sequence[str], counts: np.ndarray) -> "tuple[Vocabulary, np.ndarray]":
        """Return the vocabulary of V different words in any order; and the id of each, int32 (V,)."""
        order = _id_order(words, counts)
        id_of = np.empty(len(words), np.int32)
        id_of[order] = np.arange(len(words), dtype=np.int32)
        return cls._of_different(list(map(words.__getitem__, order.tolist())), counts[order]), id_of

    def frequent(self, min_count: int) -> "Vocabulary":
        """Return the types seen at least `min_count` times, with their present ids. Raises as `from_counts` does."""
        kept = int((self.counts >= min_count).sum())
        if kept == len(self):
            return self
        # The latter where types were given in another order.
        if not kept or (self.counts[:kept] < min_count).any():
            return self.from_counts(self.words, self.counts, min_count=min_count)
        return self._of_different(self.words[:kept], self.counts[:kept])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._id_of

    def get(self, word: str, default: int) -> int:
        """Return the id of a word, `default` for a word outside the vocabulary."""
        return self._id_of.get(word, default)

    def lookup(self, words: Iterable[str]) -> np.ndarray:
        """Return ids of words, int32 (T,), -1 for a word outside the vocabulary."""
        get = self._id_of.get
        return np.fromiter((get(word, -1) for word in words), dtype=np.int32)

    def ids_of(self, words: Iterable[str]) -> np.ndarray:
        """Return ids of words, int32 (T,). Raises InputError for a word outside the vocabulary."""
        id_of = self._id_of
        try:
            return np.fromiter((id_of[word] for word in words), dtype=np.int32)
        except KeyError as missing:
            raise InputError(
                f"the word {missing.args[0]!r} is not in the vocabulary of {len(self)} types"
            ) from None

    @cached_property
    def digest(self) -> str:
        """A checksum of the words and their counts."""
        return hashlib.sha256(self.to_json().encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the JSON that `from_json` reads."""
        return json.dumps({"words": self.words, "counts": self.counts.tolist()}, ensure_ascii=False)

    @classmethod
    def from_json(cls, encoded: bytes) -> "Vocabulary":
        """Read JSON in UTF-8. Raises ValueError for anything but different words, each with its count."""
        try:
            content = json.loads(encoded)
            words, counts = content["words"], content["counts"]
            # NumPy would accept "3", 1.5 and True as counts.
            if all(isinstance(word, str) for word in words) and all(
                type(n) is int and n >= 0 for n in counts
            ):
                return cls(words, counts)
        except (KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"the vocabulary is damaged ({type(error).__name__})") from None
        raise ValueError("the vocabulary is damaged: words must be strings and counts must not be negative")


def _id_order(words: Sequence[str], counts: np.ndarray) -> np.ndarray:
    """Return the order int64 (V,) of words by ids. Words are only compared where the counts are equal."""
    heads = _first_letters(words)
    order = np.lexsort((heads, -counts))
    ties = (heads[order[1:]] == heads[order[:-1]]) & (counts[order[1:]] == counts[order[:-1]])
    tied = np.flatnonzero(np.append(ties, False) | np.append(False, ties))
    if len(tied):
        run = np.cumsum(np.append(True, ~ties))[tied]
        by_name = sorted(range(len(tied)), key=list(map(words.__getitem__, order[tied].tolist())).__getitem__)
        order[tied] = order[tied][by_name][np.argsort(run[by_name], kind="stable")]
    return order


def _first_letters(words: Sequence[str]) -> np.ndarray:
    """Return numbers uint64 (V,) that sort like the words; words with the same first letters have the same number.

    They consist of bytes of UTF-8, whose order is that of the characters.
    """
    text = "\n".join(words).encode("utf-8", "surrogatepass")
    letters = np.frombuffer(text + bytes(_HEAD_BYTES), np.uint8)
    ends = np.append(np.flatnonzero(letters[: len(text)] == ord("\n")), len(text))
    if len(ends) != len(words):  # some word contains a line feed
        return np.zeros(len(words), np.uint64)
    begins = np.append(0, ends[:-1] + 1)
    heads = letters[begins[:, None] + np.arange(_HEAD_BYTES)]
    heads[np.arange(_HEAD_BYTES) >= (ends - begins)[:, None]] = 0
    return heads.view(">u8").ravel().astype(np.uint64)
