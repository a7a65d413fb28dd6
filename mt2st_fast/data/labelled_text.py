"""fastText's files: `__label__` words anywhere in a line, the rest is the document; and its bags of n-grams.

    __label__topic__sport __label__tone__neg the match was a bore

has two label families, `topic` and `tone`, and so two tasks. A label without a second `__` is of the family `label`.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mt2st_fast.data.corpus import MISSING, Corpus, TargetColumn
from mt2st_fast.data.readers.files import numbered_lines
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError

DEFAULT_FAMILY = "label"
# Of a word's hash in that of an n-gram: odd, so that no bit of the word before is lost.
HASH_FACTOR = np.uint64(116_049_371)


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
    """What stands in a document's bag: its known words, and its word n-grams hashed into buckets.

    Ids: words in the vocabulary's order, then the buckets.
    """

    vocabulary: Vocabulary
    word_ngrams: int
    buckets: int

    @classmethod
    def learn(
        cls, documents: Sequence[Sequence[str]], min_count: int, word_ngrams: int, buckets: int
    ) -> BagFeatures:
        """From training documents: words seen at least `min_count` times. Raises InputError where none is."""
        counts = Counter(word for words in documents for word in words)
        kept = {word: count for word, count in counts.items() if count >= min_count}
        if not kept:
            raise InputError(f"no word is there {min_count} times; lower min_count")
        vocabulary = Vocabulary.from_counts(list(kept), list(kept.values()))
        return cls(vocabulary, word_ngrams, buckets if word_ngrams > 1 else 0)

    @property
    def size(self) -> int:
        """Ids there are."""
        return len(self.vocabulary) + self.buckets

    def bags(self, documents: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 (total,), bounds int64 (n_documents + 1,)): of every document its words, then its n-grams."""
        id_of = self.vocabulary.get
        words = np.fromiter((id_of(word, -1) for doc in documents for word in doc), np.int64)
        lengths = np.fromiter(map(len, documents), np.int64, len(documents))
        document = np.repeat(np.arange(len(documents)), lengths)
        ids, owners = [words], [document]
        if self.buckets:
            hashes = np.fromiter((_hash(word) for doc in documents for word in doc), np.uint64, len(words))
            gram = hashes
            for n in range(2, self.word_ngrams + 1):
                # The n-gram that begins at every word, where its document goes on that long.
                gram = gram[:-1] * HASH_FACTOR + hashes[n - 1 :]
                inside = document[: len(gram)] == document[n - 1 :]
                ids.append((len(self.vocabulary) + gram[inside] % np.uint64(self.buckets)).astype(np.int64))
                owners.append(document[: len(gram)][inside])
        return _in_bags(np.concatenate(ids), np.concatenate(owners), len(documents))


def _in_bags(ids: np.ndarray, documents: np.ndarray, n_documents: int) -> tuple[np.ndarray, np.ndarray]:
    known = ids >= 0
    ids, documents = ids[known], documents[known]
    order = np.argsort(documents, kind="stable")
    bounds = np.zeros(n_documents + 1, np.int64)
    np.cumsum(np.bincount(documents, minlength=n_documents), out=bounds[1:])
    return ids[order].astype(np.int32), bounds


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
