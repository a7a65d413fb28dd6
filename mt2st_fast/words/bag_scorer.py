"""Compute label probabilities of texts, many documents at a time, with an encoder of bags and its heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.data.bag_features import BagFeatures
from mt2st_fast.data.batches import BagInputs
from mt2st_fast.data.corpus import Corpus
from mt2st_fast.data.line_bags import LineBags
from mt2st_fast.errors import InputError
from mt2st_fast.model.encoders import BagEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.tasks import MultiLabel

ROWS_AT_ONCE = 4096
MOST_PROBABILITIES = 1 << 24  # computed in one block
# So many lines, and probabilities of lines, take less time one after the other than loading the kernels takes.
FEW_LINES, FEW_PROBABILITIES = 2048, 1 << 20


class Choice(NamedTuple):
    """Which labels of a document to predict: the k likeliest (-1: all) with a probability of at least `threshold`."""

    k: int = 1
    threshold: float = 0.0


class Choices(NamedTuple):
    """The likeliest labels of N documents, the likeliest first.

    Their numbers int64 (N, K) and probabilities float32 (N, K); counts int64 (N,) says how many of them are wanted, at
    most K.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    counts: np.ndarray


OfFew = Callable[[Sequence[str], Sequence[str]], tuple[Tensor, ...] | None]
Labeller = Callable[[Sequence[str]], list[tuple[Choices, ...]]]


@dataclass(frozen=True, eq=False)
class BagScorer:
    """The computations of a classifier; prefix: what labels in a text begin with."""

    features: BagFeatures
    encoder: BagEncoder
    heads: MultiTaskHeads
    prefix: str

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return self.encoder.table.device

    def bags(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the bags of blocks of texts that were checked. Raises InputError for a lone surrogate in one."""
        make_bags = LineBags(self.features, self.prefix)
        for first in range(0, len(texts), ROWS_AT_ONCE):
            yield make_bags(texts[first : first + ROWS_AT_ONCE])

    def probabilities(self, ids: np.ndarray, bounds: np.ndarray, family: str) -> Iterator[Tensor]:
        """Yield the probabilities (B, C) of N bags, block by block."""
        for (found,) in self.of_families(ids, bounds, [family]):
            yield found

    def choices(
        self, ids: np.ndarray, bounds: np.ndarray, wanted: Mapping[str, Choice]
    ) -> Iterator[tuple[Choices, ...]]:
        """Yield the wanted labels of N bags for each family, block by block."""
        for of_families in self.of_families(ids, bounds, tuple(wanted)):
            yield tuple(map(_likeliest, of_families, wanted.values()))

    def labeller(self, wanted: Mapping[str, Choice], of_few: OfFew) -> Labeller:
        """Return a function that gives the `choices` for blocks of lines without line feeds, some rows at a time.

        It remembers the words of earlier blocks, and serves one thread at a time. of_few: gives the probabilities
        (N, C) for each family of the first lines, if it can, so that no kernels need to be loaded for a few.
        """
        n_lines, n_labels = 0, sum(self.heads.tasks[family].head.size for family in wanted)
        most_lines = min(FEW_LINES, FEW_PROBABILITIES // n_labels)
        make_bags: LineBags | None = None

        @torch.no_grad()
        def label(lines: Sequence[str]) -> list[tuple[Choices, ...]]:
            nonlocal n_lines, make_bags
            n_lines += len(lines)
            if lines and n_lines <= most_lines and (found := of_few(lines, tuple(wanted))) is not None:
                return [tuple(map(_likeliest, found, wanted.values()))]
            if make_bags is None:
                make_bags = LineBags(self.features, self.prefix)
            return list(self.choices(*make_bags(lines), wanted))

        return label

    def of_families(
        self, ids: np.ndarray, bounds: np.ndarray, families: Sequence[str]
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield the probabilities (B, C) of N bags for each family, block by block."""
        largest = max(self.heads.tasks[family].head.size for family in families)
        rows = max(1, min(ROWS_AT_ONCE, MOST_PROBABILITIES // largest))
        inputs = BagInputs(Corpus(ids, bounds, {}, level="document"))
        for first in range(0, len(bounds) - 1, rows):
            features = self._encoded(*inputs(np.arange(first, min(first + rows, len(bounds) - 1))))
            yield tuple(self._of_family(features, family) for family in families)

    def _of_family(self, features: Tensor, family: str) -> Tensor:
        logits = self.heads.logits(features, family)
        return logits.sigmoid() if isinstance(self.heads.tasks[family], MultiLabel) else logits.softmax(1)

    def vectors(self, ids: np.ndarray, bounds: np.ndarray) -> Tensor:
        """Return the vectors (N, dim) of N bags."""
        return self._encoded(torch.from_numpy(ids), torch.from_numpy(bounds))

    def word_vectors(self) -> Tensor:
        """Return the vectors of the vocabulary, (words, dim) float32, on the CPU."""
        words = self.features.vocabulary.words
        blocks = (words[first : first + ROWS_AT_ONCE] for first in range(0, len(words), ROWS_AT_ONCE))
        return torch.cat([self.vectors(*self.features.ids_of(block)).cpu() for block in blocks])

    def _encoded(self, ids: Tensor, bounds: Tensor) -> Tensor:
        self.encoder.eval()
        features: Tensor = self.encoder((ids.to(self.device), bounds.to(self.device)))
        return features


def checked_texts(texts: Sequence[str]) -> list[str]:
    """Return texts as a list. Raises InputError for a text that is no string or contains a line feed."""
    if isinstance(texts, str | bytes) or not hasattr(texts, "__iter__"):
        raise InputError(
            f"pass a text as a string, or several texts as a list of strings, not {type(texts).__name__}"
        )
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {number} is not a string but {type(text).__name__}; pass strings")
        if "\n" in text:
            raise InputError(
                f"text {number} contains a line feed; a text must be one line: replace '\\n' with a space"
            )
    return texts


def check_choice(k: int, threshold: float) -> None:
    """Raise InputError for k or a threshold out of range."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or (k < 1 and k != -1):
        raise InputError(f"k must be a whole number of at least 1, or -1 for all, not {k!r}")
    if not isinstance(threshold, int | float | np.number) or not 0 <= threshold <= 1:
        raise InputError(f"threshold must be a probability from 0 to 1, not {threshold!r}")


def _likeliest(probabilities: Tensor, wanted: Choice) -> Choices:
    k, threshold = wanted
    if k == 1:  # finding one is much faster than sorting
        values, labels = (each[:, None] for each in probabilities.max(1))
    else:
        most = int((probabilities >= threshold).sum(1).max()) if len(probabilities) else 0
        values, labels = probabilities.topk(most if k == -1 else min(k, most))
    return Choices(labels.cpu().numpy(), values.cpu().numpy(), (values >= threshold).sum(1).cpu().numpy())


def chosen(probabilities: Tensor, wanted: Choice) -> np.ndarray:
    """Return bool (B, C): which labels `_likeliest` finds."""
    k, threshold = wanted
    if k == -1 or k >= probabilities.shape[1]:
        return (probabilities >= threshold).cpu().numpy()
    best, labels = (each[:, None] for each in probabilities.max(1)) if k == 1 else probabilities.topk(k)
    chosen = torch.zeros_like(probabilities, dtype=torch.bool)
    return chosen.scatter_(1, labels, best >= threshold).cpu().numpy()
