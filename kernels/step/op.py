"""A whole training step of heads over bags of table rows in one kernel call: forward, backward and optimizers.

What `embedding_bag`, `multitask_loss`, their backward passes and the optimizer's step do one after another, without a
gradient of the table and without autograd. On a CPU, for rules whose state is at most a number a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..bags.op import choose_embedding_backend
from ..bags.prepared import PreparedBags
from ..bags.rules import ADAM, RowRule
from ..machine.registry import Room
from .model import BagModel

ROOM = Room("step", __package__)


class BagStep(NamedTuple):
    """What a step leaves beside the moved parameters: losses (K,) float32 and rows classified right (K,) int64."""

    losses: Tensor
    correct: Tensor


def bag_step_obstacle(
    table: Tensor, others: Sequence[Tensor], rules: Sequence[RowRule], backend: str = "auto"
) -> str | None:
    """Why `bag_step` cannot train a table and the heads' parameters by these rules, or None.

    Raises as `choose_embedding_backend` does.
    """
    for parameter in (table, *others):
        if parameter.device.type != "cpu":
            return "its kernel is for a CPU"
        if parameter.dtype is not torch.float32 or not parameter.is_contiguous():
            return "its kernel is for contiguous float32 parameters"
    if any(rule.kind == ADAM for rule in rules):
        return "its kernel knows SGD and row-wise Adagrad"
    chosen = choose_embedding_backend(table.device, backend)
    return None if chosen.name == "numba" else f"the backend is {chosen.name}: {chosen.reason}"


def bag_step(
    model: BagModel,
    rules: Sequence[RowRule],
    bags: PreparedBags,
    targets: Sequence[Tensor],
    task_weights: Tensor,
) -> BagStep:
    """Train table and heads on B bags, in place; all of `bag_step_obstacle`'s obstacles are the caller's.

    bags come from `prepare_bags`, and may come again; rules are those that the model's parameters name, at the rates of
    this step; targets and task_weights (K,) are as in `multitask_loss`. A head without a target or with weight 0 stays
    as it is.

    Raises ValueError, with nothing moved, for bags of another table's rows, for targets that do not fit bags or heads,
    and for a class target that is neither in [0, C) nor ignore_index.
    """
    _check_batch(model, bags, targets, task_weights)
    found: tuple[Tensor, Tensor] = _kernels().step(model, rules, bags, targets, task_weights)
    return BagStep(*found)


def _check_batch(
    model: BagModel, bags: PreparedBags, targets: Sequence[Tensor], task_weights: Tensor
) -> None:
    """The kernel reads addresses: no shape may lie."""
    layout, V, B = model.layout, len(model.table.parameter), len(bags.scales)
    if bags.n_rows != V:
        raise ValueError(f"the bags were prepared for {bags.n_rows:,} rows, the table has {V:,}")
    if not len(targets) == len(task_weights) == len(layout):
        raise ValueError(
            f"there are {len(layout)} heads; targets and weights are {len(targets)}, {len(task_weights)}"
        )
    for name, spec, target in zip(layout.names, layout.heads, targets, strict=True):
        if target.shape != ((B,) if spec.kind.takes_classes else (B, spec.size)):
            raise ValueError(f"targets of {name} are {tuple(target.shape)}, there are {B} bags")


def _kernels() -> ModuleType:
    return ROOM.load("numba", "bag_step")
