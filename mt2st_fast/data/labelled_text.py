"""fastText's files: `__label__` words anywhere in a line, the rest is the document; and its bags of n-grams.

    __label__topic__sport __label__tone__neg the match was a bore

has two label families, `topic` and `tone`, and so two tasks. A label without a second `__` is of the family `label`.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np

from mt2st_fast.data.character_ngrams import character_ngrams, subword_ids
from mt2st_fast.data.corpus import MISSING, Corpus, TargetColumn
from mt2st_fast.data.readers.files import numbered_lines
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError

DEFAULT_FAMILY = "label"
# Of a word's hash in that of an n-gram: odd, so that no bit of the word before is lost.
HASH_FACTOR = np.uint64(116_049_371)
# Put in order together: what that needs in memory beside the bags does not grow with the corpus.
DOCUMENTS_AT_ONCE = 4096


@dataclass(frozen=True)
class LabelledText:
    """Documents as words, and for each the labels by family."""

    documents: list[list[str]]
    labels: list[dict[str, list[str]]]

    @property
    def families(self) -> tuple[str, ...]:
        """Label families, in the order of their first appearance."""
        return tuple(dict.fromkeys(family for labels in self.labels for family in labels))


def read_labelled_text(path: Path, prefix: str = "__label__") -> LabelledText:
    """Every line that is not blank. Raises InputError for a file without any label."""
    documents, labels = [], []
    for _, line in numbered_lines(path):
        words = line.split()
        if not words:
            continue
        documents.append([word for word in words if not word.startswith(prefix)])
        of_line: dict[str, list[str]] = {}
        for word in words:
            if word.startswith(prefix):
                family, value = _split_label(word.removeprefix(prefix))
                of_line.setdefault(family, []).append(value)
        labels.append(of_line)
    if not any(labels):
        raise InputError(f"{path}: no line has a label; write them as {prefix}sport or {prefix}topic__sport")
    return LabelledText(documents, labels)


def _split_label(label: str) -> tuple[str, str]:
    family, separator, value = label.partition("__")
    return (family, value) if separator and family and value else (DEFAULT_FAMILY, label)


@dataclass(frozen=True)
class BagFeatures:
    """What stands in a document's bag: known words, character n-grams of every word, and word n-grams.

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
        documents: Sequence[Sequence[str]],
        min_count: int,
        word_ngrams: int,
        buckets: int,
        minn: int = 0,
        maxn: int = 0,
    ) -> BagFeatures:
        """From training documents: words seen at least `min_count` times. Raises InputError where none is."""
        counts = Counter(word for words in documents for word in words)
        kept = {word: count for word, count in counts.items() if count >= min_count}
        if not kept:
            raise InputError(f"no word is there {min_count} times; lower min_count")
        vocabulary = Vocabulary.from_counts(list(kept), list(kept.values()))
        return cls(vocabulary, word_ngrams, buckets if word_ngrams > 1 or maxn else 0, minn, maxn)

    @property
    def size(self) -> int:
        """Ids there are."""
        return len(self.vocabulary) + self.buckets

    def subwords(self, word: str) -> tuple[list[str], np.ndarray]:
        """The word, if known, and its character n-grams; and their ids int32."""
        ids, _ = self._ids_of([word])
        known = [word] if word in self.vocabulary else []
        return known + (character_ngrams(word, self.minn, self.maxn) if self.maxn else []), ids

    def bags(self, documents: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 (total,), bounds int64 (n_documents + 1,)): of every document its words, then its n-grams.

        A word is looked up and hashed once, however often it stands in the documents.
        """
        number_of: dict[str, int] = defaultdict(count().__next__)
        numbers = np.fromiter(map(number_of.__getitem__, chain.from_iterable(documents)), np.int64)
        words = list(number_of)
        ids, id_bounds = self._ids_of(words)
        hashes = np.fromiter(map(_hash, words if self.word_ngrams > 1 else ()), np.uint64)
        bounds = _bounds(np.fromiter(map(len, documents), np.int64, len(documents)))
        parts, sizes = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
        for first in range(0, len(documents), DOCUMENTS_AT_ONCE):
            of_block = bounds[first : first + DOCUMENTS_AT_ONCE + 1]
            n_documents = len(of_block) - 1
            tokens = numbers[of_block[0] : of_block[-1]]
            document = np.repeat(np.arange(n_documents), np.diff(of_block))
            per_token = np.diff(id_bounds)[tokens]
            found, owners = [ids[_ranges(id_bounds[tokens], per_token)]], [np.repeat(document, per_token)]
            if self.word_ngrams > 1:
                for grams, gram_owners in self._word_ngrams(hashes[tokens], document):
                    found.append(grams)
                    owners.append(gram_owners)
            owner = np.concatenate(owners)
            parts.append(np.concatenate(found)[np.argsort(owner, kind="stable")])
            sizes.append(np.bincount(owner, minlength=n_documents))
        return np.concatenate(parts), _bounds(np.concatenate(sizes))

    def _ids_of(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 (total,), bounds int64 (T + 1,)): each word's own, if known, and those of its n-grams."""
        own = np.fromiter((self.vocabulary.get(word, -1) for word in words), np.int32, len(words))
        return subword_ids(words, own, len(self.vocabulary), self.buckets, self.minn, self.maxn)

    def _word_ngrams(
        self, hashes: np.ndarray, document: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each length n the ids of the n-grams, and the documents that they stand in."""
        gram = hashes
        for n in range(2, self.word_ngrams + 1):
            # The n-gram that begins at every word, where its document goes on that long.
            gram = gram[:-1] * HASH_FACTOR + hashes[n - 1 :]
            inside = document[: len(gram)] == document[n - 1 :]
            buckets = (gram[inside] % np.uint64(self.buckets)).astype(np.int32)
            yield len(self.vocabulary) + buckets, document[: len(gram)][inside]


def _bounds(lengths: np.ndarray) -> np.ndarray:
    """int64 (n + 1,): where each of n ranges begins, and where the last one ends."""
    bounds = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=bounds[1:])
    return bounds


def _ranges(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """lengths[i] numbers from begins[i] on, one range after the other."""
    bounds = _bounds(lengths)
    return np.arange(bounds[-1]) + np.repeat(begins - bounds[:-1], lengths)


def _hash(word: str) -> int:
    """CRC-32: unlike hash(), the same in every process."""
    return zlib.crc32(word.encode("utf-8", "surrogatepass"))


def target_columns(text: LabelledText, families: Sequence[str] | None = None) -> dict[str, TargetColumn]:
    """A column a family: classes where no document has two labels of it, else any of its labels."""
    columns = {}
    for family in text.families if families is None else families:
        values = [labels.get(family, []) for labels in text.labels]
        names = tuple(sorted({value for of_document in values for value in of_document}))
        columns[family] = _column(values, names)
    return columns


def _column(values: list[list[str]], names: tuple[str, ...]) -> TargetColumn:
    index_of = {name: i for i, name in enumerate(names)}
    if all(len(set(of_document)) <= 1 for of_document in values):
        classes = [index_of[v[0]] if v else MISSING for v in values]
        return TargetColumn("classes", names, np.array(classes, np.int64))
    labels = np.full((len(values), len(names)), np.nan, np.float32)
    for row, of_document in zip(labels, values, strict=True):
        if of_document:
            row[:] = 0.0
            row[[index_of[value] for value in of_document]] = 1.0
    return TargetColumn("labels", names, labels)


def bag_corpus(text: LabelledText, features: BagFeatures, targets: dict[str, TargetColumn]) -> Corpus:
    """The documents as bags, with their labels."""
    ids, bounds = features.bags(text.documents)
    return Corpus(ids, bounds, targets, level="document")
