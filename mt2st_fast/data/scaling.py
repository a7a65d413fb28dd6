"""Numbers to learn in a unit of their own: standard deviations from the mean of the training labels.

A squared error grows with the square of the unit. Prices in cents would drown every other task, and a head that starts
at 0 would spend a run on its way to a mean of 50,000,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from mt2st_fast.data.corpus import Corpus, TargetColumn


@dataclass(frozen=True)
class Scale:
    """What the C numbers of a task are measured by: their means and standard deviations, float64 (C,)."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, column: TargetColumn) -> Scale:
        """Return the scale of a column's labels. Without any, or where all are equal, the deviation is 1."""
        labelled = column.values[column.labelled()].astype(np.float64)
        if not len(labelled):
            return cls(np.zeros(column.size), np.ones(column.size))
        mean, deviation = np.nanmean(labelled, axis=0), np.nanstd(labelled, axis=0)
        return cls(mean, np.where(deviation > 0, deviation, 1.0))

    def measured(self, column: TargetColumn) -> TargetColumn:
        """Return the column in this scale."""
        values = (column.values.astype(np.float64) - self.mean) / self.deviation
        return replace(column, values=values.astype(np.float32))

    @torch.no_grad()
    def undo_in(self, linear: torch.nn.Linear) -> None:
        """Change a head that predicts in this scale into one that predicts the numbers themselves."""
        mean, deviation = (torch.from_numpy(each) for each in (self.mean, self.deviation))
        weight, bias = linear.weight.double(), linear.bias.double()
        linear.weight.copy_(weight * deviation[:, None])
        linear.bias.copy_(bias * deviation + mean)


def scales_of(train: Corpus) -> dict[str, Scale]:
    """Return the scale of every task on numbers, from its training labels."""
    return {task: Scale.of(column) for task, column in train.targets.items() if column.kind == "values"}


def scaled(corpus: Corpus, scales: Mapping[str, Scale]) -> Corpus:
    """Return the corpus with the tasks of these scales measured in them."""
    if not scales:
        return corpus
    measured = {task: scale.measured(corpus.targets[task]) for task, scale in scales.items()}
    return replace(corpus, targets={**corpus.targets, **measured})
