"""Steps as one kernel call each, on a CPU: encoder, heads and optimizer together, of words or of an MLP."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.training.engines.engine import Engine, StepParts
from mt2st_fast.training.engines.kernel_calls.bag_training import BagTraining
from mt2st_fast.training.engines.kernel_calls.calls import options_obstacle
from mt2st_fast.training.engines.kernel_calls.context_gradients import ContextGradients
from mt2st_fast.training.engines.kernel_calls.held_parameters import LOSSES_ALONE, MOVES
from mt2st_fast.training.engines.kernel_calls.joined_rows import joined
from mt2st_fast.training.engines.kernel_calls.stack_training import StackTraining
from mt2st_fast.training.engines.kernel_calls.text_training import TextTraining
from mt2st_fast.training.engines.kernel_calls.word_gradients import (
    WordGradients,
    split_by_words,
    words_obstacle,
)
from mt2st_fast.training.engines.shares import labelled_in
from mt2st_fast.training.inputs.batch import Batch, PlainBatch, materialised
from mt2st_fast.training.learnt_weights import weights_by_losses
from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer
from mt2st_fast.training.schedules.abilities import WeighsByLosses

SEVERAL_BATCHES = "a step consists of several batches"


class OneCallSteps(Engine):
    """One kernel call per step, if `BagTraining`, `TextTraining` or `StackTraining` can take the phase.

    The last takes any number of batches together, unless a norm makes their rows depend on each other.
    """

    name = "one kernel call"

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts
        self._obstacle: str | None = None
        self._training: BagTraining | TextTraining | StackTraining | None = None
        self._weigher = parts.learnt if isinstance(parts.learnt, WeighsByLosses) else None

    def enter_phase(self) -> None:
        """Check model and optimizer again."""
        parts = self._parts
        self._training, self._obstacle = None, self._found_obstacle()
        if self._obstacle is not None:
            return
        model = parts.encoder, parts.heads, parts.optimizer
        if not isinstance(parts.encoder, WindowEncoder | BagEncoder):
            self._training = StackTraining(*model, clip_norm=parts.options.clip_norm)
        elif self._is_for_rows_of_bags():
            self._training = BagTraining(*model, fixed_batches=parts.fixed_batches)
        else:
            self._training = TextTraining(*model, clip_norm=parts.options.clip_norm)
            assert isinstance(parts.optimizer, RowSparseOptimizer)
            encoder = self._training.encoder
            context = ContextGradients(encoder, parts.heads, parts.optimizer)
            self._on_words = WordGradients(encoder, parts.heads, context)

    def _found_obstacle(self) -> str | None:
        parts = self._parts
        if (reason := options_obstacle(parts)) is not None:
            return reason
        if parts.processes.are_several:
            return "several processes exchange gradients, which it never stores"
        if parts.options.clip_norm is not None and (reason := self._clip_obstacle()) is not None:
            return reason
        if not isinstance(parts.encoder, WindowEncoder | BagEncoder):
            return StackTraining.obstacle(parts.encoder, parts.heads, parts.optimizer)
        if self._is_for_rows_of_bags():
            return None
        return TextTraining.obstacle(parts.encoder, parts.heads, parts.optimizer)

    def _clip_obstacle(self) -> str | None:
        learnt, heads = self._parts.learnt, self._parts.heads
        if learnt is not None and any(p.requires_grad for p in learnt.parameters()):
            return "clip_norm counts the gradients of learned weights, which are made after its call"
        if any(map(heads.is_word_task, heads.active)):
            return "clip_norm counts the gradients of tasks on words, which are made before its call"
        return None

    def _is_for_rows_of_bags(self) -> bool:
        """Return whether words are rows of the table and nothing else reads it: it can then be sorted by row, once."""
        encoder, heads, optimizer = self._parts.encoder, self._parts.heads, self._parts.optimizer
        reads_words = any(map(heads.is_word_task, heads.active))
        is_clipped = self._parts.options.clip_norm is not None
        return not reads_words and not is_clipped and BagTraining.obstacle(encoder, heads, optimizer) is None

    def obstacle(self) -> str | None:
        """Return why it cannot take the steps of this phase, or None."""
        return self._obstacle

    def declines(self, micro_steps: Any) -> str | None:
        """Return why this step cannot be taken, or None: it takes a batch of rows, and any number of tasks on words."""
        assert self._training is not None
        parts = self._parts
        if self._training.joins_batches:
            inputs = [inputs for inputs, _ in _batches_of(micro_steps)]
            return self._training.declines() or self._training.inputs_obstacle(inputs)
        if len(micro_steps) != 1:
            return SEVERAL_BATCHES
        rows, on_words = split_by_words(parts.heads, micro_steps[0])
        if len(rows) != 1:
            return SEVERAL_BATCHES if rows else "a task on words has no head"
        if on_words and (reason := words_obstacle(parts)):
            return reason
        return self._training.declines()

    def features(self, inputs: Any) -> Tensor | None:
        """Compute features with the training kernel, if it can; without autograd."""
        return None if self._training is None else self._training.features(inputs)

    def count_correct(self, inputs: Any, targets: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Count with the training kernel, if it can."""
        return None if self._training is None else self._training.count_correct(inputs, targets)

    def __call__(self, micro_steps: Any) -> Tensor:
        """Take one step; returns the losses (K,)."""
        assert self._training is not None
        if self._training.joins_batches:
            return self._on_rows(*joined(self._parts.heads, _batches_of(micro_steps)))
        rows, on_words = split_by_words(self._parts.heads, micro_steps[0])
        inputs, targets = materialised(rows[0])
        return self._with_words(inputs, targets, on_words) if on_words else self._on_rows(inputs, targets)

    def _on_rows(self, inputs: Any, targets: dict[str, Tensor]) -> Tensor:
        assert self._training is not None
        learnt, moves = self._parts.learnt, MOVES[self._parts.state.part]
        if learnt is None:
            return self._training(inputs, targets, self._parts.state.weights_k, moves)
        if self._weigher is not None:
            return self._weighed_by_losses(self._weigher, inputs, targets)
        labelled = labelled_in(self._parts.heads, [[(inputs, targets)]], self._parts.device)
        weights_k = self._parts.weights(labelled)
        losses = self._training(inputs, targets, weights_k, moves)
        self._learn_weights(weights_k, losses, labelled)
        return losses

    def _with_words(self, inputs: Any, targets: Mapping[str, Tensor], on_words: Sequence[Batch]) -> Tensor:
        """Run tasks on words first, since the kernel moves what they read; then step their own parameters."""
        assert isinstance(self._training, TextTraining)
        parts = self._parts
        losses_k, extra = self._on_words([materialised(batch) for batch in on_words], parts.state.weights_k)
        losses_k += self._training(inputs, targets, parts.state.weights_k, extra=extra)
        self._on_words.move(parts.optimizer)
        return losses_k

    def _learn_weights(self, weights_k: Tensor, losses: Tensor, targets: Collection[str]) -> None:
        """Take a step of learned weights: the total loss is linear in them, so autograd starts at the losses."""
        parts = self._parts
        total = torch.dot(weights_k, losses)
        if (penalty := parts.penalty(targets)) is not None:
            total = total + penalty
        if parts.state.part == "shared" or not total.requires_grad:
            return
        total.backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad(set_to_none=True)

    def _weighed_by_losses(self, learnt: WeighsByLosses, inputs: Any, targets: dict[str, Tensor]) -> Tensor:
        """Take a step with weights from its own losses, which are computed before it, and once more after it."""
        assert self._training is not None
        active = self._parts.heads.active
        ones_k = torch.ones(len(active), dtype=torch.float32, device="cpu")
        before = self._training(inputs, targets, ones_k, LOSSES_ALONE)
        weights_k = weights_by_losses(learnt, active, before)
        losses = self._training(inputs, targets, weights_k, MOVES[self._parts.state.part], again=True)
        learnt.learn(active, losses, self._training(inputs, targets, ones_k, LOSSES_ALONE))
        return losses


def _batches_of(micro_steps: list[list[Batch]]) -> list[PlainBatch]:
    return [materialised(batch) for batches in micro_steps for batch in batches]
