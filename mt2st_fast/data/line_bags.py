"""Bags of texts that arrive in blocks: each word's features are found once, however often the word occurs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mt2st_fast.data.bag_features import BagFeatures, known_words
from mt2st_fast.data.text.word_files import add_lines
from mt2st_fast.kernels import WordCounter, split_lines

MOST_WORDS = 1 << 22  # maximum of cached words; the cache is then cleared


class LineBags:
    """Makes bags of blocks of lines as `BagFeatures.bags` does of documents; labels in a line do not count as words.

    prefix: what labels begin with. It remembers the words that it has seen, and so serves one thread at a time.
    """

    def __init__(self, features: BagFeatures, prefix: str) -> None:
        self._features, self._prefix = features, prefix
        self._begin()

    def __call__(self, lines: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids int32 (total,), bounds int64 (N + 1,)) of N lines without line feeds.

        Raises InputError for an unpaired surrogate, which UTF-8 cannot encode.
        """
        if len(self._counter) > MOST_WORDS:
            self._begin()
        numbers = add_lines(self._counter, lines)
        self._take_new_words()
        found = split_lines(numbers, self._id_of, self._is_label, keep_empty=True)
        if self._features.words_alone:
            return known_words(found.ids, found.bounds)
        return self._features.bags_of(found.ids, found.bounds, self._parts)

    def _begin(self) -> None:
        self._counter = WordCounter()
        self._id_of, self._is_label = np.empty(0, np.int32), np.empty(0, bool)
        self._parts = self._features.parts_of(())

    def _take_new_words(self) -> None:
        n_known = len(self._id_of)
        words = self._counter.words(n_known)
        if not words:
            return
        is_label = [word.startswith(self._prefix) for word in words]
        self._is_label = np.append(self._is_label, is_label)
        if self._features.words_alone:
            new = self._features.vocabulary.lookup(words)
        else:
            new = np.arange(n_known, n_known + len(words), dtype=np.int32)
            self._parts = self._parts.joined(self._features.parts_of(words))
        self._id_of = np.append(self._id_of, new)
