"""The vocabulary: word types, their int32 ids and how often training text holds each."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mt2st_fast.errors import InputError


class Vocabulary:
    """T word types. Ids run by training count descending, then alphabetically; types never seen in training
    come last.

    `words` is a list of T strings and `counts` an int64 array (T,). Types of the development and test
    text have ids too (with count 0), because hashed subwords can describe a word that has no row of its own.
    """

    def __init__(self, words: Sequence[str], counts: np.ndarray | Sequence[int]):
        """Take types that already stand in id order; `from_counts` and `build` put them in order."""
        self.words = list(words)
        self.counts = np.asarray(counts, dtype=np.int64)
        self._id_of = {word: i for i, word in enumerate(self.words)}
        if self.counts.shape != (len(self.words),):
            raise ValueError(f"{len(self.words)} words but counts of shape {self.counts.shape}")
        if len(self._id_of) != len(self.words):
            raise ValueError("a word stands twice in the vocabulary")

    @classmethod
    def build(cls, training_words: Iterable[str], *other_words: Iterable[str]) -> "Vocabulary":
        """Count the training words; add the types of the other iterables (development, test) with count 0."""
        count_of = Counter(training_words)
        for words in other_words:
            for word in set(words) - count_of.keys():
                count_of[word] = 0
        return cls.from_counts(list(count_of), list(count_of.values()))

    @classmethod
    def from_counts(cls, words: Sequence[str], counts: np.ndarray | Sequence[int]) -> "Vocabulary":
        """Put types with known training counts, given in any order, into id order."""
        pairs = sorted(
            zip(words, np.asarray(counts).tolist(), strict=True), key=lambda pair: (-pair[1], pair[0])
        )
        return cls([word for word, _ in pairs], [count for _, count in pairs])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._id_of

    def get(self, word: str, default: int) -> int:
        """The id of a word, `default` for one that is no type of this vocabulary."""
        return self._id_of.get(word, default)

    def ids_of(self, words: Iterable[str]) -> np.ndarray:
        """Ids of words, int32 (T,). Raises InputError for a word that is no type of this vocabulary."""
        id_of = self._id_of
        try:
            return np.fromiter((id_of[word] for word in words), dtype=np.int32)
        except KeyError as missing:
            raise InputError(
                f"the word {missing.args[0]!r} is not in the vocabulary of {len(self)} types"
            ) from None

    def save(self, path: str | Path) -> None:
        """Write the vocabulary as JSON."""
        Path(path).write_text(
            json.dumps({"words": self.words, "counts": self.counts.tolist()}, ensure_ascii=False),
            encoding="utf-8",
        )

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read what `save` wrote. Raises InputError where the file is missing or is no vocabulary."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(content["words"], content["counts"])
        except OSError as error:
            raise InputError(f"{path}: the vocabulary cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}: is not a vocabulary written by Vocabulary.save") from None
