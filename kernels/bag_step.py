"""A whole training step of heads over bags of table rows in one kernel call: forward, backward and optimizers.

What `embedding_bag`, `multitask_loss`, their backward passes and the optimizer's step do one after another, without a
gradient of the table and without autograd. On a CPU, for rules whose state is at most a number a row.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .embedding import choose_embedding_backend
from .layout import HeadLayout, Kind
from .prepared_bags import PreparedBags
from .row_rules import ADAM, RowRule, RowState


class Trained(NamedTuple):
    """A parameter, the rule by which its rows move, and the rule's state; a row is what the first axis counts."""

    parameter: Tensor
    rule: RowRule
    state: RowState


class TrainedHead(NamedTuple):
    """A linear head's weight (C, D) and its bias (C,), if it has one."""

    weight: Trained
    bias: Trained | None


class BagStep(NamedTuple):
    """What a step leaves beside the moved parameters: losses (K,) float32 and rows classified right (K,) int64."""

    losses: Tensor
    correct: Tensor


def bag_step_obstacle(table: Trained, heads: Sequence[TrainedHead], backend: str = "auto") -> str | None:
    """Why `bag_step` cannot train these, or None. Raises as `choose_embedding_backend` does."""
    parts = [table, *(part for head in heads for part in head if part is not None)]
    for part in parts:
        if part.parameter.device.type != "cpu":
            return "its kernel is for a CPU"
        if part.parameter.dtype is not torch.float32 or not part.parameter.is_contiguous():
            return "its kernel is for contiguous float32 parameters"
        if part.rule.kind == ADAM:
            return "its kernel knows SGD and row-wise Adagrad"
    chosen = choose_embedding_backend(table.parameter.device, backend)
    return None if chosen.name == "numba" else f"the backend is {chosen.name}: {chosen.reason}"


def bag_step(
    table: Trained,
    heads: Sequence[TrainedHead],
    bags: PreparedBags,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
) -> BagStep:
    """Train the table (V, D) and K heads on B bags, in place; all of `bag_step_obstacle`'s obstacles are the caller's.

    bags come from `prepare_bags`, and may come again; targets, task_weights (K,) and layout are as in `multitask_loss`.
    A head without a target or with weight 0 stays as it is.

    Raises ValueError, with nothing moved, for bags of another table's rows, for a shape that does not fit the layout,
    and for a class target that is neither in [0, C) nor ignore_index.
    """
    if bags.n_rows != len(table.parameter):
        raise ValueError(
            f"the bags were prepared for {bags.n_rows:,} rows, the table has {len(table.parameter):,}"
        )
    _check_heads(table, heads, targets, task_weights, layout, B=len(bags.scales))
    found: tuple[Tensor, Tensor] = _kernels().step(table, heads, bags, targets, task_weights, layout)
    return BagStep(*found)


def _check_heads(
    table: Trained,
    heads: Sequence[TrainedHead],
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
    B: int,
) -> None:
    """The kernel reads addresses: no shape may lie."""
    K, D = len(layout), table.parameter.shape[1]
    if not len(heads) == len(targets) == len(task_weights) == K:
        raise ValueError(
            f"layout has {K} heads; heads, targets and weights are {len(heads)}, {len(targets)}, {len(task_weights)}"
        )
    for name, spec, head, target in zip(layout.names, layout.heads, heads, targets, strict=True):
        if target.shape != ((B,) if spec.kind is Kind.SOFTMAX else (B, spec.size)):
            raise ValueError(f"targets of {name} are {tuple(target.shape)}, there are {B} bags")
        if head.weight.parameter.shape != (spec.size, D):
            shape = tuple(head.weight.parameter.shape)
            raise ValueError(f"the weight of {name} is {shape}, not ({spec.size}, {D})")


def warm_up_bag_step() -> None:
    """Do before a clock starts what the first `bag_step` would do."""
    _kernels().warm_up()


@lru_cache
def _kernels() -> ModuleType:
    """Numba takes seconds to import: only what is used pays."""
    return importlib.import_module(".numba_bag_step", __package__)
