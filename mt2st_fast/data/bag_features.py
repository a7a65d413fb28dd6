"""What is in the bag of a document: known words, character n-grams of every word, and word n-grams, as ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mt2st_fast.data.character_ngrams import character_ngrams, subword_ids
from mt2st_fast.data.subwords import stable_hash
from mt2st_fast.data.tokens import MISSING_WORD, Tokens, bounds_of
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError

# Multiplies the hash of the n-gram so far by an odd number, so that no bit of the previous words is lost.
HASH_FACTOR = np.uint64(116_049_371)
# Documents sorted in one block, so that the temporary memory does not grow with the corpus.
DOCUMENTS_AT_ONCE = 4096


class WordParts(NamedTuple):
    """The ids of V words: those of word v are ids[bounds[v]:bounds[v + 1]], int32: its own if known, and its n-grams'.

    hashes: uint64 (V,) from which word n-grams are computed; (0,) where there are none.
    """

    ids: np.ndarray
    bounds: np.ndarray
    hashes: np.ndarray

    def joined(self, more: WordParts) -> WordParts:
        """Return these words followed by others."""
        bounds = np.append(self.bounds, more.bounds[1:] + self.bounds[-1])
        return WordParts(np.append(self.ids, more.ids), bounds, np.append(self.hashes, more.hashes))


@dataclass(frozen=True)
class BagFeatures:
    """The features of a document's bag.

    Ids: words in the vocabulary's order, then the buckets that both kinds of n-grams are hashed into. A word has
    character n-grams of `minn` to `maxn` characters, none where `maxn` is 0.
    """

    vocabulary: Vocabulary
    word_ngrams: int
    buckets: int
    minn: int = 0
    maxn: int = 0

    @classmethod
    def learn(
        cls,
        documents: Tokens,
        min_count: int,
        word_ngrams: int,
        buckets: int,
        minn: int = 0,
        maxn: int = 0,
    ) -> BagFeatures:
        """Make features from training documents: words seen at least `min_count` times. Raises InputError if there are
        none.
        """
        vocabulary = documents.vocabulary.frequent(min_count)
        if not len(vocabulary):
            raise InputError("the text has no words besides its labels")
        return cls(vocabulary, word_ngrams, buckets if word_ngrams > 1 or maxn else 0, minn, maxn)

    @property
    def size(self) -> int:
        """The number of ids."""
        return len(self.vocabulary) + self.buckets

    def subwords(self, word: str) -> tuple[list[str], np.ndarray]:
        """Return the word, if known, and its character n-grams; and their ids int32."""
        ids, _ = self.ids_of([word])
        known = [word] if word in self.vocabulary else []
        return known + (character_ngrams(word, self.minn, self.maxn) if self.maxn else []), ids

    def bags(self, documents: Tokens) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids int32 (total,), bounds int64 (n_documents + 1,)): for each document its words, then its n-grams.

        Each word is looked up and hashed once, however often it occurs in the documents.
        """
        if self.words_alone:
            found = documents.in_vocabulary(self.vocabulary)
            return known_words(found.ids, found.bounds)
        return self.bags_of(documents.ids, documents.bounds, self.parts_of(documents.vocabulary.words))

    @property
    def words_alone(self) -> bool:
        """Whether bags contain nothing but words."""
        return self.word_ngrams == 1 and not self.maxn

    def parts_of(self, words: Sequence[str]) -> WordParts:
        """Return what each of some words adds to a bag."""
        ids, bounds = self.ids_of(words)
        return WordParts(
            ids, bounds, np.fromiter(map(stable_hash, words if self.word_ngrams > 1 else ()), np.uint64)
        )

    def bags_of(
        self, words: np.ndarray, bounds: np.ndarray, word_parts: WordParts
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return bags of the documents words[bounds[d]:bounds[d + 1]]; words are int32 indices into `word_parts`."""
        ids, id_bounds, hashes = word_parts
        parts, sizes = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
        for first in range(0, len(bounds) - 1, DOCUMENTS_AT_ONCE):
            of_block = bounds[first : first + DOCUMENTS_AT_ONCE + 1]
            n_documents = len(of_block) - 1
            tokens = words[of_block[0] : of_block[-1]]
            document = np.repeat(np.arange(n_documents), np.diff(of_block))
            per_token = np.diff(id_bounds)[tokens]
            found, owner = ids[_ranges(id_bounds[tokens], per_token)], np.repeat(document, per_token)
            if self.word_ngrams > 1:
                grams, gram_owners = zip(*self._word_ngrams(hashes[tokens], document), strict=True)
                owner = np.concatenate([owner, *gram_owners])
                found = np.concatenate([found, *grams])[np.argsort(owner, kind="stable")]
            parts.append(found)
            sizes.append(np.bincount(owner, minlength=n_documents))
        return np.concatenate(parts), bounds_of(np.concatenate(sizes))

    def ids_of(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids int32 (total,), bounds int64 (T + 1,)): each word's own id, if known, and its n-grams' ids."""
        own = self.vocabulary.lookup(words)
        return subword_ids(words, own, len(self.vocabulary), self.buckets, self.minn, self.maxn)

    def _word_ngrams(
        self, hashes: np.ndarray, document: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each length n, yield the ids of the n-grams and the documents that they are in."""
        gram = hashes
        longest = int(np.bincount(document).max(initial=0))
        for n in range(2, max(2, min(self.word_ngrams, longest)) + 1):
            # The n-gram that begins at each word, if its document is long enough.
            gram = gram[:-1] * HASH_FACTOR + hashes[n - 1 :]
            inside = document[: len(gram)] == document[n - 1 :]
            buckets = (gram[inside] % np.uint64(self.buckets)).astype(np.int32)
            yield len(self.vocabulary) + buckets, document[: len(gram)][inside]


def known_words(ids: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return bags (ids, bounds) without missing words; of bags that have none, the same arrays."""
    known = ids != MISSING_WORD
    return (ids, bounds) if known.all() else (ids[known], bounds_of(known)[bounds])


def _ranges(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return lengths[i] consecutive numbers from begins[i] on, one range after the other."""
    bounds = bounds_of(lengths)
    return np.arange(bounds[-1]) + np.repeat(begins - bounds[:-1], lengths)
