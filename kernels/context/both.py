"""Negatives and hierarchical softmax together: words are predicted in both ways, by turns of a round."""

from __future__ import annotations

from typing import Any

import numpy as np

from .hierarchy import HierarchyTraining
from .training import ContextTraining


class BothTraining:
    """Steps of `tree`, then of `negatives`, over every round's words; both teach the same input vectors.

    Raises ValueError for trainings of different rounds.
    """

    measured = 1.0

    def __init__(self, tree: HierarchyTraining, negatives: ContextTraining):
        of_rounds = {(t.options.shards, t.options.shard_words) for t in (tree, negatives)}
        if len(of_rounds) > 1 or tree.inputs is not negatives.inputs:
            raise ValueError("both trainings need the same input vectors, shards and shard_words")
        self.tree, self.negatives = tree, negatives

    def rounds(self, n_words: int) -> int:
        """Rounds of an epoch over n_words."""
        return self.tree.rounds(n_words)

    def run(
        self,
        tokens: np.ndarray,
        bounds: np.ndarray,
        key: Any,
        rounds: tuple[int, int],
        rate: float,
        rate_fall: float,
        least_rate: float,
    ) -> tuple[float, int]:
        """As ContextTraining.run, but returns the loss sum, of both ways, and the pairs of all words."""
        loss, pairs = 0.0, 0
        for r in range(*rounds):
            for training in (self.tree, self.negatives):
                part, n = training.run(tokens, bounds, key, (r, r + 1), rate, rate_fall, least_rate)
                loss += part / training.measured
                pairs += n if training is self.tree else 0
        return loss, pairs

    def finite(self) -> bool:
        """Whether all input vectors are numbers."""
        return self.tree.finite()

    def store(self) -> None:
        """The tables are trained in place: there is nothing to copy back."""
