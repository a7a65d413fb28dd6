"""A whole training step of heads over bags of table rows in one kernel call: forward, backward and optimizers.

Replaces `embedding_bag`, `multitask_loss`, their backward passes and the optimizer's step, without a gradient of the
table and without autograd. For rules that support it (`RowRuleKind.one_call_obstacle`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
from torch import Tensor
from torch.autograd.graph import increment_version

from ..bags.prepared import PreparedBags
from ..bags.rules import RowRule
from .common import OP, StepResult, check_targets, parameters_obstacle, step_kernels
from .model import EVERYTHING, BagModel, Moves

__all__ = ["OP", "StepKernels", "StepResult", "bag_step", "bag_step_obstacle"]


def bag_step_obstacle(
    table: Tensor, others: Sequence[Tensor], rules: Sequence[RowRule], backend: str = "auto"
) -> str | None:
    """Why `bag_step` cannot train a table and the heads' parameters by these rules, or None.

    Raises as `choose_embedding_backend` does.
    """
    for rule in rules:
        if rule.kind.one_call_obstacle is not None:
            return rule.kind.one_call_obstacle
    return parameters_obstacle(table, others, backend)


def bag_step(
    model: BagModel,
    rules: Sequence[RowRule] | np.ndarray,
    bags: PreparedBags,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    moves: Moves = EVERYTHING,
) -> StepResult:
    """Train table and heads, or one of the two, on B bags, in place; the caller must check `bag_step_obstacle` first.

    bags: from `prepare_bags`; may be reused.
    rules: those that the model's parameters refer to, with the rates of this step; or the same `packed`.
    targets, task_weights (K,): as in `multitask_loss`. A head without a target or with weight 0 is not changed.

    Raises ValueError, before anything is changed, for bags of a table with another number of rows, for targets that do
    not fit bags or heads, and for a class target that is neither in [0, C) nor ignore_index.
    """
    V = len(model.table.parameter)
    if bags.n_rows != V:
        raise ValueError(f"the bags were prepared for {bags.n_rows:,} rows, but the table has {V:,}")
    check_targets(model.layout, targets, task_weights, len(bags.scales), "bags")
    table = model.table.parameter
    kernels = cast(StepKernels, step_kernels("bag_step", table.device.type, table.dtype))
    found = StepResult(*kernels.step(model, rules, bags, targets, task_weights, moves))
    increment_version(model.parameters(moves))
    return found


class StepKernels(Protocol):
    """The interface of a backend's module `on_<name>/bag_step.py`."""

    def step(
        self,
        model: BagModel,
        rules: Sequence[RowRule] | np.ndarray,
        bags: PreparedBags,
        targets: Sequence[Tensor],
        task_weights: Tensor,
        moves: Moves,
    ) -> tuple[Tensor, Tensor]:
        """Update the parameters; return (losses (K,), correct (K,)) as `bag_step` does."""
