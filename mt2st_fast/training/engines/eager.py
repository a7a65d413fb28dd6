"""A step as people write it: forward, backward, the optimizer. It can take every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mt2st_fast.model.heads import MultitaskLoss
from mt2st_fast.model.open_tasks import features_and_mask
from mt2st_fast.training.engines.engine import StepParts
from mt2st_fast.training.engines.shares import label_shares
from mt2st_fast.training.optimizer_upkeep import clip_gradients
from mt2st_fast.training.sources import Batch, PlainBatch, materialised, to_device


class EagerSteps:
    """By torch's operators and autograd; what a CUDA graph captures."""

    name = "eager"

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts
        self._one: Tensor | None = None

    def enter_phase(self) -> None:
        """Nothing is kept from phase to phase."""

    def obstacle(self) -> str | None:
        """None, always."""
        return None

    def declines(self, micro_steps: Any) -> str | None:
        """None, always."""
        del micro_steps
        return None

    def features(self, inputs: Any) -> Tensor | None:
        """None: the encoder is asked itself."""
        del inputs
        return None

    def __call__(self, micro_steps: list[list[Batch]]) -> Tensor:
        """The losses (K,) of one step."""
        parts = self._parts
        plain = [[materialised(batch) for batch in batches] for batches in micro_steps]
        if len(plain) == 1:
            total, losses = self._forward(plain[0], parts.weights())
            self._backward(total)
        else:
            shares_mk = label_shares(parts.heads, plain, parts.device)
            losses = self._accumulate(plain, shares_mk, len(plain))
        self._step_optimizer()
        return losses

    def _step_optimizer(self) -> None:
        """By the gradients that there are, which are then let go."""
        parts = self._parts
        if parts.clip_norm is not None:
            parts.scaler.unscale_(parts.optimizer)
            clip_gradients(parts.trainable(), parts.clip_norm)
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
        parts.optimizer.zero_grad(set_to_none=True)

    def _backward(self, total: Tensor) -> None:
        scaled = self._parts.scaler.scale(total)
        # What backward() would fill in every step; made before a capture, as its first steps are not captured.
        if self._one is None or self._one.dtype != scaled.dtype or self._one.device != scaled.device:
            self._one = torch.ones_like(scaled)
        scaled.backward(self._one)

    def _accumulate(self, micro_steps: list[list[PlainBatch]], shares_mk: Tensor, n_parts: int) -> Tensor:
        """Gradients of all micro-steps as of one batch, and its losses (K,).

        shares_mk: what each has of all labels. n_parts: micro-steps that the whole batch is made of.
        """
        losses = torch.zeros(shares_mk.shape[1], dtype=torch.float32, device=self._parts.device)
        for share_k, batches in zip(shares_mk, micro_steps, strict=True):
            # Learnt weights belong to a graph that every backward pass frees: they are asked for again.
            total, micro_losses = self._forward(batches, self._parts.weights() * share_k, n_parts)
            self._backward(total)
            losses = losses + share_k * micro_losses
        return losses

    def _forward(self, batches: list[PlainBatch], weights_k: Tensor, parts: int = 1) -> tuple[Tensor, Tensor]:
        """Total () and losses (K,) of one batch a loader; their tasks are disjoint, so losses add up.

        parts: how many such batches make a step, for what is of the step and not of a batch.
        """
        totals, losses = [], []
        for inputs, targets in batches:
            with self._parts.autocast():
                out = self._losses(
                    to_device(inputs, self._parts.device), to_device(targets, self._parts.device), weights_k
                )
            totals.append(out.total)
            losses.append(out.losses)
        if (penalty := self._parts.penalty()) is not None:
            totals.append(penalty / parts)
        total = totals[0] if len(totals) == 1 else torch.stack(totals).sum()
        return total, losses[0] if len(losses) == 1 else sum(losses)  # type: ignore[return-value]

    def _losses(self, inputs: Any, targets: dict[str, Tensor], weights_k: Tensor) -> MultitaskLoss:
        """Of one batch, through the encoder's features or, for a task on words, through its table."""
        encoder, heads = self._parts.encoder, self._parts.heads
        name = next(iter(targets))
        if heads.is_word_task(name):  # and so the only one: heads refuse it beside others
            return heads.word_loss(name, encoder.pool, inputs, targets[name], weights_k)  # type: ignore[arg-type]
        features, mask = features_and_mask(encoder(inputs))
        return heads(features, targets, weights_k, mask=mask)  # type: ignore[no-any-return]
