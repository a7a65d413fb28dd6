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
    TextStepModel,
    Trained,
    Updates,
    text_step,
)
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.engines.kernel_calls.text_calls import Inputs, TextCalls, text_parameters, words_of
from mt2st_fast.training.optimizers.dense_rules import (
    KeptRules,
    dense_of,
    option_obstacle,
    state_obstacle,
    table_of,
)
from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer
from mt2st_fast.training.optimizers.upkeep import are_moved, group_of


class TextTraining(TextCalls):
    """Steps table, hidden layer and heads as encoder, heads, backward pass and optimizer would, up to rounding."""

    _dropped = Dropout(0.0, 0)  # of the previous call

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
        table = self._table()
        steps = None if table.rule == FROZEN else self._optimizer.table_steps(self.encoder.table)
        return TextStepModel(table, *self._beside_table(layout), table_steps=steps)

    def _table(self) -> Trained:
        table, optimizer = self.encoder.table, self._optimizer
        is_moved = any(are_moved([table], optimizer))
        return table_of(optimizer, table, len(optimizer.param_groups) if is_moved else FROZEN)

    def _dense(self, parameter: Tensor) -> Dense:
        is_moved = any(are_moved([parameter], self._optimizer))
        rule = group_of(self._optimizer)[id(parameter)] if is_moved else FROZEN
        return dense_of(self._optimizer, parameter, rule)
