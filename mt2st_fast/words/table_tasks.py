"""Auxiliary tasks beside a text: pairs and analogies move the same vectors, turn by turn, until they retire."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.data.word_batches import WordBatches, analogy_batches, similarity_batches
from mt2st_fast.errors import InputError
from mt2st_fast.kernels import embedding_bag, take_bags
from mt2st_fast.kernels.context.workspace import WordRows
from mt2st_fast.model.modes import check_records
from mt2st_fast.model.word_tasks import WordAnalogy, WordSimilarity, WordTask
from mt2st_fast.training.optimizers.row_sparse import optimizer_by_rule

LEAST_STEPS = 5  # per turn: files of pairs are short compared to a text
KINDS: dict[str, tuple[Callable[..., WordBatches], type[WordTask]]] = {
    "similarity": (similarity_batches, WordSimilarity),
    "analogy": (analogy_batches, WordAnalogy),
}


class TableTasks:
    """Turns of other tasks on the input rows (R, D), in place: Adam per row, at the text's rate times a weight.

    Adam, because the gradient of a cosine is large while vectors are short, which Adagrad would never forget. As Adam
    ignores the scale of a loss, a task's weight is a factor of its learning rate.

    files: one file per kind of task ("similarity", "analogy"). names: all tasks, including retired ones. Raises
    InputError for another kind and for a file that cannot be used.
    """

    def __init__(
        self,
        files: Mapping[str, str | Path],
        vocabulary: Vocabulary,
        input_rows: np.ndarray,
        subwords: WordRows | None,
        seed: int,
    ) -> None:
        check_kinds(files)
        if files:
            check_records()
        self.names, self._subwords = tuple(files), subwords
        self._table = nn.Parameter(torch.from_numpy(input_rows))
        # By a row's own steps only: between them the text moves the row, too.
        self._optimizer = optimizer_by_rule("adam")([self._table])
        if files:  # otherwise a text alone would pay for Adam's two moments, each as long as the table
            self._optimizer.fuse([self._table])
        self._batches = {name: KINDS[name][0](path, vocabulary, seed=seed) for name, path in files.items()}
        self._modules = {name: KINDS[name][1]() for name in files}
        self._streams = {name: _endless(batches) for name, batches in self._batches.items()}

    @property
    def active(self) -> tuple[str, ...]:
        """The tasks that have not retired."""
        return tuple(self._batches)

    def retire_but(self, names: Collection[str]) -> None:
        """Release the tasks that are not among `names`, for good."""
        for name in [name for name in self._batches if name not in names]:
            self._batches.pop(name).close()
            del self._streams[name]

    def take_turn(self, weights: Mapping[str, float], rate: float, turns_per_epoch: int) -> dict[str, float]:
        """Step a share of every active task's rows, at least LEAST_STEPS steps; returns the mean losses by task."""
        losses = {}
        for name, batches in self._batches.items():
            self._optimizer.param_groups[0]["lr"] = rate * weights[name]
            steps = max(LEAST_STEPS, -(-len(batches) // turns_per_epoch))
            losses[name] = sum(self._step(name) for _ in range(steps)) / steps
        return losses

    def close(self) -> None:
        """Release the words of the files."""
        for batches in self._batches.values():
            batches.close()

    def _step(self, name: str) -> float:
        types, target = next(self._streams[name])
        loss = self._modules[name](self._vectors_of, types, target)
        loss.backward()
        return float(loss.detach())

    def _vectors_of(self, types: Tensor) -> Tensor:
        """(..., D) vectors of word types (...)."""
        flat = types.flatten()
        if self._subwords is None:
            vectors = embedding_bag(self._table, flat.unsqueeze(1), mode="sum", sparse=True)
        else:
            ids, starts = take_bags(*self._subwords, flat.numpy())
            vectors = embedding_bag(self._table, ids, starts, mode="mean", sparse=True)
        return vectors.view(*types.shape, -1)


def check_kinds(files: Mapping[str, str | Path]) -> None:
    """Raises InputError for an unknown kind of task."""
    unknown = [name for name in files if name not in KINDS]
    if unknown:
        raise InputError(
            f"tasks: {unknown[0]!r} is unknown; available: {', '.join(KINDS)}, each with the path of its file"
        )


def _endless(batches: WordBatches) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        for types, targets in batches:
            yield types, targets[batches.task]
