"""AdaTask (Yang et al. 2023): the optimizer moves shared parameters with one accumulator per task."""

from __future__ import annotations

from dataclasses import dataclass

from mt2st_fast.training.schedules.base import AuxiliaryWeights, Moment
from mt2st_fast.training.schedules.strategy import Strategy


@dataclass(frozen=True)
class AdaTask(AuxiliaryWeights):
    """Keeps optimizer moments of the shared parameters per task, and moves them by the sum of the tasks' own steps.

    "AdaTask: A Task-aware Adaptive Learning Rate Approach to Multi-task Learning" (AAAI 2023, arXiv 2211.15055):
    with Adam w <- w - rate (sum over k of m_k / (sqrt(v_k) + eps)), where m_k and v_k see the gradient of
    task k alone, so that no task is drowned in what another has accumulated. Since such a step does not depend on the
    size of a gradient, tasks have no weights. A task without a target in a step's batches takes no step. All tasks
    train to the end. The cost is one backward pass of the encoder per task, and moments of all shared parameters per
    task.
    """

    moments_per_task = True

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """Return 1, always."""
        return 1.0


STRATEGY = Strategy(
    "adatask", "all tasks; shared parameters have moments a task (AdaTask)", lambda values, facts: AdaTask()
)
