"""Training steps of a window encoder and its heads as one kernel call each, where model and optimizer allow it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mt2st_fast.kernels import (
    EVERYTHING,
    FROZEN,
    Dense,
    Dropout,
    HeadLayout,
    Kind,
    Moves,
    RowRule,
    RowState,
    Trained,
    WindowModel,
    window_correct,
    window_features,
    window_step,
    window_step_obstacle,
)
from mt2st_fast.model.encoders import WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.engines.held_parameters import (
    HeldParameters,
    are_moved,
    group_of,
    head_parameters,
    model_obstacle,
    parameter_obstacle,
)
from mt2st_fast.training.optim import RowSparseOptimizer


class WindowTraining:
    """Steps table, hidden layer and heads as encoder, heads, backward pass and optimizer would, up to rounding.

    Made for one phase and its active tasks. Dropout is drawn by the kernel, from a key that torch's generator gives
    for every step: other bits than torch's, the same ones on any number of threads and in a resumed run.

    Raises ValueError with the reason where the kernel cannot do all that a step would do (see `obstacle`).
    """

    def __init__(self, encoder: nn.Module, heads: MultiTaskHeads, optimizer: torch.optim.Optimizer) -> None:
        reason = self.obstacle(encoder, heads, optimizer)
        if reason is not None:
            raise ValueError(f"a step cannot be one kernel call: {reason}")
        assert isinstance(encoder, WindowEncoder)
        assert isinstance(optimizer, RowSparseOptimizer)
        self._encoder, self._heads, self._optimizer = encoder, heads, optimizer
        self._parameters = _parameters(encoder, heads)
        self._models: dict[tuple[str, ...], WindowModel] = {}  # by the tasks of a batch
        self._dropped = Dropout(0.0, 0)
        self._hold()

    @staticmethod
    def obstacle(encoder: nn.Module, heads: MultiTaskHeads, optimizer: torch.optim.Optimizer) -> str | None:
        """What stands against one kernel call a step, or None."""
        reason = model_obstacle(encoder, WindowEncoder, heads, optimizer)
        if reason is not None:
            return reason
        assert isinstance(encoder, WindowEncoder)
        assert isinstance(optimizer, RowSparseOptimizer)
        if encoder.hidden is None:
            return "the encoder has no hidden layer"
        if type(encoder.hidden) is not nn.Linear or type(encoder.dropout) is not nn.Dropout:
            return "the encoder's layers are not as they were made"
        table, *dense = parameters = _parameters(encoder, heads)
        reason = parameter_obstacle(parameters, optimizer)
        if reason is not None:
            return reason
        if len(dense) <= len(list(encoder.hidden.parameters())):
            return "no active task has a head"
        moved = [p for p, is_moved in zip(dense, are_moved(dense, optimizer), strict=True) if is_moved]
        if any(optimizer.whole_state(p) is None and optimizer.dense_state(p) is None for p in moved):
            return f"{type(optimizer).__name__} steps dense parameters by another rule"
        sizes = [heads.linear(name).out_features for name in heads.active if not heads.is_word_task(name)]
        return window_step_obstacle(table, dense, sizes, encoder.backend)

    def declines(self) -> str | None:
        """Why this step cannot be taken, or None."""
        if self._held.are_others():
            self._models = {}
            self._hold()
        return None if any(self._held.moved) else "every parameter is frozen"

    def __call__(
        self,
        types: Tensor,
        targets: Mapping[str, Tensor],
        weights: Tensor,
        moves: Moves = EVERYTHING,
        *,
        again: bool = False,
    ) -> Tensor:
        """One step on N windows of types (N, W); the losses (K,) of the active tasks, 0 where one has no target here.

        again: with the numbers dropped that were dropped in the call before.

        Raises what `window_step` and the heads raise, with nothing moved.
        """
        batch = self._heads.batch(targets, types.shape[:1], weights, types.device)
        # Rates may fall at every step; all else stays for the phase.
        groups = self._optimizer.param_groups
        rules = [self._optimizer.rule(group) for group in groups]
        decays = [1.0 - float(group["lr"]) * group.get("weight_decay", 0.0) for group in groups]
        rules.append(self._rule_of_rows(moves))
        decays.append(1.0)
        model = self._models.get(batch.layout.names) or self._new_model(batch.layout)
        self._dropped = self._dropped if again else self._dropout()
        found = window_step(model, rules, decays, types, batch.targets, batch.weights, self._dropped, moves)
        return self._heads.over_active(found.losses, batch)

    def features(self, types: Tensor) -> Tensor | None:
        """(N, H) features of windows of types (N, W), without dropout; None before the first step."""
        return window_features(next(iter(self._models.values())), types) if self._can_be_asked() else None

    def hits(self, types: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """(2,) of each task: how many targets of windows (N, W) it hits without dropout, and how many there are.

        None where a task is not a classification that is trained, and before the first step.
        """
        heads = self._heads
        for name in targets:
            if name not in heads.active or heads.tasks[name].head.kind is not Kind.SOFTMAX:
                return None
        if not targets or not self._can_be_asked():
            return None
        batch = heads.batch(targets, types.shape[:1], None, types.device)
        model = self._models.get(batch.layout.names) or self._new_model(batch.layout)
        try:
            correct = window_correct(model, types, batch.targets)
        except ValueError:  # a class outside the head is an error of a loss, and to a metric a miss
            return None
        return {
            name: torch.stack([hits, (target != spec.ignore_index).sum()]).double()
            for name, spec, target, hits in zip(
                batch.layout.names, batch.layout.heads, batch.targets, correct, strict=True
            )
        }

    def _can_be_asked(self) -> bool:
        if not self._models or self._held.are_others():
            return False
        # For instance a hook of somebody who wants to see the features.
        return self.obstacle(self._encoder, self._heads, self._optimizer) is None

    def _rule_of_rows(self, moves: Moves) -> RowRule:
        """The rule of the table, which stands behind those of the groups."""
        table, optimizer = self._encoder.table, self._optimizer
        group = optimizer.param_groups[group_of(optimizer).get(id(table), 0)]
        is_stepped = moves.shared and self._held.moved[0]
        return optimizer.next_rule(table, group) if is_stepped else optimizer.rule(group)

    def _dropout(self) -> Dropout:
        dropout = self._encoder.dropout
        if not (dropout.training and dropout.p):
            return Dropout(0.0, 0)
        return Dropout(dropout.p, int(torch.empty((), dtype=torch.int64).random_()))

    def _hold(self) -> None:
        # Asking for states makes those that are missing: before it is noted what there is.
        for parameter in self._parameters[1:]:
            self._dense(parameter)
        self._table()
        self._held = HeldParameters(self._parameters, self._optimizer)

    def _new_model(self, layout: HeadLayout) -> WindowModel:
        encoder, names = self._encoder, layout.names
        assert encoder.hidden is not None
        linears = [encoder.hidden, *(self._heads.linear(name) for name in names)]
        hidden, *heads = [
            (self._dense(linear.weight), None if linear.bias is None else self._dense(linear.bias))
            for linear in linears
        ]
        frozen_rows = self._optimizer.frozen_rows(encoder.table)
        model = WindowModel(self._table(), encoder.rows_of_type, hidden, heads, layout, frozen_rows)
        self._models[names] = model
        return model

    def _table(self) -> Trained:
        table, optimizer = self._encoder.table, self._optimizer
        if not any(are_moved([table], optimizer)):
            return Trained(table.detach(), RowState(), FROZEN)
        return Trained(table.detach(), optimizer.row_state(table), len(optimizer.param_groups))

    def _dense(self, parameter: Tensor) -> Dense:
        if not any(are_moved([parameter], self._optimizer)):
            return Dense(parameter.detach(), RowState(), FROZEN, False)
        whole = self._optimizer.whole_state(parameter)
        state = self._optimizer.dense_state(parameter) if whole is None else whole
        assert state is not None
        group = group_of(self._optimizer)[id(parameter)]
        return Dense(parameter.detach(), state, group, whole is not None)


def _parameters(encoder: WindowEncoder, heads: MultiTaskHeads) -> list[nn.Parameter]:
    """The table, those of the hidden layer, then those of the active heads."""
    hidden = [] if encoder.hidden is None else list(encoder.hidden.parameters())
    return [encoder.table, *hidden, *head_parameters(heads)]
