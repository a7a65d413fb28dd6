"""Gradients by one kernel call per batch, on a CPU, then the optimizer's own step: for steps that need gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.training.engines.eager import step_optimizer
from mt2st_fast.training.engines.engine import Engine, StepParts
from mt2st_fast.training.engines.kernel_calls.calls import options_obstacle
from mt2st_fast.training.engines.kernel_calls.held_parameters import MOVES
from mt2st_fast.training.engines.kernel_calls.text_gradients import TextGradients
from mt2st_fast.training.engines.kernel_calls.word_gradients import (
    WordGradients,
    split_by_words,
    words_obstacle,
)
from mt2st_fast.training.engines.shares import shares_here
from mt2st_fast.training.inputs.batch import Batch, PlainBatch, materialised
from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer
from mt2st_fast.training.optimizers.upkeep import are_moved


class GradientCallSteps(Engine):
    """Steps of one process that have several batches, use a rule of torch's own, or clip beside tasks on words.

    Several processes exchange the gradients that it makes (`make`) before they step.
    """

    name = "gradients in one kernel call"

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts
        self._obstacle: str | None = None
        self.gradients: TextGradients | None = None  # from the first step that needs them

    def enter_phase(self) -> None:
        """Check model and optimizer again."""
        self.gradients, self._obstacle = None, self._found_obstacle()
        if self._obstacle is None:
            self._make_row_state()

    def obstacle(self) -> str | None:
        """Return why it cannot take the steps of this phase, or None."""
        return self._obstacle

    def _make_row_state(self) -> None:
        """Make the state of the table, which may be as large as itself, before a step needs it: as one call does."""
        encoder, optimizer = self._parts.encoder, self._parts.optimizer
        assert isinstance(encoder, WindowEncoder | BagEncoder)
        assert isinstance(optimizer, RowSparseOptimizer)
        if any(are_moved([encoder.table], optimizer)):
            optimizer.row_state(encoder.table)

    def _found_obstacle(self) -> str | None:
        parts = self._parts
        if (reason := options_obstacle(parts)) is not None:
            return reason
        if parts.fused_tables:
            return "the backward pass steps the table"
        if parts.learnt is not None:
            return "the weights of tasks are learned"
        return TextGradients.obstacle(parts.encoder, parts.heads, parts.optimizer)

    def declines(self, micro_steps: Any) -> str | None:
        """Return why it cannot take this step, or None."""
        parts = self._parts
        split = [split_by_words(parts.heads, batches) for batches in micro_steps]
        if (len(micro_steps) > 1 or parts.processes.are_several) and (uncounted := parts.heads.uncounted):
            return f"{min(uncounted)} smooths labels of classes of weight 0, whose losses are in no mean of a batch"
        if any(on_words for _, on_words in split) and (reason := words_obstacle(parts)):
            return reason
        if not all(rows for rows, _ in split):
            return "a task on words has no head"
        if self.gradients is None:
            # A hook may have been set since the phase began; from now on, `declines` looks for them.
            if reason := TextGradients.obstacle(parts.encoder, parts.heads, parts.optimizer):
                return reason
            self.gradients = TextGradients(parts.encoder, parts.heads, parts.optimizer)
            self._on_words = WordGradients(self.gradients.encoder, parts.heads)
        return self.gradients.declines()

    def features(self, inputs: Any) -> Tensor | None:
        """Compute features with the gradient kernel; without autograd."""
        return None if self.gradients is None else self.gradients.features(inputs)

    def count_correct(self, inputs: Any, targets: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Count with the gradient kernel."""
        return None if self.gradients is None else self.gradients.count_correct(inputs, targets)

    def __call__(self, micro_steps: list[list[Batch]]) -> Tensor:
        """Take one step; returns the losses (K,)."""
        plain = [[materialised(batch) for batch in batches] for batches in micro_steps]
        heads, device = self._parts.heads, self._parts.device
        shares_mk = (
            torch.ones(1, len(heads.active), dtype=torch.float32, device="cpu")
            if len(plain) == 1
            else shares_here(heads, plain, device).labels_mk
        )
        losses_k = self.make(plain, shares_mk)
        step_optimizer(self._parts)
        return losses_k

    def make(
        self,
        micro_steps: list[list[PlainBatch]],
        shares_mk: Tensor,
        *,
        hands_out: bool = True,
        room: np.ndarray | None = None,
    ) -> Tensor:
        """Make the gradients as for one batch; returns its losses (K,).

        shares_mk: the share of all labels that each micro-step has. hands_out: put the gradients into every `.grad`;
        else they are left in `gradients`. room: for those of the table's rows, of one batch (`TextGradients`).
        """
        assert self.gradients is not None
        moves = MOVES[self._parts.state.part]
        # By NumPy: after a kernel, each of torch's operators on a few numbers takes ten times as long.
        weights_k, losses_k = self._parts.state.weights_k.numpy(), np.zeros(shares_mk.shape[1], np.float32)
        self.gradients.begin()
        for share_k, batches in zip(shares_mk.numpy(), micro_steps, strict=True):
            rows, on_words = split_by_words(self._parts.heads, batches)
            weights = torch.from_numpy(weights_k * share_k)
            extra = None
            if on_words:
                of_words_k, extra = self._on_words(on_words, weights)
                losses_k += share_k * of_words_k.numpy()
            for inputs, targets in rows:
                of_batch_k = self.gradients(inputs, targets, weights, moves, extra=extra, room=room)
                losses_k += share_k * of_batch_k.numpy()
                extra = None  # counted once
        if hands_out:
            self.gradients.hand_out()
        return torch.from_numpy(losses_k)
