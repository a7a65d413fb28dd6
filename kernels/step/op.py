"""A whole training step of heads over bags of table rows in one kernel call: forward, backward and optimizers.

What `embedding_bag`, `multitask_loss`, their backward passes and the optimizer's step do one after another, without a
gradient of the table and without autograd. For rules that say that they can (`RowRuleKind.one_call_obstacle`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from ..bags.op import choose_embedding_backend
from ..bags.prepared import PreparedBags
from ..bags.rules import RowRule
from ..machine.registry import Room
from .model import BagModel

ROOM = Room("step", __package__)
CPU = torch.device("cpu")


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
    for rule in rules:
        if rule.kind.one_call_obstacle is not None:
            return rule.kind.one_call_obstacle
    chosen = choose_embedding_backend(table.device, backend)
    if chosen.name not in ROOM.backends:
        return f"the backend is {chosen.name}: {chosen.reason}"
    for parameter in (table, *others):
        obstacle = ROOM.backends[chosen.name].obstacle(parameter.device.type, parameter.dtype)
        if obstacle is not None:
            return obstacle
        if not parameter.is_contiguous():
            return "its kernel is for contiguous parameters"
    return None


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
    kernels = _kernels(model.table.parameter.device.type, model.table.parameter.dtype)
    return BagStep(*kernels.step(model, rules, bags, targets, task_weights))


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


class StepKernels(Protocol):
    """What a backend's module `on_<name>/bag_step.py` has to offer."""

    def step(
        self,
        model: BagModel,
        rules: Sequence[RowRule],
        bags: PreparedBags,
        targets: Sequence[Tensor],
        task_weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(losses (K,), correct (K,)) as `bag_step` returns them, and the parameters moved."""


@lru_cache
def _kernels(device_type: str, dtype: torch.dtype) -> StepKernels:
    """Of the first backend that serves such tensors: there is no reference to fall back to."""
    obstacles = {name: backend.obstacle(device_type, dtype) for name, backend in ROOM.backends.items()}
    for name, obstacle in obstacles.items():
        if obstacle is None:
            return cast(StepKernels, ROOM.load(name, "bag_step"))
    why = "; ".join(f"{name}: {obstacle}" for name, obstacle in obstacles.items())
    raise RuntimeError(f"no backend can take a step in one call: {why}")
