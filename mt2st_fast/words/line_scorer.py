"""Bags, vectors and label probabilities of single lines, by NumPy: for one line, calls of kernels take longest.

They are those of `BagScorer` up to rounding: the same rows of the table are added in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mt2st_fast.data.bag_features import HASH_FACTOR, BagFeatures
from mt2st_fast.data.subwords import stable_hash
from mt2st_fast.model.called_heads import reason_to_call, reason_to_call_module
from mt2st_fast.model.encoders import BagEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.tasks import MultiLabel
from mt2st_fast.words.bag_scorer import Choice

MOST_LINES = 8  # that take less time one after the other than together
MOST_WORDS = 1 << 16  # whose n-grams are kept; they are then forgotten
_MARK = "\ufeff"
_NONE = np.empty(0, np.int32)
# Adding up sums of so many rows loses less to rounding than one long sum; kernels do the same.
_SHORT_SUM = 16

Likely = tuple[list[int], list[float]]  # numbers of labels, the likeliest first, and their probabilities


class LineScorer:
    """The computations of a classifier on single lines; several threads may share one. prefix: see `BagScorer`."""

    def __init__(
        self, features: BagFeatures, encoder: BagEncoder, heads: MultiTaskHeads, prefix: str
    ) -> None:
        self._features, self._encoder, self._heads, self._prefix = features, encoder, heads, prefix
        self._ids_of: dict[str, np.ndarray] = {}
        self._hash_of: dict[str, int] = {}

    def likeliest(self, lines: Sequence[str], family: str, wanted: Choice) -> list[Likely] | None:
        """Return the wanted labels of lines without line feeds; None if `BagScorer` is to be asked instead."""
        if not (len(lines) <= MOST_LINES and self._is_plain() and self._has_plain_head(family)):
            return None
        found = []
        for line in lines:
            if (ids := self._bag(line)) is None:
                return None
            found.append(_likeliest(self._of_family(self._vector(ids), family), wanted))
        return found

    def probabilities(self, lines: Sequence[str], families: Sequence[str]) -> tuple[Tensor, ...] | None:
        """Return the probabilities (N, C) of lines for each family; None as `likeliest` does, whatever their number."""
        if not (self._is_plain() and all(map(self._has_plain_head, families))):
            return None
        bags = [self._bag(line) for line in lines]
        if any(ids is None for ids in bags):
            return None
        vectors = [self._vector(ids) for ids in bags if ids is not None]
        return tuple(
            torch.from_numpy(np.stack([self._of_family(vector, family) for vector in vectors]))
            for family in families
        )

    def vector_of_line(self, line: str) -> np.ndarray | None:
        """Return the mean (dim,) of the vectors in a line's bag; None as `likeliest` does."""
        ids = self._bag(line) if self._is_plain() else None
        return None if ids is None else self._vector(ids)

    def vector_of_word(self, word: str) -> np.ndarray | None:
        """Return the mean (dim,) of a word's own vector and those of its n-grams; None as `likeliest` does."""
        return self._vector(self._ids(word)) if self._is_plain() else None

    def _is_plain(self) -> bool:
        """Whether an encoder has its vectors in memory, and does with them just what its class does."""
        encoder = self._encoder
        if type(encoder) is not BagEncoder or type(encoder.dropout) is not nn.Dropout:
            return False
        table = encoder.table
        if encoder.rows_of_type is not None or table.dtype is not torch.float32 or table.device.type != "cpu":
            return False
        return reason_to_call_module(encoder) is None and reason_to_call_module(encoder.dropout) is None

    def _has_plain_head(self, family: str) -> bool:
        head = self._heads.linear(family)
        return reason_to_call(head) is None and head.weight.dtype is torch.float32

    def _bag(self, line: str) -> np.ndarray | None:
        """Return the ids (n,) of a line: its words, then its word n-grams; None for a line with a lone surrogate."""
        try:
            line.encode()
        except UnicodeEncodeError:
            return None
        # What the kernel takes for a blank, too; and a mark at the start of a line is not part of a word.
        words = line.removeprefix(_MARK).replace("\0", " ").split()
        words = [word for word in words if not word.startswith(self._prefix)]
        features = self._features
        if features.maxn:
            parts = [_NONE, *[self._ids(word) for word in words]]
        else:
            own = features.vocabulary.lookup(words)
            parts = [own[own >= 0]]
        if features.word_ngrams > 1:
            parts += self._word_ngrams(words)
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def _ids(self, word: str) -> np.ndarray:
        """Return the ids (n,) of a word: its own, if known, and those of its character n-grams."""
        found = self._ids_of.get(word)
        if found is None:
            if len(self._ids_of) >= MOST_WORDS:
                self._ids_of.clear()
            found = self._ids_of[word] = self._features.ids_of([word])[0]
        return found

    def _word_ngrams(self, words: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of the n-grams of 2 words, of 3, and so on, as `BagFeatures.bags_of` finds them."""
        features, hash_of = self._features, self._hash_of
        if len(hash_of) >= MOST_WORDS:
            hash_of.clear()
        for word in words:
            if word not in hash_of:
                hash_of[word] = stable_hash(word)
        hashes = np.array([hash_of[word] for word in words], np.uint64)
        first, buckets, gram = len(features.vocabulary), np.uint64(features.buckets), hashes
        found = [_NONE]
        for n in range(2, min(features.word_ngrams, len(words)) + 1):
            gram = gram[:-1] * HASH_FACTOR + hashes[n - 1 :]
            found.append(first + (gram % buckets).astype(np.int32))
        return found

    def _vector(self, ids: np.ndarray) -> np.ndarray:
        rows = self._encoder.table.detach().numpy()[ids]
        if len(ids) > _SHORT_SUM:
            rows = np.add.reduceat(rows, np.arange(0, len(ids), _SHORT_SUM), axis=0)
        vector: np.ndarray = rows.sum(0)
        return vector * np.float32(1 / len(ids)) if self._encoder.mode == "mean" and len(ids) else vector

    def _of_family(self, vector: np.ndarray, family: str) -> np.ndarray:
        """Return the probabilities (C,) of a family for the vector of a bag."""
        head = self._heads.linear(family)
        logits = head.weight.detach().numpy() @ vector
        if head.bias is not None:
            logits += head.bias.detach().numpy()
        if isinstance(self._heads.tasks[family], MultiLabel):
            with np.errstate(
                over="ignore"
            ):  # exp of a large number is inf, whose inverse is 0, as it should be
                return np.asarray(1 / (1 + np.exp(-logits)))
        powers = np.exp(logits - logits.max())
        return np.asarray(powers / powers.sum())


def _likeliest(probabilities: np.ndarray, wanted: Choice) -> Likely:
    """Return the labels that `BagScorer.choices` finds."""
    k, threshold = wanted
    if k == 1:
        best = int(probabilities.argmax())
        probability = probabilities[best]
        return ([best], [float(probability)]) if probability >= threshold else ([], [])
    likely = np.flatnonzero(probabilities >= threshold)
    order = likely[np.argsort(-probabilities[likely], kind="stable")]
    order = order if k == -1 else order[:k]
    return order.tolist(), probabilities[order].tolist()
