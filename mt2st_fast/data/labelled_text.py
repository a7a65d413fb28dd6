"""fastText's files: `__label__` words anywhere in a line, the rest is the document; and its bags of n-grams.

    __label__topic__sport __label__tone__neg the match was a bore

has two label families, `topic` and `tone`, and so two tasks. A label without a second `__` is of the family `label`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mt2st_fast.data.block_words import END
from mt2st_fast.data.character_ngrams import character_ngrams, subword_ids
from mt2st_fast.data.corpus import MISSING, Corpus, TargetColumn
from mt2st_fast.data.preparation import read_words
from mt2st_fast.data.tokens import Tokens, bounds_of
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError

DEFAULT_FAMILY = "label"
# Of a word's hash in that of an n-gram: odd, so that no bit of the word before is lost.
HASH_FACTOR = np.uint64(116_049_371)
# Put in order together: what that needs in memory beside the bags does not grow with the corpus.
DOCUMENTS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Labels:
    """A family's labels: label values[m], into the sorted names, stands in document documents[m]."""

    names: tuple[str, ...]
    values: np.ndarray  # int64 (M,)
    documents: np.ndarray  # int64 (M,)


@dataclass(frozen=True, eq=False)
class LabelledText:
    """Documents, and their labels by family, in the order of the families' first appearance."""

    documents: Tokens
    labels: dict[str, Labels]

    @property
    def families(self) -> tuple[str, ...]:
        """Label families, in the order of their first appearance."""
        return tuple(self.labels)


def read_labelled_text(path: Path, prefix: str = "__label__") -> LabelledText:
    """Every line that is not blank. Raises InputError for a file without any label, and as `read_words` does."""
    ids, words = read_words(path)
    line = np.cumsum(ids == END)
    line, ids = line[ids != END], ids[ids != END]
    document = np.cumsum(np.diff(line, prepend=line[:1]) > 0)  # lines without a word are none
    n_documents = int(document[-1]) + 1 if len(document) else 0
    of_word = np.array([word.startswith(prefix) and i != END for i, word in enumerate(words)])
    is_label = of_word[ids]
    if not is_label.any():
        raise InputError(f"{path}: no line has a label; write them as {prefix}sport or {prefix}topic__sport")
    new_id = np.cumsum(~of_word) - 2  # without the labels, and the mark of the ends before them all
    documents = Tokens.numbered(
        [word for word, label in zip(words[1:], of_word[1:], strict=True) if not label],
        new_id[ids[~is_label]].astype(np.int32),
        bounds_of(np.bincount(document[~is_label], minlength=n_documents)),
    )
    split = {int(i): _split_label(words[i].removeprefix(prefix)) for i in np.flatnonzero(of_word)}
    return LabelledText(documents, _labels_by_family(split, ids[is_label], document[is_label]))


def _labels_by_family(
    split: dict[int, tuple[str, str]], ids: np.ndarray, documents: np.ndarray
) -> dict[str, Labels]:
    """Of labels ids (M,) in documents (M,); split tells the family and the value of an id, in order of appearance."""
    labels = {}
    for family in dict.fromkeys(family for family, _ in split.values()):
        value_of = {i: value for i, (its_family, value) in split.items() if its_family == family}
        names = tuple(sorted(set(value_of.values())))
        place_of = {name: place for place, name in enumerate(names)}
        place = np.full(max(split) + 1, -1)
        place[list(value_of)] = [place_of[value] for value in value_of.values()]
        mine = place[ids] >= 0
        labels[family] = Labels(names, place[ids][mine], documents[mine])
    return labels


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
        documents: Tokens,
        min_count: int,
        word_ngrams: int,
        buckets: int,
        minn: int = 0,
        maxn: int = 0,
    ) -> BagFeatures:
        """From training documents: words seen at least `min_count` times. Raises InputError where none is."""
        vocabulary = documents.vocabulary.frequent(min_count)
        if not len(vocabulary):
            raise InputError("the text has no words beside its labels")
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

    def bags(self, documents: Tokens) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 (total,), bounds int64 (n_documents + 1,)): of every document its words, then its n-grams.

        A word is looked up and hashed once, however often it stands in the documents.
        """
        words, bounds = documents.vocabulary.words, documents.bounds
        ids, id_bounds = self._ids_of(words)
        hashes = np.fromiter(map(_hash, words if self.word_ngrams > 1 else ()), np.uint64)
        parts, sizes = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
        for first in range(0, documents.n_units, DOCUMENTS_AT_ONCE):
            of_block = bounds[first : first + DOCUMENTS_AT_ONCE + 1]
            n_documents = len(of_block) - 1
            tokens = documents.ids[of_block[0] : of_block[-1]]
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

    def _ids_of(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 (total,), bounds int64 (T + 1,)): each word's own, if known, and those of its n-grams."""
        own = self.vocabulary.lookup(words)
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


def _ranges(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """lengths[i] numbers from begins[i] on, one range after the other."""
    bounds = bounds_of(lengths)
    return np.arange(bounds[-1]) + np.repeat(begins - bounds[:-1], lengths)


def _hash(word: str) -> int:
    """CRC-32: unlike hash(), the same in every process."""
    return zlib.crc32(word.encode("utf-8", "surrogatepass"))


def target_columns(text: LabelledText, families: Sequence[str] | None = None) -> dict[str, TargetColumn]:
    """A column a family: classes where no document has two labels of it, else any of its labels."""
    wanted = text.families if families is None else families
    return {family: _column(text.labels[family], text.documents.n_units) for family in wanted}


def _column(labels: Labels, n_documents: int) -> TargetColumn:
    C = len(labels.names)
    documents, values = np.divmod(np.unique(labels.documents * C + labels.values), C)
    if len(np.unique(documents)) == len(documents):
        classes = np.full(n_documents, MISSING, np.int64)
        classes[documents] = values
        return TargetColumn("classes", labels.names, classes)
    marks = np.full((n_documents, C), np.nan, np.float32)
    marks[documents] = 0.0
    marks[documents, values] = 1.0
    return TargetColumn("labels", labels.names, marks)


def bag_corpus(text: LabelledText, features: BagFeatures, targets: dict[str, TargetColumn]) -> Corpus:
    """The documents as bags, with their labels."""
    ids, bounds = features.bags(text.documents)
    return Corpus(ids, bounds, targets, level="document")
