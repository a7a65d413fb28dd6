"""Texts in, probabilities of labels out: many documents at a time, by an encoder of bags and its heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mt2st_fast.data.batches import BagInputs
from mt2st_fast.data.corpus import Corpus
from mt2st_fast.data.labelled_text import BagFeatures, documents_of
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.errors import InputError
from mt2st_fast.model.encoders import BagEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.tasks import MultiLabel

ROWS_AT_ONCE = 4096
MOST_PROBABILITIES = 1 << 24  # that are made together


@dataclass(frozen=True, eq=False)
class BagScorer:
    """What a classifier computes with; prefix is what the labels in a text begin with."""

    features: BagFeatures
    encoder: BagEncoder
    heads: MultiTaskHeads
    prefix: str

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.encoder.table.device

    def documents(self, texts: Sequence[str]) -> Iterator[Tokens]:
        """Blocks of texts as words. Raises InputError for what is no string, and for a line feed in one."""
        if isinstance(texts, str | bytes) or not hasattr(texts, "__iter__"):
            raise InputError(f"a text is a string and texts are a list of them, not {type(texts).__name__}")
        texts = list(texts)
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {number} is no string but {type(text).__name__}; give strings")
            if "\n" in text:
                raise InputError(
                    f"text {number} has a line feed; a text is one line: replace '\\n' by a blank"
                )
        for first in range(0, len(texts), ROWS_AT_ONCE):
            yield documents_of(texts[first : first + ROWS_AT_ONCE], self.prefix)

    def probabilities(self, ids: np.ndarray, bounds: np.ndarray, family: str) -> Iterator[Tensor]:
        """(B, C) of N bags, a block of them at a time."""
        task = self.heads.tasks[family]
        rows = max(1, min(ROWS_AT_ONCE, MOST_PROBABILITIES // task.head.size))
        inputs = BagInputs(Corpus(ids, bounds, {}, level="document"))
        for first in range(0, len(bounds) - 1, rows):
            block = inputs(np.arange(first, min(first + rows, len(bounds) - 1)))
            logits = self.heads.logits(self._encoded(*block), family)
            yield logits.sigmoid() if isinstance(task, MultiLabel) else logits.softmax(1)

    def vectors(self, ids: np.ndarray, bounds: np.ndarray) -> Tensor:
        """(N, dim) of N bags."""
        return self._encoded(torch.from_numpy(ids), torch.from_numpy(bounds))

    def word_vectors(self) -> Tensor:
        """(words, dim) float32 on the CPU, of the vocabulary."""
        words = self.features.vocabulary.words
        blocks = (words[first : first + ROWS_AT_ONCE] for first in range(0, len(words), ROWS_AT_ONCE))
        return torch.cat([self.vectors(*self.features.ids_of(block)).cpu() for block in blocks])

    def nearest(self, query: Tensor, k: int, *, without: int) -> list[tuple[float, str]]:
        """(cosine, word) of the k words (-1: all) nearest to a vector (dim,), the nearest first, but for one row."""
        words = self.features.vocabulary.words
        cosines = nn.functional.normalize(self.word_vectors(), dim=1) @ nn.functional.normalize(query, dim=0)
        others = len(words)
        if without >= 0:
            cosines[without], others = -torch.inf, others - 1
        best = cosines.topk(others if k == -1 else min(k, others))
        return [(value, words[i]) for value, i in zip(*map(Tensor.tolist, best), strict=True)]

    def _encoded(self, ids: Tensor, bounds: Tensor) -> Tensor:
        self.encoder.eval()
        features: Tensor = self.encoder((ids.to(self.device), bounds.to(self.device)))
        return features


def device_of(name: str | torch.device) -> torch.device:
    """ "auto" is CUDA where there is one. Raises InputError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name} is unknown; there are auto, cpu and cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name} is not available: torch sees no CUDA device here")
    return device


def check_choice(k: int, threshold: float) -> None:
    """Raises InputError for k or a threshold out of range."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or (k < 1 and k != -1):
        raise InputError(f"k must be a whole number of at least 1, or -1 for all, not {k!r}")
    if not isinstance(threshold, int | float | np.number) or not 0 <= threshold <= 1:
        raise InputError(f"threshold must be a probability from 0 to 1, not {threshold!r}")


def chosen(probabilities: Tensor, k: int, threshold: float) -> np.ndarray:
    """(B, C) bool: the k likeliest labels of at least that probability."""
    C = probabilities.shape[1]
    best = probabilities.topk(C if k == -1 else min(k, C))
    chosen = torch.zeros_like(probabilities, dtype=torch.bool)
    return chosen.scatter_(1, best.indices, best.values >= threshold).cpu().numpy()
