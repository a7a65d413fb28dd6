"""What all single-kernel training steps share: how they update, their result, the choice of a backend, and checks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..bags.op import choose_embedding_backend
from ..bags.rules import SGD, RowRule
from ..heads.layout import HeadLayout
from ..machine.registry import Op
from .dense_model import Decay
from .model import EVERYTHING, Moves

OP = Op("step", __package__)


MOST_HEAD_FLOATS = 1 << 20  # of a head's weight; a wider head is computed in chunks, by the op of the heads


class Updates(NamedTuple):
    """How a step updates parameters.

    rules: those that the model's parameters refer to, with the rates of this step. decays (len(rules),): how each
    decays dense parameters. Both may be arrays, rules `packed` and decays (len(rules), 4) float32: a kernel that counts
    the steps of a table writes the count there. moves: which sides of the model are updated. clip_norm: the largest
    2-norm of the gradients of all parameters that are updated; all are scaled down to it.
    """

    rules: Sequence[RowRule] | np.ndarray
    decays: Sequence[Decay] | np.ndarray
    moves: Moves = EVERYTHING
    clip_norm: float | None = None


# By a step with these, a model whose parameters are sums of gradients adds new gradients to them:
# gradient - rate * (new gradient), with rate -1.
TO_GRADIENTS = Updates((RowRule(SGD, -1.0),), (Decay(),))


class Dropout(NamedTuple):
    """Which of a batch's numbers are dropped: a function of the key and of a number's position in the batch."""

    probability: float
    key: int  # 0 <= key < 2^63


class StepResult(NamedTuple):
    """Result of a step besides the updated parameters: losses (K,) float32 and correctly classified rows (K,) int64."""

    losses: Tensor
    correct: Tensor


def parameters_obstacle(table: Tensor, others: Sequence[Tensor], backend: str) -> str | None:
    """Why no kernel can update a table and the other parameters of a step, or None.

    Raises as `choose_embedding_backend` does.
    """
    chosen = choose_embedding_backend(table.device, backend)
    if chosen.name not in OP.backends:
        return f"the backend is {chosen.name}: {chosen.reason}"
    for parameter in (table, *others):
        obstacle = OP.backends[chosen.name].obstacle(parameter.device.type, parameter.dtype)
        if obstacle is not None:
            return obstacle
        if not parameter.is_contiguous():
            return "its kernel requires contiguous parameters"
    return None


def heads_obstacle(sizes: Sequence[int], n_features: int) -> str | None:
    """Why no kernel can train heads of these sizes on n_features inputs within a step, or None."""
    if max(sizes) * n_features <= MOST_HEAD_FLOATS:
        return None
    most = MOST_HEAD_FLOATS // n_features
    return f"a head has {max(sizes):,} outputs, but its kernel supports at most {most:,}"


def check_targets(
    layout: HeadLayout, targets: Sequence[Tensor], task_weights: Tensor, n_rows: int, rows: str
) -> None:
    """Raise ValueError unless all shapes fit: the kernel reads raw addresses. rows: what a step's rows are called.

    Raises TypeError for targets of a type that their head does not accept.
    """
    if not len(targets) == len(task_weights) == len(layout):
        raise ValueError(
            f"there are {len(layout)} heads, but {len(targets)} targets and {len(task_weights)} weights"
        )
    of_classes = (n_rows,)
    for name, spec, takes_classes, target in zip(
        layout.names, layout.heads, layout.takes_classes, targets, strict=True
    ):
        if takes_classes and target.dtype is torch.int64 and target.shape == of_classes:
            continue  # nearly always: asked at every step, and functions cost more than what they ask
        spec.check_target_type(name, target)
        if target.shape != spec.target_shape(n_rows):
            raise ValueError(
                f"targets of {name} have shape {tuple(target.shape)}, but there are {n_rows} {rows}"
            )


@lru_cache
def step_kernels(module: str, device_type: str, dtype: torch.dtype) -> Any:
    """Load a module from the first backend that supports such tensors. There is no reference to fall back to."""
    obstacles = {name: backend.obstacle(device_type, dtype) for name, backend in OP.backends.items()}
    for name, obstacle in obstacles.items():
        if obstacle is None:
            return OP.load(name, module)
    why = "; ".join(f"{name}: {obstacle}" for name, obstacle in obstacles.items())
    raise RuntimeError(f"no backend can take a step in one call: {why}")
