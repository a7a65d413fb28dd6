"""Negatives and hierarchical softmax together: each round predicts the words in both ways, one after the other."""

from __future__ import annotations

from .hierarchy import HierarchyTraining
from .training import ContextTraining, TrainingInPlace
from .workspace import Rates, Stream


class BothTraining(TrainingInPlace):
    """In every round, take steps of `tree`, then of `negatives`, over its words; both train the same input vectors.

    Raises ValueError if the two trainings have different rounds.
    """

    measured = 1.0

    def __init__(self, tree: HierarchyTraining, negatives: ContextTraining):
        of_rounds = {(t.options.shards, t.options.shard_words) for t in (tree, negatives)}
        if len(of_rounds) > 1 or tree.inputs is not negatives.inputs:
            raise ValueError("both trainings need the same input vectors, shards and shard_words")
        self.tree, self.negatives = tree, negatives
        self.inputs, self.options = tree.inputs, tree.options

    def run(self, text: Stream, rounds: tuple[int, int], rates: Rates) -> tuple[float, int]:
        """Return the loss sum of both ways, and the pairs, over all words."""
        loss, pairs = 0.0, 0
        for r in range(*rounds):
            for training in (self.tree, self.negatives):
                part, n = training.run(text, (r, r + 1), rates)
                loss += part / training.measured
                pairs += n if training is self.tree else 0
        return loss, pairs
