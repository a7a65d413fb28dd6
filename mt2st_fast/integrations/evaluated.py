"""What an evaluation in batches has seen: losses by the labels of all batches, and where rows were padded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.pooling import pooling_of


class Evaluated:
    """The sums of the losses of all batches by task, and the rows and places of every batch."""

    def __init__(self, heads: MultiTaskHeads) -> None:
        self._heads = heads
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._widths: dict[
            str, list[tuple[int, int]]
        ] = {}  # by task on tokens: (rows, places) of the batches

    def add(self, labels: Mapping[str, Tensor], losses: Tensor) -> None:
        """Add a batch with its losses (K,), the means over its labels."""
        counts = self._heads.label_counts(labels)
        for name, loss in zip(self._heads.active, losses.double(), strict=True):
            if name in counts:
                count = counts[name].double()
                self._sums[name] = self._sums.get(name, 0.0) + loss * count
                self._counts[name] = self._counts.get(name, 0.0) + count
        for name, task in self._heads.tasks.items():
            if name in labels and pooling_of(task) == "none":
                rows, places = labels[name].shape[:2]
                self._widths.setdefault(name, []).append((rows, places))

    def parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the sum of the losses and the number of labels () float64 by task."""
        return {name: (self._sums[name], self._counts[name]) for name in self._sums}

    def loss(self, parts: Mapping[str, tuple[Tensor, Tensor]]) -> float:
        """Return the weighted loss over all labels, of which a task without any has none."""
        weights = self._heads.weights
        return sum(weights[name] * float(total / n) for name, (total, n) in parts.items() if float(n))

    def mark(self, labels: Any) -> None:
        """Mark as missing, in labels (N, T, ...) of all batches by task, every place behind those of its batch."""
        for name, widths in self._widths.items():
            array = labels.get(name) if isinstance(labels, Mapping) else None
            if not isinstance(array, np.ndarray) or len(array) != sum(rows for rows, _ in widths):
                continue  # batches that were not put into one array
            head, first = self._heads.tasks[name].head, 0
            for rows, places in widths:
                array[first : first + rows, places:] = (
                    head.ignore_index if head.kind.takes_classes else np.nan
                )
                first += rows
