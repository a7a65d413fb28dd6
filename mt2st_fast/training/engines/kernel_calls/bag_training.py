"""Training steps of a bag encoder and its heads as one kernel call each, if model and optimizer allow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from mt2st_fast.kernels import (
    EVERYTHING,
    FROZEN,
    BagModel,
    HeadLayout,
    Moves,
    PreparedBags,
    RowState,
    Trained,
    TrainedHead,
    bag_step,
    bag_step_obstacle,
    prepare_bags,
)
from mt2st_fast.model.encoders import BagEncoder, bag_parts
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.engines.kernel_calls.calls import KernelCalls
from mt2st_fast.training.engines.kernel_calls.held_parameters import (
    HeldParameters,
    head_parameters,
    model_obstacle,
    parameter_obstacle,
)
from mt2st_fast.training.engines.kernel_calls.kept_models import KeptModels
from mt2st_fast.training.optimizers.dense_rules import KeptRules, option_obstacle, table_of
from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer
from mt2st_fast.training.optimizers.upkeep import are_moved, group_of

HAS_DROPOUT = "the encoder has dropout"
PARTLY_FROZEN = "some heads are frozen while others are trained"  # their gradients are made together


class BagTraining(KernelCalls):
    """Steps table and heads as encoder, heads, backward pass and optimizer would, up to rounding.

    With `fixed_batches` the same tensors return every epoch: what a step needs to know about their ids is computed
    once, and kept as long as they are.
    """

    encoder: BagEncoder
    _optimizer: RowSparseOptimizer

    def __init__(
        self,
        encoder: nn.Module,
        heads: MultiTaskHeads,
        optimizer: torch.optim.Optimizer,
        fixed_batches: bool = False,
    ) -> None:
        self._fixed_batches = fixed_batches
        super().__init__(encoder, heads, optimizer)

    @classmethod
    def obstacle(
        cls, encoder: nn.Module, heads: MultiTaskHeads, optimizer: torch.optim.Optimizer
    ) -> str | None:
        """Return why a step cannot be one kernel call, or None."""
        reason = model_obstacle(encoder, (BagEncoder,), heads, optimizer)
        if reason is not None:
            return reason
        assert isinstance(encoder, BagEncoder)
        assert isinstance(optimizer, RowSparseOptimizer)
        if type(encoder.dropout) is not nn.Dropout:
            return "the encoder's layers are not as they were made"
        if encoder.dropout.p > 0:
            return HAS_DROPOUT
        if encoder.rows_of_type is not None:
            return "the encoder's types consist of several rows"
        parameters = [encoder.table, *head_parameters(heads)]
        reason = parameter_obstacle(parameters, optimizer)
        if reason is not None:
            return reason
        # Before states are asked for, which makes those of plain options.
        if (reason := option_obstacle(optimizer, decays=False)) is not None:
            return reason
        moved = are_moved(parameters, optimizer)
        if _is_partly_frozen(moved[1:], heads):
            return PARTLY_FROZEN
        dense = [p for p, is_moved in zip(parameters[1:], moved[1:], strict=True) if is_moved]
        if any(optimizer.dense_state(p) is None for p in dense):
            return f"{type(optimizer).__name__} steps dense parameters by another rule"
        rules = [optimizer.rule(group) for group in optimizer.param_groups]
        return bag_step_obstacle(parameters[0], parameters[1:], rules, encoder.backend)

    def _options_obstacle(self) -> str | None:
        if self.encoder.dropout.p > 0:  # callbacks may set it at any time
            return HAS_DROPOUT
        return option_obstacle(self._optimizer, decays=False)

    def _hold(self) -> None:
        self._trained = _trained(self.encoder, self._heads, self._optimizer)
        self._models: KeptModels[BagModel] = KeptModels()
        # What is known about a batch depends on the table's rows and on the mode.
        self._kept = WeakTensorKeyDictionary() if self._fixed_batches else None
        parameters = [self.encoder.table, *head_parameters(self._heads)]
        self._held = HeldParameters(parameters, self._optimizer, (self.encoder, self._heads))
        self._rules = KeptRules(self._optimizer)

    def __call__(
        self,
        inputs: tuple[Tensor, Tensor],
        targets: Mapping[str, Tensor],
        weights: Tensor,
        moves: Moves = EVERYTHING,
        *,
        again: bool = False,
    ) -> Tensor:
        """Take one step on a batch of B bags; returns the losses (K,) of the active tasks, 0 without a target here.

        again: as in `TextTraining`; without effect, as there is no dropout.

        Raises what `bag_step` and the heads raise, with nothing moved.
        """
        del again
        ids, starts = bag_parts(inputs) if isinstance(inputs, Tensor) else inputs
        batch = self._heads.batch(targets, torch.Size([starts.shape[0] - 1]), weights, starts.device)
        model, bags = self._models.of(batch.layout, self._new_model), self._prepared(ids, starts)
        rules, _ = self._rules.now()
        found = bag_step(model, rules, bags, batch.targets, batch.weights, moves)
        return self._heads.over_active(found.losses, batch)

    def _new_model(self, layout: HeadLayout) -> BagModel:
        """Return the table and the heads of the tasks in a batch."""
        linears = [self._heads.linear(name) for name in layout.names]
        heads = [
            TrainedHead(
                self._trained[linear.weight], None if linear.bias is None else self._trained[linear.bias]
            )
            for linear in linears
        ]
        table = self.encoder.table
        return BagModel(self._trained[table], heads, layout, self._optimizer.frozen_rows(table))

    def _prepared(self, ids: Tensor, starts: Tensor) -> PreparedBags:
        kept: PreparedBags | None = None if self._kept is None else self._kept.get(ids)
        bags = kept or prepare_bags(self.encoder.table, ids, starts, self.encoder.mode)
        if self._kept is not None and kept is None:
            self._kept[ids] = bags
        return bags


def _is_partly_frozen(moved: Sequence[bool], heads: MultiTaskHeads) -> bool:
    """Return whether only some parameters (moved) of several heads move; beside a weight, a bias costs nothing."""
    return len(heads.active) > 1 and any(moved) and not all(moved)


def _trained(
    encoder: BagEncoder, heads: MultiTaskHeads, optimizer: RowSparseOptimizer
) -> dict[Tensor, Trained]:
    """Return table and dense parameters with the state of their rules."""
    groups, parameters = group_of(optimizer), [encoder.table, *head_parameters(heads)]
    trained: dict[Tensor, Trained] = {}
    for parameter, is_moved in zip(parameters, are_moved(parameters, optimizer), strict=True):
        rule = groups[id(parameter)] if is_moved else FROZEN
        if parameter is encoder.table:
            trained[parameter] = table_of(optimizer, parameter, rule)
            continue
        state = optimizer.dense_state(parameter) if is_moved else RowState()
        assert state is not None  # see `BagTraining.obstacle`
        trained[parameter] = Trained(parameter.detach(), state, rule)
    return trained
