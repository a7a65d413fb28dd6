"""Training steps of a bag encoder and its heads as one kernel call each, where model and optimizer allow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from mt2st_fast.kernels import (
    BagModel,
    HeadLayout,
    PreparedBags,
    RowState,
    Trained,
    TrainedHead,
    bag_step,
    bag_step_obstacle,
    prepare_bags,
)
from mt2st_fast.model.encoders import BagEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.optim import RowSparseOptimizer
from mt2st_fast.training.sources import Batch


class BagTraining:
    """Steps table and heads as encoder, heads, backward pass and optimizer would, up to rounding.

    Made for one phase and its active tasks. With `fixed_batches` the same tensors
    come again every epoch: what a step wants to know about their ids is worked out once, and kept as long as they are.

    Raises ValueError with the reason where the kernel cannot do all that a step would do (see `obstacle`).
    """

    def __init__(
        self,
        encoder: nn.Module,
        heads: MultiTaskHeads,
        optimizer: torch.optim.Optimizer,
        fixed_batches: bool = False,
    ) -> None:
        reason = self.obstacle(encoder, heads, optimizer)
        if reason is not None:
            raise ValueError(f"a step cannot be one kernel call: {reason}")
        assert isinstance(encoder, BagEncoder)
        assert isinstance(optimizer, RowSparseOptimizer)
        self._encoder, self._heads, self._optimizer = encoder, heads, optimizer
        self._trained = _trained(encoder, heads, optimizer)
        self._models: dict[tuple[str, ...], BagModel] = {}  # by the tasks of a batch
        self._kept: WeakTensorKeyDictionary | None = WeakTensorKeyDictionary() if fixed_batches else None

    @staticmethod
    def obstacle(encoder: nn.Module, heads: MultiTaskHeads, optimizer: torch.optim.Optimizer) -> str | None:
        """What stands against one kernel call a step, or None."""
        if type(encoder) is not BagEncoder or type(heads) is not MultiTaskHeads:
            return "it is for a BagEncoder and MultiTaskHeads as they are"
        if not isinstance(optimizer, RowSparseOptimizer):
            return f"it steps by a row rule, and {type(optimizer).__name__} has none"
        if heads.backend not in ("auto", "numba") or heads.plan != "auto":
            return f"the heads ask for backend {heads.backend} and plan {heads.plan}"
        if not encoder.sparse:
            return "the encoder's table is not row-sparse"
        if any(heads.is_open_task(name) for name in heads.active):
            return "an active task is a loss of its own"
        if encoder.dropout.p > 0:
            return "the encoder has dropout"
        if encoder.rows_of_type is not None:
            return "the encoder's types are made of several rows"
        if any(_has_hooks(module) for module in (*encoder.modules(), *heads.modules())):
            return "a module has hooks"
        if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            return "the optimizer has hooks"
        group_of = _group_of(optimizer)
        parameters = _parameters(encoder, heads)
        if any(id(p) not in group_of or not p.requires_grad for p in parameters):
            return "a parameter is frozen"
        if any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in parameters):
            return "a parameter has hooks"
        if any(optimizer.dense_state(p) is None for p in parameters[1:]):
            return f"{type(optimizer).__name__} steps dense parameters by another rule"
        rules = [optimizer.rule(group) for group in optimizer.param_groups]
        return bag_step_obstacle(parameters[0], parameters[1:], rules, encoder.backend)

    def declines(self, micro_steps: Sequence[Sequence[Batch]]) -> str | None:
        """Why this step cannot be taken, or None: one batch, of tasks with heads, and no parameter frozen meanwhile."""
        if len(micro_steps) != 1 or len(micro_steps[0]) != 1:
            return "a step is made of several batches"
        _, targets = micro_steps[0][0]
        if self._lies_elsewhere():
            self._trained, self._models = _trained(self._encoder, self._heads, self._optimizer), {}
        if any(self._heads.is_word_task(name) for name in targets):
            return "a task on words has no head"
        return None if all(p.requires_grad for p in self._trained) else "a parameter is frozen"

    def __call__(
        self, inputs: tuple[Tensor, Tensor], targets: Mapping[str, Tensor], weights: Tensor
    ) -> Tensor:
        """One step on a batch of B bags; the losses (K,) of the active tasks, 0 where one has no target here.

        Raises what `bag_step` and the heads raise, with nothing moved.
        """
        _, starts = inputs
        batch = self._heads.batch(targets, torch.Size([starts.shape[0] - 1]), weights, starts.device)
        # Rates may fall at every step; all else stays for the phase.
        rules = [self._optimizer.rule(group) for group in self._optimizer.param_groups]
        bags = self._prepared(*inputs)
        found = bag_step(self._model(batch.layout), rules, bags, batch.targets, batch.weights)
        return self._heads.over_active(found.losses, batch)

    def _model(self, layout: HeadLayout) -> BagModel:
        """Table and heads of the tasks in a batch."""
        model = self._models.get(layout.names)
        if model is None:
            linears = [self._heads.linear(name) for name in layout.names]
            heads = [
                TrainedHead(
                    self._trained[linear.weight], None if linear.bias is None else self._trained[linear.bias]
                )
                for linear in linears
            ]
            model = BagModel(self._trained[self._encoder.table], heads, layout)
            self._models[layout.names] = model
        return model

    def _lies_elsewhere(self) -> bool:
        """Whether somebody has put other memory into a parameter, or loaded another state."""
        # By what the optimizer holds: to ask it for a rule's state costs as much as a small step.
        states = self._optimizer.state
        for parameter, trained in self._trained.items():
            if parameter.data_ptr() != trained.parameter.data_ptr():
                return True
            held = states[parameter].values() if parameter in states else ()
            if any(kept is not None and not any(kept is value for value in held) for kept in trained.state):
                return True
        return False

    def _prepared(self, ids: Tensor, starts: Tensor) -> PreparedBags:
        kept: PreparedBags | None = None if self._kept is None else self._kept.get(ids)
        bags = kept or prepare_bags(self._encoder.table, ids, starts, self._encoder.mode)
        if self._kept is not None and kept is None:
            self._kept[ids] = bags
        return bags


def _group_of(optimizer: torch.optim.Optimizer) -> dict[int, int]:
    """The number of every parameter's group, by the parameter's id()."""
    return {id(p): g for g, group in enumerate(optimizer.param_groups) for p in group["params"]}


def _trained(
    encoder: BagEncoder, heads: MultiTaskHeads, optimizer: RowSparseOptimizer
) -> dict[Tensor, Trained]:
    """Table and dense parameters with what their rules remember."""
    group_of = _group_of(optimizer)
    trained: dict[Tensor, Trained] = {}
    for parameter in _parameters(encoder, heads):
        state = _state_of(parameter, encoder, optimizer)
        assert state is not None
        trained[parameter] = Trained(parameter.detach(), state, group_of[id(parameter)])
    return trained


def _state_of(parameter: Tensor, encoder: BagEncoder, optimizer: RowSparseOptimizer) -> RowState | None:
    """What the optimizer remembers of the table or of a dense parameter."""
    return optimizer.row_state(parameter) if parameter is encoder.table else optimizer.dense_state(parameter)


def _parameters(encoder: BagEncoder, heads: MultiTaskHeads) -> list[nn.Parameter]:
    """The table, then those of the active heads."""
    linears = [heads.linear(name) for name in heads.active if not heads.is_word_task(name)]
    return [encoder.table, *(p for linear in linears for p in linear.parameters())]


def _has_hooks(module: nn.Module) -> bool:
    return any(
        (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    )
