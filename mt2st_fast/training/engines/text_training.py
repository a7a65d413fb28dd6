"""Training steps of a word encoder and its heads as one kernel call each, if model and optimizer allow it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mt2st_fast.kernels import (
    EVERYTHING,
    FROZEN,
    Dense,
    Dropout,
    ExtraGradients,
    HeadLayout,
    Moves,
    RowState,
    TextStepModel,
    Trained,
    Updates,
    text_step,
)
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.dense_rules import KeptRules, option_obstacle, state_obstacle, state_of
from mt2st_fast.training.engines.held_parameters import are_moved, group_of
from mt2st_fast.training.engines.text_calls import (
    Inputs,
    TextCalls,
    hidden_layer,
    pooled_by,
    text_parameters,
    words_of,
)
from mt2st_fast.training.optim import RowSparseOptimizer


class TextTraining(TextCalls):
    """Steps table, hidden layer and heads as encoder, heads, backward pass and optimizer would, up to rounding.

    clip_norm: as a Trainer's.
    """

    _dropped = Dropout(0.0, 0)  # of the previous call

    def __init__(
        self,
        encoder: nn.Module,
        heads: MultiTaskHeads,
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(encoder, heads, optimizer)
        self._clip_norm = clip_norm

    @classmethod
    def obstacle(
        cls, encoder: nn.Module, heads: MultiTaskHeads, optimizer: torch.optim.Optimizer
    ) -> str | None:
        """Return why a step cannot be one kernel call, or None."""
        reason = super().obstacle(encoder, heads, optimizer)
        if reason is not None:
            return reason
        assert isinstance(encoder, WindowEncoder | BagEncoder)
        assert isinstance(optimizer, RowSparseOptimizer)
        # Before states are asked for, which makes those of plain options.
        if (reason := option_obstacle(optimizer)) is not None:
            return reason
        _, *dense = text_parameters(encoder, heads)
        moved = [p for p, is_moved in zip(dense, are_moved(dense, optimizer), strict=True) if is_moved]
        return state_obstacle(optimizer, moved)

    def _options_obstacle(self) -> str | None:
        return option_obstacle(self._optimizer)

    def __call__(
        self,
        inputs: Inputs,
        targets: Mapping[str, Tensor],
        weights: Tensor,
        moves: Moves = EVERYTHING,
        *,
        again: bool = False,
        extra: ExtraGradients | None = None,
    ) -> Tensor:
        """Take one step on N rows; returns the losses (K,) of the active tasks, 0 for a task without a target here.

        again: drop the same numbers as the previous call. extra: words whose vectors have gradients from elsewhere,
        for the same step of the table.

        Raises what `text_step` and the heads raise, with nothing moved.
        """
        words = words_of(inputs)
        batch = self._heads.batch(targets, torch.Size([words.n_rows]), weights, words.types.device)
        model = self._models.of(batch.layout, self._new_model)
        self._dropped = self._dropped if again else self._dropout()
        rules, decays = self._rules.now()
        updates = Updates(rules, decays, moves, self._clip_norm)
        found = text_step(model, updates, words, batch.targets, batch.weights, self._dropped, extra)
        return self._heads.over_active(found.losses, batch)

    def _hold(self) -> None:
        # Asking for states creates missing ones, so do it before recording what there is.
        for parameter in text_parameters(self.encoder, self._heads)[1:]:
            self._dense(parameter)
        self._table()
        super()._hold()
        self._rules = KeptRules(self._optimizer, self._held.group_of.get(id(self.encoder.table), 0))

    def _new_model(self, layout: HeadLayout) -> TextStepModel:
        encoder, optimizer, table = self.encoder, self._optimizer, self._table()
        hidden = hidden_layer(encoder)
        return TextStepModel(
            table, encoder.rows_of_type, pooled_by(encoder), None if hidden is None else self._linear(hidden),
            [self._linear(self._heads.linear(name)) for name in layout.names], layout,
            optimizer.frozen_rows(encoder.table),
            table_steps=None if table.rule == FROZEN else optimizer.table_steps(encoder.table),
        )  # fmt: skip

    def _linear(self, linear: nn.Linear) -> tuple[Dense, Dense | None]:
        return self._dense(linear.weight), None if linear.bias is None else self._dense(linear.bias)

    def _table(self) -> Trained:
        table, optimizer = self.encoder.table, self._optimizer
        if not any(are_moved([table], optimizer)):
            return Trained(table.detach(), RowState(), FROZEN)
        return Trained(table.detach(), optimizer.row_state(table), len(optimizer.param_groups))

    def _dense(self, parameter: Tensor) -> Dense:
        if not any(are_moved([parameter], self._optimizer)):
            return Dense(parameter.detach(), RowState(), FROZEN, False)
        found = state_of(self._optimizer, parameter)
        assert found is not None
        state, whole = found
        return Dense(parameter.detach(), state, group_of(self._optimizer)[id(parameter)], whole)
