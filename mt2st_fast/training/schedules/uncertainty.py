"""Uncertainty weighting (Kendall, Gal and Cipolla 2018): each task is weighted by its noise, which is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mt2st_fast.model.module_names import module_name
from mt2st_fast.model.tasks import Regression
from mt2st_fast.training.schedules.base import Moment
from mt2st_fast.training.schedules.strategy import Strategy

if TYPE_CHECKING:
    from mt2st_fast.model.heads import MultiTaskHeads


class Uncertainty(nn.Module):
    """total = sum over k of c_k exp(-s_k) L_k + s_k / 2, where s_k = log sigma_k^2 is learned with the model.

    "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics" (CVPR 2018), section 3.2,
    equations 7 and 10: c is 1/2 for squared errors, and 1 for the other losses, each taken as a negative log-likelihood
    (Huber's contains the 1/2 itself). All tasks train to the end, the main task is weighted too, and a task counts in
    the steps whose batches have targets for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_variances = nn.ParameterDict()
        self._factors: dict[str, float] = {}

    def prepare(self, heads: MultiTaskHeads) -> None:
        """Start every task of these heads at s_k = 0, in every run."""
        self.log_variances, self._factors = nn.ParameterDict(), {}
        for name in heads.names:
            task = heads.tasks.get(name)
            squared = isinstance(task, Regression) and task.huber_delta is None
            self._factors[name] = 0.5 if squared else 1.0
            self.log_variances[module_name(name)] = nn.Parameter(torch.zeros((), dtype=torch.float32))

    def task_weights(self, moment: Moment, main: str, auxiliary: Sequence[str]) -> dict[str, float]:
        """Return weight 1 for all tasks, always."""
        del moment
        return dict.fromkeys((main, *auxiliary), 1.0)

    def weights(self, active: Sequence[str]) -> Tensor:
        """(K,) c_k exp(-s_k), with gradient."""
        return torch.stack([self._factors[name] * torch.exp(-self._of(name)) for name in active])

    def penalty(self, present: Sequence[str]) -> Tensor:
        """() the sum of s_k / 2."""
        return torch.stack([self._of(name) for name in present]).sum() / 2

    def _of(self, name: str) -> Tensor:
        return self.log_variances[module_name(name)]


STRATEGY = Strategy(
    "uncertainty", "all tasks, weighted by their noise, which is learned", lambda values, facts: Uncertainty()
)
