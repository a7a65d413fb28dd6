"""FAMO (Liu, Feng, Stone and Liu 2023): weights that make the logarithms of all losses fall at the same rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.module_names import module_name
from mt2st_fast.numbers import check_not_negative, check_positive_in_float32
from mt2st_fast.training.schedules.base import Moment
from mt2st_fast.training.schedules.shown import Observation
from mt2st_fast.training.schedules.strategy import RunFacts, Strategy, StrategyOption, required

if TYPE_CHECKING:
    from mt2st_fast.model.heads import MultiTaskHeads


# State per task: xi, Adam's moments and steps, the weight of the last step, and the smallest loss below 0.
XI, FIRST, SECOND, STEPS, WEIGHT, LEAST = range(6)
BETA_1, BETA_2, EPS = 0.9, 0.999, 1e-8  # Adam's own
TINY = torch.finfo(torch.float32).tiny


class FAMO(nn.Module):
    """weight_k = c z_k / L_k, z = softmax(xi), c = 1 / sum over i of z_i / L_i; xi learns which loss falls least.

    "FAMO: Fast Adaptive Multitask Optimization" (NeurIPS 2023, arXiv 2306.03792), algorithm 1. After a step that took
    the losses from L to L', with J the Jacobian of the softmax at xi, Adam moves xi at `rate` by the gradient

        J^T (log L - log L') + decay xi

    as in the authors' program; rate and decay are the paper's beta and gamma. Weights sum to 1. Losses must not be
    negative, and a task without a label in a step's batches takes no part in the step. All tasks train to the end. A
    step costs a second forward pass before it, and one more after it.

    Raises InputError for a rate that is not positive, and for a negative decay.
    """

    def __init__(self, rate: float = 0.025, decay: float = 0.01) -> None:
        super().__init__()
        check_positive_in_float32(rate=rate)
        check_not_negative(decay=decay)
        self.rate, self.decay = rate, decay
        # Buffers: checkpoints hold them, and the model's optimizer does not move them.
        self.kept = nn.Module()

    def extra_repr(self) -> str:
        """Show the options."""
        return f"rate={self.rate:g}, decay={self.decay:g}"

    def prepare(self, heads: MultiTaskHeads) -> None:
        """Start every task of these heads at zeros, in every run."""
        self.kept = nn.Module()
        for name in map(module_name, heads.names):
            self.kept.register_buffer(name, torch.zeros(LEAST + 1, dtype=torch.float32))

    def task_weights(self, moment: Moment, main: str, auxiliary: Sequence[str]) -> dict[str, float]:
        """Return weight 1 for all tasks, always."""
        del moment
        return dict.fromkeys((main, *auxiliary), 1.0)

    def weights(self, active: Sequence[str]) -> Tensor:
        """(K,) the weights of the last step; 0 before the first."""
        return self._kept(active)[:, WEIGHT]

    @torch.no_grad()
    def weigh(self, active: Sequence[str], losses: Tensor) -> Tensor:
        """(K,) the weights for a step with these losses (K,)."""
        kept, taking_part = self._kept(active), losses > 0
        shares = _shares(kept[:, XI], taking_part) / torch.where(taking_part, losses, 1.0)
        kept[:, WEIGHT] = shares / shares.sum().clamp_min(TINY)
        kept[:, LEAST] = torch.minimum(kept[:, LEAST], losses)
        self._keep(active, kept)
        return kept[:, WEIGHT]

    @torch.no_grad()
    def learn(self, active: Sequence[str], before: Tensor, after: Tensor) -> None:
        """Take a step of xi, from the losses (K,) before and after a step of the model."""
        kept, taking_part = self._kept(active), (before > 0) & (after > 0)
        xi, first, second, steps, weights, least = kept.unbind(1)
        z = _shares(xi, taking_part)
        fall = torch.where(taking_part, before, 1.0).log() - torch.where(taking_part, after, 1.0).log()
        # The Jacobian of the softmax is diag(z) - z z^T.
        gradient = z * (fall - torch.dot(z, fall)) + self.decay * xi
        steps = steps + 1.0
        first = BETA_1 * first + (1.0 - BETA_1) * gradient
        second = BETA_2 * second + (1.0 - BETA_2) * gradient * gradient
        size = (second / (1.0 - BETA_2**steps)).sqrt() + EPS
        xi = xi - self.rate * first / (1.0 - BETA_1**steps) / size
        moved = torch.stack([xi, first, second, steps, weights, least], 1)
        self._keep(active, torch.where(taking_part[:, None], moved, kept))

    def observe(self, observation: Observation) -> None:
        """Raises InputError for a loss that was negative, and so has no logarithm."""
        names = tuple(observation.losses)
        for name, least in zip(names, self._kept(names)[:, LEAST].tolist(), strict=True):
            if least < 0:
                raise InputError(
                    f"the loss of {name} is {least:g} before step {observation.step}, but FAMO uses logarithms of "
                    "losses; give that task a positive loss, or use another weighting"
                )

    def _kept(self, active: Sequence[str]) -> Tensor:
        """(K, 6) a copy of the state of these tasks."""
        return torch.stack([self.kept.get_buffer(module_name(name)) for name in active])

    def _keep(self, active: Sequence[str], values: Tensor) -> None:
        for name, value in zip(active, values, strict=True):
            self.kept.get_buffer(module_name(name)).copy_(value)


def _shares(xi: Tensor, taking_part: Tensor) -> Tensor:
    """(K,) the softmax over the tasks that take part; 0 for the others."""
    exponentials = torch.exp(xi - xi.max()) * taking_part
    return exponentials / exponentials.sum().clamp_min(TINY)


def build(values: Mapping[str, float | None], facts: RunFacts) -> FAMO:
    """Build it with its options."""
    del facts
    return FAMO(required(values, "famo_rate"), required(values, "famo_decay"))


OPTIONS = (
    StrategyOption("famo_rate", "learning rate of the weights' logits", 0.025, low=1e-9),
    StrategyOption("famo_decay", "decay of the weights' logits", 0.01, low=0.0),
)
STRATEGY = Strategy(
    "famo", "all tasks, weighted so that the logarithms of their losses fall alike", build, OPTIONS
)
