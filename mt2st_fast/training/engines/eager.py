"""A step as people write it: forward, backward, the optimizer. It can take every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mt2st_fast.model.heads import MultitaskLoss
from mt2st_fast.model.open_tasks import features_and_mask
from mt2st_fast.training.engines.engine import StepParts
from mt2st_fast.training.optimizer_upkeep import clip_gradients
from mt2st_fast.training.sources import Batch, to_device


class EagerSteps:
    """By torch's operators and autograd; what a CUDA graph captures."""

    name = "eager"

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts

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
        parts, losses = self._parts, None
        for batches in micro_steps:
            total, micro_losses = self._forward(batches)
            parts.scaler.scale(total / len(micro_steps) if len(micro_steps) > 1 else total).backward()
            losses = micro_losses if losses is None else losses + micro_losses
        assert losses is not None
        if parts.clip_norm is not None:
            parts.scaler.unscale_(parts.optimizer)
            clip_gradients(parts.trainable(), parts.clip_norm)
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
        parts.optimizer.zero_grad(set_to_none=True)
        return losses / len(micro_steps) if len(micro_steps) > 1 else losses

    def _forward(self, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """Total () and losses (K,) of one batch a loader; their tasks are disjoint, so losses add up."""
        totals, losses = [], []
        for inputs, targets in batches:
            with self._parts.autocast():
                out = self._losses(
                    to_device(inputs, self._parts.device), to_device(targets, self._parts.device)
                )
            totals.append(out.total)
            losses.append(out.losses)
        if (penalty := self._parts.penalty()) is not None:
            totals.append(penalty)
        total = totals[0] if len(totals) == 1 else torch.stack(totals).sum()
        return total, losses[0] if len(losses) == 1 else sum(losses)  # type: ignore[return-value]

    def _losses(self, inputs: Any, targets: dict[str, Tensor]) -> MultitaskLoss:
        """Of one batch, through the encoder's features or, for a task on words, through its table."""
        encoder, heads, weights_k = self._parts.encoder, self._parts.heads, self._parts.weights()
        name = next(iter(targets))
        if heads.is_word_task(name):  # and so the only one: heads refuse it beside others
            return heads.word_loss(name, encoder.pool, inputs, targets[name], weights_k)  # type: ignore[arg-type]
        features, mask = features_and_mask(encoder(inputs))
        return heads(features, targets, weights_k, mask=mask)  # type: ignore[no-any-return]
