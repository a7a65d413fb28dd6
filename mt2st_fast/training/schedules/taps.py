"""TAPS (Wallingford et al. 2022) as a strategy: all tasks to the end; each task may make layers its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.task_adapted import TaskAdaptedEncoder
from mt2st_fast.training.schedules.multi_task import MultiTask
from mt2st_fast.training.schedules.strategy import AUX_WEIGHT, Strategy, StrategyOption, required

SHARING_PENALTY = StrategyOption(
    "sharing_penalty",
    "how strongly task-specific layers are pulled back to being shared",
    0.01,
    low=0.0,
)


def _adapted(encoder: nn.Module, tasks: Sequence[str], values: Mapping[str, float | None]) -> nn.Module:
    if getattr(encoder, "hidden", None) is None:  # a BagEncoder, or a WindowEncoder without a hidden layer
        raise InputError(
            "strategy taps adapts the hidden layer to tasks, but there is none (with labels on documents or "
            "--hidden 0); choose another strategy, or set --hidden to a width"
        )
    return TaskAdaptedEncoder(encoder, tasks, penalty=required(values, SHARING_PENALTY.name))


STRATEGY = Strategy(
    "taps",
    "all tasks to the end; each may make layers of the encoder its own (TAPS), and the main task's model is kept",
    lambda values, facts: MultiTask(weights=required(values, "aux_weight")),
    (AUX_WEIGHT, SHARING_PENALTY),
    encoder=_adapted,
)
