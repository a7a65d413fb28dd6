"""A whole training step of heads over the words of a text, in one kernel call.

rows of a table -> mean of a word type -> window or bag -> dropout -> hidden layer and ReLU, if there is one -> heads
and losses -> all gradients -> optimizers. This replaces the encoder, `multitask_loss`, autograd and the optimizer's
step. For rules that update the rows or elements of a dense parameter independently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..bags.op import in_kernel_types
from .common import (
    TO_GRADIENTS,
    Dropout,
    StepResult,
    Updates,
    check_targets,
    heads_obstacle,
    parameters_obstacle,
    step_kernels,
)
from .model import EVERYTHING, Moves
from .text_model import ExtraGradients, TextStepModel, Words


class BatchGradients(NamedTuple):
    """Losses and hits (K,), and for R rows of the table their indices (R,) int32, ascending, and gradients (R, D).

    The model's next gradients overwrite those of rows.
    """

    losses: Tensor
    correct: Tensor
    rows: Tensor
    d_rows: Tensor


def text_step_obstacle(
    table: Tensor,
    others: Sequence[Tensor],
    layout_sizes: Sequence[int],
    n_features: int,
    backend: str = "auto",
) -> str | None:
    """Why `text_step` cannot train a table and other parameters, heads of these sizes among them, or None.

    n_features: the number of inputs of a head. Raises as `choose_embedding_backend` does.
    """
    obstacle = parameters_obstacle(table, others, backend)
    return obstacle or heads_obstacle(layout_sizes, n_features)


def text_step(
    model: TextStepModel,
    updates: Updates,
    words: Words,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    dropout: Dropout,
    extra: ExtraGradients | None = None,
) -> StepResult:
    """Train table, hidden layer and heads, or one side of them, on N rows, in place.

    The caller must check `text_step_obstacle` first.
    words: windows or bags, whichever the model pools. Gradients of the words in `extra` go into the same step of the
    table.
    targets, task_weights (K,): as in `multitask_loss`. A head without a valid target or with weight 0 has gradient 0.

    Raises ValueError, before anything is changed, for words and targets that do not fit the model, and for a class
    target that is neither in [0, C) nor ignore_index.
    """
    if model.gathers_rows:
        raise ValueError("a gradient_model is not stepped; call text_gradients")
    return _step(model, updates, words, targets, task_weights, dropout, extra)


def _step(
    model: TextStepModel,
    updates: Updates,
    words: Words,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    dropout: Dropout,
    extra: ExtraGradients | None,
) -> StepResult:
    words = _in_kernel_types(model, words)
    check_targets(model.layout, targets, task_weights, words.n_rows, _ROWS[model.pooled.how])
    _check_extra(model, extra)
    found = StepResult(*_kernels(model).step(model, updates, words, targets, task_weights, dropout, extra))
    increment_version(model.moving(updates.moves).parameters)
    return found


def text_gradients(
    model: TextStepModel,
    words: Words,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    dropout: Dropout,
    moves: Moves = EVERYTHING,
    extra: ExtraGradients | None = None,
    room: np.ndarray | None = None,
) -> BatchGradients:
    """Return the gradients by which `text_step` would update a `gradient_model`, for the sides given by `moves`.

    Gradients of dense parameters are added to the contents of the model's gradients. Those of rows lie at the beginning
    of `room`, (n,) float32, if they fit there. Other arguments and errors are those of `text_step`; also raises
    ValueError if the model is not a `gradient_model`.
    """
    if not model.gathers_rows:
        raise ValueError("text_gradients requires a gradient_model; call text_step for this one")
    model.room = room
    try:
        updates = TO_GRADIENTS._replace(moves=moves)
        found = _step(model, updates, words, targets, task_weights, dropout, extra)
        rows, d_rows = _kernels(model).gathered(model, moves)
    finally:
        model.room = None  # it may be memory that somebody gives back
    return BatchGradients(found.losses, found.correct, rows, d_rows)


def text_features(model: TextStepModel, words: Words) -> Tensor:
    """Return the inputs of the heads for N rows (N, H), without dropout, with the current parameters.

    Raises ValueError for words that do not fit the model.
    """
    return _kernels(model).features(model, _in_kernel_types(model, words))


def text_correct(model: TextStepModel, words: Words, targets: Sequence[Tensor]) -> Tensor:
    """Return how many of N targets each head hits on N rows (K,), counted as in `multitask_loss`; no dropout.

    Raises as `text_step` does.
    """
    words = _in_kernel_types(model, words)
    ones_k = torch.ones(len(model.layout), dtype=torch.float32, device="cpu")
    check_targets(model.layout, targets, ones_k, words.n_rows, _ROWS[model.pooled.how])
    return _kernels(model).correct(model, words, targets)


_ROWS = {"window": "windows", "mean": "bags", "sum": "bags"}


def _in_kernel_types(model: TextStepModel, words: Words) -> Words:
    """Convert bags to int32 and int64; leave windows as they are.

    Raises ValueError for words that the model does not pool.
    """
    how, W = model.pooled
    types, starts = words
    if how != "window":
        if starts is None:
            raise ValueError("inputs must be the words of the bags and the start of each bag")
        return Words(*in_kernel_types(model.table.parameter, types, starts, how))
    if types.dim() != 2 or types.shape[1] != W or types.is_floating_point() or starts is not None:
        shape = f"{tuple(types.shape)} of {str(types.dtype).removeprefix('torch.')}"
        raise ValueError(f"inputs must be (N, {W}) integer word types, not {shape}")
    return words


def _check_extra(model: TextStepModel, extra: ExtraGradients | None) -> None:
    """Raise ValueError unless the shapes fit: the kernel copies from raw addresses."""
    if extra is None:
        return
    expected = (extra.types.numel(), model.table.parameter.shape[1])
    if extra.d_vectors.shape != expected or extra.d_vectors.dtype != torch.float32:
        raise ValueError(
            f"the gradients in extra have shape {tuple(extra.d_vectors.shape)}, but must have shape {expected} and "
            "be float32"
        )


class TextKernels(Protocol):
    """The interface of a backend's module `on_<name>/text_step.py`."""

    def step(
        self,
        model: TextStepModel,
        updates: Updates,
        words: Words,
        targets: Sequence[Tensor],
        task_weights: Tensor,
        dropout: Dropout,
        extra: ExtraGradients | None,
    ) -> tuple[Tensor, Tensor]:
        """Update the parameters; return (losses (K,), correct (K,)) as `text_step` does."""

    def gathered(self, model: TextStepModel, moves: Moves) -> tuple[Tensor, Tensor]:
        """Return (rows, d_rows) of the last step of a gradient_model, as in `BatchGradients`."""

    def features(self, model: TextStepModel, words: Words) -> Tensor:
        """Return (N, H) as `text_features` does."""

    def correct(self, model: TextStepModel, words: Words, targets: Sequence[Tensor]) -> Tensor:
        """Return (K,) as `text_correct` does."""


def _kernels(model: TextStepModel) -> TextKernels:
    table = model.table.parameter
    return cast(TextKernels, step_kernels("text_step", table.device.type, table.dtype))
