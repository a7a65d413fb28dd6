"""A word encoder and its heads as one kernel call sees them: obstacles to it, and queries.

`TextTraining` moves parameters by such calls, `TextGradients` makes gradients by them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mt2st_fast.kernels import (
    Dropout,
    HeadLayout,
    Pooled,
    TextStepModel,
    Words,
    text_correct,
    text_features,
    text_step_obstacle,
)
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.engines.kernel_calls.calls import KernelCalls
from mt2st_fast.training.engines.kernel_calls.held_out_hits import are_counted, hits_of
from mt2st_fast.training.engines.kernel_calls.held_parameters import (
    HeldParameters,
    head_parameters,
    model_obstacle,
    parameter_obstacle,
)
from mt2st_fast.training.engines.kernel_calls.kept_models import KeptModels
from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer

Inputs = Tensor | tuple[Tensor, Tensor]  # windows (N, W), or bags: all words, and where each bag begins


class TextCalls(KernelCalls):
    """Kernel calls on word types, in windows or in bags.

    The kernel draws dropout, from a key that torch's generator gives for every step: not the same bits as torch's, but
    the same on any number of threads and in a resumed run.
    """

    encoder: WindowEncoder | BagEncoder
    _optimizer: RowSparseOptimizer

    @classmethod
    def obstacle(
        cls, encoder: nn.Module, heads: MultiTaskHeads, optimizer: torch.optim.Optimizer
    ) -> str | None:
        """Return why a step cannot be one kernel call, or None."""
        reason = model_obstacle(encoder, (WindowEncoder, BagEncoder), heads, optimizer)
        if reason is not None:
            return reason
        assert isinstance(encoder, WindowEncoder | BagEncoder)
        hidden = hidden_layer(encoder)
        if type(hidden) not in (nn.Linear, type(None)) or type(encoder.dropout) is not nn.Dropout:
            return "the encoder's layers are not as they were made"
        table, *dense = parameters = text_parameters(encoder, heads)
        reason = parameter_obstacle(parameters, optimizer)
        if reason is not None:
            return reason
        sizes = [heads.linear(name).out_features for name in heads.active if not heads.is_word_task(name)]
        if not sizes:
            return "no active task has a head"
        return text_step_obstacle(table, dense, sizes, encoder.out_features, encoder.backend)

    def features(self, inputs: Inputs) -> Tensor | None:
        """(N, H) the encoder's features of the inputs, without dropout; None before the first step."""
        if not self._models or not self._can_be_asked():
            return None
        return text_features(next(iter(self._models)), words_of(inputs))

    def count_correct(self, inputs: Inputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """(3,) for each task: correct targets without dropout, all targets, and 0 for those out of range.

        None if a task is not active or has another metric than accuracy, if a target is out of range, and before the
        first step.
        """
        if not self._models or not are_counted(self._heads, targets) or not self._can_be_asked():
            return None
        words = words_of(inputs)
        return hits_of(
            self._heads, targets, torch.Size([words.n_rows]), words.types.device,
            lambda batch: text_correct(self._models.of(batch.layout, self._new_model), words, batch.targets),
        )  # fmt: skip

    @abstractmethod
    def _new_model(self, layout: HeadLayout) -> TextStepModel:
        """Build the kernel's model of the encoder and of the heads in `layout`, of a table and `_beside_table`."""

    @abstractmethod
    def _dense(self, parameter: Tensor) -> Any:
        """Return a dense parameter in the kernel's form."""

    def _beside_table(self, layout: HeadLayout) -> tuple[Any, ...]:
        """Return what the models of all subclasses are made of, in this order, after the table."""
        encoder, hidden = self.encoder, hidden_layer(self.encoder)
        return (
            encoder.rows_of_type,
            pooled_by(encoder),
            None if hidden is None else self._linear(hidden),
            [self._linear(self._heads.linear(name)) for name in layout.names],
            layout,
            self._optimizer.frozen_rows(encoder.table),
        )

    def _linear(self, linear: nn.Linear) -> tuple[Any, Any]:
        """Return the weight and the bias, if there is one, of the hidden layer or a head."""
        return self._dense(linear.weight), None if linear.bias is None else self._dense(linear.bias)

    def _dropout(self) -> Dropout:
        dropout = self.encoder.dropout
        if not (dropout.training and dropout.p):
            return Dropout(0.0, 0)
        return Dropout(dropout.p, int(self._key.random_()))

    def _hold(self) -> None:
        self._key = torch.empty((), dtype=torch.int64, device="cpu")  # of the dropout of the latest step
        self._models: KeptModels[TextStepModel] = KeptModels()
        self._parameters = text_parameters(self.encoder, self._heads)
        self._held = HeldParameters(self._parameters, self._optimizer, (self.encoder, self._heads))


def words_of(inputs: Inputs) -> Words:
    """Return an encoder's inputs in the kernel's form."""
    return Words(inputs) if isinstance(inputs, Tensor) else Words(*inputs)


def pooled_by(encoder: WindowEncoder | BagEncoder) -> Pooled:
    """Return how the encoder pools the vectors of words."""
    return Pooled("window", encoder.width) if isinstance(encoder, WindowEncoder) else Pooled(encoder.mode)


def hidden_layer(encoder: WindowEncoder | BagEncoder) -> nn.Linear | None:
    """Return the layer between the pooled vectors and the heads, if there is one."""
    return encoder.hidden if isinstance(encoder, WindowEncoder) else None


def text_parameters(encoder: WindowEncoder | BagEncoder, heads: MultiTaskHeads) -> list[nn.Parameter]:
    """Return the table, the parameters of the hidden layer, then those of the active heads."""
    hidden = hidden_layer(encoder)
    return [encoder.table, *([] if hidden is None else hidden.parameters()), *head_parameters(heads)]
