"""Training steps of an MLP of torch's layers and its heads as one kernel call each, if model and optimizer allow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.kernels import (
    EVERYTHING,
    FROZEN,
    Dense,
    Dropout,
    EmbeddingTable,
    HeadLayout,
    Layer,
    Moves,
    StackModel,
    Updates,
    stack_correct,
    stack_inputs_obstacle,
    stack_step,
    stack_step_obstacle,
)
from mt2st_fast.model.fused_call import HeadBatch
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.spelling import counted
from mt2st_fast.training.engines.kernel_calls.calls import KernelCalls
from mt2st_fast.training.engines.kernel_calls.held_out_hits import are_counted, hits_of
from mt2st_fast.training.engines.kernel_calls.held_parameters import (
    HeldParameters,
    bypass_obstacle,
    head_parameters,
    heads_obstacle,
    parameter_obstacle,
)
from mt2st_fast.training.engines.kernel_calls.kept_models import MOST_MODELS, KeptModels
from mt2st_fast.training.engines.kernel_calls.stack_layers import StackLayer, StackLayers, stack_layers
from mt2st_fast.training.engines.kernel_calls.stack_norms import made_norm, statistics_of, takes_batch
from mt2st_fast.training.optimizers.dense_rules import (
    KeptRules,
    dense_of,
    optimizer_obstacle,
    option_obstacle,
    state_obstacle,
)
from mt2st_fast.training.optimizers.upkeep import are_moved, group_of

NOT_DROPPED = Dropout(0.0, 0)
# Numbers in the memory of a step whose batches are joined: who takes many batches a step may not have room for them.
MOST_JOINED = 1 << 26
KEPT_WEIGHTS = 1 << 24  # of all models that are kept: the memory of one has four times its weights


class StackTraining(KernelCalls):
    """Steps layers and heads as encoder, heads, backward pass and optimizer would, up to rounding.

    The kernel draws dropout, from keys that torch's generator gives for every step: not the same bits as torch's, but
    the same on any number of threads and in a resumed run.
    """

    joins_batches = True
    _dropped: Sequence[Dropout] = ()  # in the previous call

    @classmethod
    def obstacle(
        cls, encoder: nn.Module, heads: MultiTaskHeads, optimizer: torch.optim.Optimizer
    ) -> str | None:
        """Return why a step cannot be one kernel call, or None."""
        layers = stack_layers(encoder)
        if isinstance(layers, str):
            return layers
        if type(heads) is not MultiTaskHeads:
            return "it needs MultiTaskHeads, not a subclass"
        if any(map(heads.is_word_task, heads.active)):
            return "a task on words needs an encoder with a table of words"
        reason = optimizer_obstacle(optimizer) or heads_obstacle(heads)
        reason = reason or bypass_obstacle(encoder, heads, optimizer)
        if reason is not None:
            return reason
        parameters = _parameters(layers, heads)
        # Before states are asked for, which makes those of plain options.
        reason = parameter_obstacle(parameters, optimizer) or option_obstacle(optimizer)
        if reason is not None:
            return reason
        linears = [heads.linear(name) for name in heads.active]
        widths = _widths(layers, linears[0].in_features)
        if isinstance(widths, str):
            return widths
        D = widths[-1]
        if any(linear.in_features != D for linear in linears):
            return f"the encoder has {D} outputs, and the heads {linears[0].in_features} inputs"
        moved = [
            p for p, is_moved in zip(parameters, are_moved(parameters, optimizer), strict=True) if is_moved
        ]
        sizes = [linear.out_features for linear in linears]
        reason = stack_step_obstacle([p.detach() for p in parameters], widths, sizes)
        return reason or state_obstacle(optimizer, moved)

    def _options_obstacle(self) -> str | None:
        return option_obstacle(self._optimizer)

    def inputs_obstacle(self, inputs: Sequence[Any]) -> str | None:
        """Return why one call cannot take the batches with these inputs, or None."""
        for each in inputs:
            if (reason := self._tensor_obstacle(each)) is not None:
                return reason
        if self._takes_batch and (reason := self._batch_obstacle(inputs)) is not None:
            return reason
        return self._joined_obstacle(inputs) if len(inputs) > 1 else None

    def _batch_obstacle(self, inputs: Sequence[Tensor]) -> str | None:
        if len(inputs) > 1:
            return f"a BatchNorm1d takes the statistics of each of a step's {len(inputs)} batches, not of all rows"
        if len(inputs[0]) < 2:
            return f"a BatchNorm1d needs a batch of at least 2 rows, not {len(inputs[0])}"
        return None

    def _joined_obstacle(self, inputs: Sequence[Tensor]) -> str | None:
        if len({each.shape[-1] for each in inputs}) > 1:
            return "the rows of its batches are of different lengths"
        n_inputs, *n_outputs = self._widths()
        width = n_inputs + 2 * sum(n_outputs)
        n_rows, most = sum(each.shape[:-1].numel() for each in inputs), MOST_JOINED // width
        return (
            f"its batches have {n_rows:,} rows, of which its kernel joins up to {most:,}"
            if n_rows > most
            else None
        )

    def _rows_of(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(0, -2) if self._embedding is None and inputs.dim() > 2 else inputs

    def _tensor_obstacle(self, inputs: Any) -> str | None:
        if type(inputs) is not Tensor or inputs.layout is not torch.strided or inputs.device.type != "cpu":
            return "the inputs are not one plain tensor on the CPU"
        if self._embedding is None and inputs.dim() == 2 and inputs.shape[1] != self._n_inputs:
            raise InputError(
                f"the first layer of the encoder takes {counted(self._n_inputs, 'input')}, and a batch has "
                f"{inputs.shape[1]} a row; give it a layer of as many"
            )
        if (
            reason := stack_inputs_obstacle(self._rows_of(inputs), self._n_inputs, self._embedding)
        ) is not None:
            return reason
        if inputs.dim() > 2 and self._has_channels:
            return (
                f"a BatchNorm1d has its channels on the second of {inputs.dim()} axes, its kernel on the last"
            )
        return "the inputs want a gradient" if inputs.requires_grad else None

    def __call__(
        self,
        inputs: Tensor,
        targets: Mapping[str, Tensor],
        weights: Tensor,
        moves: Moves = EVERYTHING,
        *,
        again: bool = False,
    ) -> Tensor:
        """Take one step on inputs (..., F); returns the losses (K,) of the active tasks, 0 without a target here.

        again: drop the same numbers as the previous call.

        Raises what `stack_step` and the heads raise, with nothing moved.
        """
        batch = self._heads.batch(targets, inputs.shape[:-1], weights, inputs.device)
        model = self._models.of(batch.layout, self._new_model)
        self._dropped = self._dropped if again else self._dropout()
        rules, decays = self._rules.now()
        updates = Updates(rules, decays, moves, self._clip_norm)
        found = stack_step(model, updates, self._rows_of(inputs), batch.targets, batch.weights, self._dropped)
        return self._heads.over_active(found.losses, batch)

    def count_correct(self, inputs: Any, targets: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """(3,) for each task: correct targets without dropout, all targets, and 0 for those out of range.

        None if a task is not active or has another metric than accuracy, if a target is out of range, if a kernel does
        not take the inputs, and before the first step.
        """
        if not len(self._models) or not are_counted(self._heads, targets) or not self._can_be_asked():
            return None
        if self._takes_batch or self._tensor_obstacle(inputs) is not None:
            return None
        rows, updates = self._rows_of(inputs), Updates(*self._rules.now(), clip_norm=self._clip_norm)

        def correct(batch: HeadBatch) -> Tensor:
            return stack_correct(self._models.of(batch.layout, self._new_model), updates, rows, batch.targets)

        return hits_of(self._heads, targets, inputs.shape[:-1], inputs.device, correct)

    def _dropout(self) -> list[Dropout]:
        if not any([dropout.training and dropout.p for dropout in self._dropping]):  # noqa: C419 (in every step)
            return self._nothing_dropped
        dropouts = self._layers.dropouts
        keys = torch.empty(len(dropouts), dtype=torch.int64, device="cpu")
        return [
            Dropout(dropout.p, key) if dropout is not None and dropout.training else NOT_DROPPED
            for dropout, key in zip(dropouts, keys.random_().tolist(), strict=True)
        ]

    def _hold(self) -> None:
        layers = stack_layers(self.encoder)
        assert isinstance(layers, StackLayers)
        self._layers = layers
        self._dropping = [dropout for dropout in layers.dropouts if dropout is not None]
        self._nothing_dropped = [NOT_DROPPED] * len(layers.dropouts)
        parameters = _parameters(self._layers, self._heads)
        # Asking for states creates missing ones, so do it before recording what there is.
        groups = group_of(self._optimizer)
        self._dense = {
            id(p): dense_of(self._optimizer, p, groups[id(p)] if is_moved else FROZEN)
            for p, is_moved in zip(parameters, are_moved(parameters, self._optimizer), strict=True)
        }
        self._n_inputs, self._embedding = self._widths()[0], self._made_embedding()
        table = None if self._embedding is None else self._embedding.table.parameter
        n_weights = sum(p.numel() for p in parameters)
        if table is not None:  # of which a model has no copies, but a number for each row
            n_weights += len(table) - table.numel()
        self._models: KeptModels[StackModel] = KeptModels(max(1, min(MOST_MODELS, KEPT_WEIGHTS // n_weights)))
        norms = [layer.norm for layer in layers.layers]
        batch_norms = [norm for norm in norms if isinstance(norm, nn.BatchNorm1d)]
        self._has_channels, self._takes_batch = bool(batch_norms), any(map(takes_batch, batch_norms))
        self._held = HeldParameters(
            parameters, self._optimizer, (self.encoder, self._heads), statistics_of(batch_norms)
        )
        self._rules = KeptRules(self._optimizer)

    def _widths(self) -> list[int]:
        widths = _widths(self._layers, self._heads.linear(self._heads.active[0]).in_features)
        assert not isinstance(widths, str)
        return widths

    def _made_embedding(self) -> EmbeddingTable | None:
        if self._layers.embedding is None:
            return None
        module, how, padding = self._layers.embedding
        return EmbeddingTable(self._dense[id(module.weight)], how, padding)

    def _new_model(self, layout: HeadLayout) -> StackModel:
        return StackModel(
            [self._layer(each) for each in self._layers.layers],
            [self._linear(self._heads.linear(name)) for name in layout.names], layout, self._embedding,
        )  # fmt: skip

    def _layer(self, layer: StackLayer) -> Layer:
        weight, bias = (None, None) if layer.linear is None else self._linear(layer.linear)
        norm = None if layer.norm is None else made_norm(layer.norm, self._found)
        return Layer(weight, bias, layer.activation.name, norm, layer.activation.numbers)

    def _linear(self, linear: nn.Linear) -> tuple[Dense, Dense | None]:
        return self._dense[id(linear.weight)], self._found(linear.bias)

    def _found(self, parameter: Tensor | None) -> Dense | None:
        return None if parameter is None else self._dense[id(parameter)]


def _parameters(layers: StackLayers, heads: MultiTaskHeads) -> list[nn.Parameter]:
    """Return the parameters of table and layers, then those of the active heads."""
    modules: list[nn.Module] = [] if layers.embedding is None else [layers.embedding.module]
    modules += [module for layer in layers.layers for module in layer.modules]
    return [*(p for module in modules for p in module.parameters()), *head_parameters(heads)]


def _widths(layers: StackLayers, n_features: int) -> list[int] | str:
    """Return the inputs of the first layer, then the outputs of each, or why they do not fit together.

    n_features: of the heads. It says how many vectors lie side by side if no layer does. Raises InputError for layers
    that do not fit together, as after one was replaced within a run.
    """
    of_layers = [layer.shape[0] for layer in layers.layers]
    for before, after in pairwise(layers.layers):
        if after.shape[1] != before.shape[0]:
            raise InputError(
                f"a layer of the encoder takes {counted(after.shape[1], 'input')}, and the one before it has "
                f"{counted(before.shape[0], 'output')}; give it a layer of as many inputs"
            )
    n_inputs = layers.layers[0].shape[1] if layers.layers else n_features
    if layers.embedding is None:
        return [n_inputs, *of_layers]
    D = layers.embedding.module.weight.shape[1]
    if layers.embedding.how != "concat" and not layers.layers:
        return [D]
    if n_inputs % D if layers.embedding.how == "concat" else n_inputs != D:
        return f"its table has rows of {D} numbers, and the first layer or the heads {n_inputs} inputs"
    return [n_inputs, *of_layers]
