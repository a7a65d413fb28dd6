"""What an evaluation in batches has seen: losses by the labels of all batches, and where rows were padded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.pooling import pooling_of


class Evaluated:
    """The sums of the losses of all batches by task, and the rows and places of every batch."""

    def __init__(self, heads: MultiTaskHeads) -> None:
        self._heads = heads
        self._sums = dict.fromkeys(heads.active, 0.0)
        self._counts = dict.fromkeys(heads.active, 0.0)
        # By task on tokens: (rows, places) of the batches.
        self._widths: dict[str, list[tuple[int, int]]] = {}

    def add(self, labels: Mapping[str, Tensor], losses: Tensor) -> None:
        """Add a batch with its losses (K,), the means over its labels."""
        counts = self._heads.label_counts(labels)
        counts_k = [counts.get(name, losses.new_zeros(())) for name in self._heads.active]
        read = torch.stack([losses.float(), torch.stack(counts_k).to(losses.device)]).tolist()
        for name, loss, count in zip(self._heads.active, *read, strict=True):
            self._sums[name] += loss * count
            self._counts[name] += count
        for name, task in self._heads.tasks.items():
            if name in labels and pooling_of(task) == "none":
                rows, places = labels[name].shape[:2]
                self._widths.setdefault(name, []).append((rows, places))

    def parts(self) -> Tensor:
        """Return the sums of the losses and the numbers of labels (2, K) float64, which processes may add up."""
        return torch.tensor(
            [[*self._sums.values()], [*self._counts.values()]], dtype=torch.float64, device="cpu"
        )

    def loss(self, parts: Tensor) -> float | None:
        """Return the weighted loss over all labels, of which a task without any has none; None without any label."""
        weights = self._heads.weights
        found = [
            weights[name] * total / count
            for name, total, count in zip(self._sums, *parts.tolist(), strict=True)
            if count
        ]
        return sum(found) if found else None

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
