"""Auxiliary tasks on the embedding table itself: their losses come from words, not from an encoder's features.

Each is an nn.Module beside the heads, takes inputs of its own (a loader of its own in `Trainer.fit`), and sends its
gradient into the table through the encoder's `pool`, so that a word's subwords learn too. (MT2ST section 3 trains
them beside the main task; there they are computed on detached copies and teach the table nothing.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind, embedding_bag, multitask_loss
from mt2st_fast.kernels.context.batch import LocalBatch
from mt2st_fast.kernels.context.op import context_loss
from mt2st_fast.numbers import check_positive_in_float32

VectorsOf = Callable[[Tensor], Tensor]  # word types (...) to their vectors (..., D)


class WordTask(nn.Module, ABC):
    """A task whose loss is a function of word vectors."""

    @abstractmethod
    def forward(self, vectors_of: VectorsOf, inputs: Any, target: Tensor) -> Tensor:
        """Return the mean loss () float32 of a batch."""

    def count(self, target: Tensor) -> float:
        """Return how many labels the loss of a batch is a mean over; 1 by default: all batches count the same."""
        del target
        return 1.0


class WordSimilarity(WordTask):
    """Mean squared difference between the cosine of two words and the similarity that people gave them.

    inputs: word types (B, 2); target: scores (B,) in [-1, 1]. A pair with a word without a vector has cosine 0.
    """

    def forward(self, vectors_of: VectorsOf, inputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss, () float32. Raises ValueError if inputs are not (B, 2)."""
        _check_words(inputs, 2)
        vectors = vectors_of(inputs).float()
        return F.mse_loss(F.cosine_similarity(vectors[:, 0], vectors[:, 1], dim=1), target.float())

    def count(self, target: Tensor) -> float:
        """Return B, the number of pairs."""
        return float(len(target))


class WordAnalogy(WordTask):
    """a is to b as c is to d: b - a + c should be nearest, by cosine, to its own d among those of the batch.

    inputs: word types (B, 4), a b c d; target is not read and may be any (B,). Softmax cross-entropy over the distinct
    answers of the batch at a temperature (plain cosines lie too close together for a softmax), computed by the kernels
    of the heads, with the answers as classes.
    """

    def __init__(self, temperature: float = 0.1, *, backend: str = "auto") -> None:
        super().__init__()
        check_positive_in_float32(temperature=temperature)
        self.temperature, self.backend = temperature, backend

    def forward(self, vectors_of: VectorsOf, inputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss, () float32. Raises ValueError if inputs are not (B, 4)."""
        del target
        _check_words(inputs, 4)
        a, b, c, d = F.normalize(vectors_of(inputs).float(), dim=2).unbind(1)
        answers, B = inputs[:, 3], len(inputs)
        # An answer in n rows is a class n times: subtracting log n makes them count as one.
        log_repeats = (answers.unsqueeze(1) == answers.unsqueeze(0)).sum(1).float().log()
        out = multitask_loss(
            F.normalize(b - a + c, dim=1) / self.temperature,
            d,
            -log_repeats,
            [torch.arange(B, device=inputs.device)],
            torch.ones(1, dtype=torch.float32, device=inputs.device),
            HeadLayout((HeadSpec(Kind.SOFTMAX, B),)),
            backend=self.backend,
        )
        return out.total - log_repeats.mean()


class ContextPrediction(WordTask):
    """Words predict their neighbours among negatives (word2vec: skip-gram or CBOW, see `context_batches`).

    The input vectors are the encoder's own, including subwords; the output vectors are a row-sparse table (T, D) of
    this task, which is dropped with it. inputs: a `LocalBatch` of word types; target is not read.
    """

    sparse = True

    def __init__(self, num_types: int, dim: int, *, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend
        # Zeros, as in word2vec: the first steps move the output vectors and not the words.
        self.table = nn.Parameter(torch.zeros(num_types, dim))

    def forward(self, vectors_of: VectorsOf, inputs: LocalBatch, target: Tensor) -> Tensor:
        """Return the loss, () float32. Raises ValueError for vectors of another width."""
        del target
        vectors = vectors_of(inputs.types[: inputs.n_kept]).float()
        if vectors.shape[1] != self.table.shape[1]:
            raise ValueError(
                f"word vectors have {vectors.shape[1]} numbers, but output vectors have {self.table.shape[1]}; use "
                "the same dimension"
            )
        types = inputs.types.unsqueeze(1)
        outputs = embedding_bag(self.table, types, mode="sum", sparse=True, backend=self.backend)
        return context_loss(vectors, outputs.float(), inputs, self.backend)


def _check_words(inputs: Tensor, count: int) -> None:
    if inputs.dim() != 2 or inputs.shape[1] != count:
        raise ValueError(f"inputs must be (B, {count}) word types, not {tuple(inputs.shape)}")
