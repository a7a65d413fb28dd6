"""A whole training step of heads on a stack of linear layers, in one kernel call.

features of a row, or rows of a table -> dropout -> linear layer, activation and dropout, and so on -> heads and losses
-> all gradients -> optimizers. This replaces an MLP of torch's layers, or a bag of words, `multitask_loss`, autograd
and the optimizer's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .common import (
    Dropout,
    StepResult,
    Updates,
    check_targets,
    heads_obstacle,
    parameters_obstacle,
    step_kernels,
)
from .embedding import EmbeddingTable, described, indices_obstacle
from .model import NOTHING
from .stack_model import StackModel

# Of a layer, in inputs or outputs. Up to here a step took 0.3 to 0.99 of the eager engine's time, with 8,192 inputs
# 1.04 times that, and with 20,000 1.4 times (`python -m bench.limits`; 2 cores, EPYC family 25, MKL).
MOST_WIDTH = 2048


def stack_step_obstacle(
    parameters: Sequence[Tensor], widths: Sequence[int], layout_sizes: Sequence[int]
) -> str | None:
    """Why `stack_step` cannot train these parameters, heads of these sizes among them, or None.

    widths: the inputs of the first layer, then the outputs of each; without layers, the inputs of the heads. Raises as
    `choose_embedding_backend` does.
    """
    obstacle = parameters_obstacle(parameters[0], parameters[1:], "auto")
    if obstacle is None and len(widths) > 1 and max(widths) > MOST_WIDTH:
        return f"a layer has a width of {max(widths):,}, and its kernel is fast up to {MOST_WIDTH:,}"
    return obstacle or heads_obstacle(layout_sizes, widths[-1])


def stack_inputs_obstacle(inputs: Tensor, n_inputs: int, embedding: EmbeddingTable | None) -> str | None:
    """Why `stack_step` cannot take these inputs, or None; indices are not read."""
    if embedding is not None:
        return indices_obstacle(embedding, inputs, n_inputs)
    if inputs.dtype is torch.float32 and inputs.dim() == 2 and inputs.shape[1] == n_inputs:
        return None
    return f"its kernel takes inputs (N, {n_inputs}) of float32, not {described(inputs)}"


def stack_step(
    model: StackModel,
    updates: Updates,
    inputs: Tensor,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    dropouts: Sequence[Dropout],
) -> StepResult:
    """Train layers and heads, or one side of them, on N rows, in place.

    The caller must check `stack_step_obstacle` first.
    inputs: (N, F) float32 on the CPU; with a table before the layers, indices of its rows (N, L), int64 or int32.
    updates: if of neither side, running statistics of BatchNorms stay as they are, too: the batch is only measured.
    dropouts: of the inputs, and of every layer's outputs.
    targets, task_weights (K,): as in `multitask_loss`. A head without a valid target or with weight 0 has gradient 0.

    Raises ValueError, before anything is changed, for inputs and targets that do not fit the model, for an index that
    is not in the table, and for a class target that is neither in [0, C) nor ignore_index.
    """
    if (reason := stack_inputs_obstacle(inputs, model.n_inputs, model.embedding)) is not None:
        raise ValueError(reason)
    if len(dropouts) != 1 + len(model.layers):
        raise ValueError(f"there are {len(model.layers)} layers, but {len(dropouts)} dropouts, not one more")
    if model.cuts and inputs.shape[0] < 2:
        raise ValueError(f"a BatchNorm needs a batch of at least 2 rows, not {inputs.shape[0]}")
    check_targets(model.layout, targets, task_weights, inputs.shape[0], "rows")
    found = StepResult(*_kernels().step(model, updates, inputs, targets, task_weights, dropouts))
    increment_version(model.moving(updates.moves).dense.parameters)
    return found


def stack_correct(model: StackModel, updates: Updates, inputs: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """Return how many of N targets each head hits on N rows (K,), counted as in `multitask_loss`; no dropout.

    updates: of the model's steps, so that nothing is compiled that they do not need; nothing is updated.
    Raises as `stack_step` does, and ValueError for a model with a BatchNorm that takes the statistics of a batch.
    """
    if model.cuts:
        raise ValueError("rows of a BatchNorm that takes the statistics of a batch cannot be counted apart")
    if (reason := stack_inputs_obstacle(inputs, model.n_inputs, model.embedding)) is not None:
        raise ValueError(reason)
    ones_k = torch.ones(len(model.layout), dtype=torch.float32, device="cpu")
    check_targets(model.layout, targets, ones_k, inputs.shape[0], "rows")
    return _kernels().correct(model, updates._replace(moves=NOTHING), inputs, targets)


class StackKernels(Protocol):
    """The interface of a backend's module `on_<name>/stack_step.py`."""

    def step(
        self,
        model: StackModel,
        updates: Updates,
        inputs: Tensor,
        targets: Sequence[Tensor],
        task_weights: Tensor,
        dropouts: Sequence[Dropout],
    ) -> tuple[Tensor, Tensor]:
        """Update the parameters; return (losses (K,), correct (K,)) as `stack_step` does."""

    def correct(
        self, model: StackModel, updates: Updates, inputs: Tensor, targets: Sequence[Tensor]
    ) -> Tensor:
        """Return (K,) as `stack_correct` does."""


def _kernels() -> StackKernels:
    return cast(StackKernels, step_kernels("stack_step", "cpu", torch.float32))
