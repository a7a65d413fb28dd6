"""The usual step: forward, backward, the optimizer. It can take every step."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultitaskLoss
from mt2st_fast.model.modes import keeping_buffers
from mt2st_fast.model.task_features import TaskFeatures
from mt2st_fast.training.engines.engine import Engine, StepParts
from mt2st_fast.training.engines.freed_memory import keep_freed_memory
from mt2st_fast.training.engines.layer_kernels import layers_by_kernels
from mt2st_fast.training.engines.shares import Shares, labelled_in, shares_here
from mt2st_fast.training.inputs.batch import Batch, PlainBatch, materialised, to_device
from mt2st_fast.training.inputs.encoding import encode
from mt2st_fast.training.learnt_weights import weights_by_losses
from mt2st_fast.training.optimizers.clipping import clip_gradients
from mt2st_fast.training.optimizers.fused_adam import step_fused
from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer
from mt2st_fast.training.optimizers.upkeep import drop_gradients, group_of
from mt2st_fast.training.schedules.abilities import WeighsByLosses

logger = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """A batch on the device, with its features and their mask; both are None for a task on words."""

    inputs: Any
    targets: dict[str, Tensor]
    features: Tensor | TaskFeatures | None
    mask: Tensor | None


def say_nothing_moves(micro_steps: list[list[PlainBatch]]) -> None:
    """Log that a step on these batches has no gradient."""
    tasks = dict.fromkeys(name for batches in micro_steps for _, targets in batches for name in targets)
    logger.warning(
        "a step on targets of %s has no gradient and moves nothing: what they reach is frozen, or detached in the "
        "encoder or in a loss",
        ", ".join(tasks),
    )


def say_if_detached(encoder: nn.Module) -> None:
    """Log that nothing of an encoder trains whose features have no gradient, unless all of it is frozen."""
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        logger.warning(
            "the features have no gradient, so no parameter of the encoder trains: its forward detaches them (detach, "
            "no_grad, NumPy); if that is meant, freeze it: encoder.requires_grad_(False)"
        )


def step_optimizer(parts: StepParts) -> None:
    """Step with the current gradients, and then drop them."""
    if parts.options.clip_norm is not None:
        parts.scaler.unscale_(parts.optimizer)
        if isinstance(parts.optimizer, RowSparseOptimizer):
            parts.optimizer.drop_frozen_rows()
        held = group_of(parts.optimizer)
        # Not the gradients of what a callback has unfrozen, which no step takes yet.
        stepped = [p for p in parts.trainable() if id(p) in held]
        clip_gradients(stepped, parts.options.clip_norm, parts.processes.add_up)
    if parts.scaler.is_enabled() or not step_fused(parts.optimizer):
        parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    drop_gradients(parts.optimizer)


class EagerSteps(Engine):
    """Steps by torch's operators and autograd; this is what a CUDA graph captures."""

    name = "eager"

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts
        self._one: Tensor | None = None
        # Whether nothing but the loss reaches the heads' parameters.
        self._own_heads = False
        self._moves = True  # whether the current step has a gradient
        self._has_said = False  # that a step had none
        self._has_looked = False  # whether this phase's features have a gradient
        self._weigher = parts.learnt if isinstance(parts.learnt, WeighsByLosses) else None
        self._layers = layers_by_kernels(parts)

    def __call__(self, micro_steps: list[list[Batch]]) -> Tensor:
        """Take one step; returns the losses (K,)."""
        parts = self._parts
        if parts.fused_tables and len(micro_steps[0]) > 1:
            raise InputError(
                'backward="fused" steps a table that is read once a step, but a step has the batches of '
                f"{len(micro_steps[0])} loaders; leave backward= out, or combine the rows in one loader"
            )
        plain = [[materialised(batch) for batch in batches] for batches in micro_steps]
        self._moves = False
        with parts.freezing_idle_heads():
            if len(plain) == 1:
                losses = self._of_one_step(plain)
            else:
                shares = shares_here(parts.heads, plain, parts.device)
                losses = self._accumulate(plain, shares._replace(tasks=self._tasks_of(plain)))
        if self._moves:
            step_optimizer(parts)
        elif parts.state.part == "all" and not self._has_said:
            self._has_said = True
            say_nothing_moves(plain)
        if self._weigher is not None:
            self._weigher.learn(parts.heads.active, losses, self._losses_now(plain[0]))
        return losses

    def enter_phase(self) -> None:
        """Check again whether the heads' parameters are theirs alone, and whether features have a gradient."""
        parts = self._parts
        self._has_looked = False
        self._layers = layers_by_kernels(parts)
        if parts.device.type == "cpu":
            keep_freed_memory()
        of_encoder = {id(p) for p in parts.encoder.parameters()}
        self._own_heads = (
            parts.learnt is None
            and not parts.adapted
            and parts.options.precision == "float32"
            and not any(id(p) in of_encoder for p in parts.heads.parameters())
        )

    def _of_one_step(self, micro_steps: list[list[PlainBatch]]) -> Tensor:
        """Make the gradients of one micro-step; returns its losses (K,)."""
        encoded = [self._encoded(batch) for batch in micro_steps[0]]
        if len(encoded) == 1 and self._own_heads and (features := encoded[0].features) is not None:
            losses = self._parts.heads.backward(features, encoded[0].targets, self._parts.state.weights_k)
            if losses is not None:
                self._moves = True
                return losses
        tasks = self._tasks_of(micro_steps)
        total, losses = self._total(encoded, self._weights(encoded, tasks), tasks)
        self._backward(total)
        return losses

    def _tasks_of(self, micro_steps: list[list[PlainBatch]]) -> set[str]:
        """Return the tasks that learned weights and penalties are for in this step."""
        parts = self._parts
        if parts.learnt is None and not parts.adapted:
            return set()
        return labelled_in(parts.heads, micro_steps, parts.device)

    def _backward(self, total: Tensor) -> None:
        # Nothing that these batches reach trains: it is frozen, or waits for its turn. torch would raise an error.
        if not total.requires_grad:
            return
        self._moves = True
        scaled = self._parts.scaler.scale(total)
        # What backward() would fill in every step; made before a capture, since its first steps are not captured.
        if self._one is None or self._one.dtype != scaled.dtype or self._one.device != scaled.device:
            self._one = torch.ones_like(scaled)
        scaled.backward(self._one)

    def _accumulate(self, micro_steps: list[list[PlainBatch]], shares: Shares) -> Tensor:
        """Compute the gradients of all micro-steps as of one batch; returns its losses (K,)."""
        losses = torch.zeros(shares.labels_mk.shape[1], dtype=torch.float32, device=self._parts.device)
        for share_k, batches in zip(shares.labels_mk, micro_steps, strict=True):
            encoded = [self._encoded(batch) for batch in batches]
            # Learned weights belong to a graph that every backward pass frees, so they are computed again.
            total, micro_losses = self._total(
                encoded, self._parts.weights(shares.tasks) * share_k, shares.tasks, shares
            )
            self._backward(total)
            losses = losses + share_k * micro_losses
        return losses

    def _encoded(self, batch: PlainBatch) -> Encoded:
        """Run a batch through the encoder, unless it is for a task on words, which reads the table."""
        parts = self._parts
        inputs, targets = to_device(batch[0], parts.device), to_device(batch[1], parts.device)
        # A task on words is the only one in its batch: heads refuse other tasks beside it.
        if parts.heads.is_word_task(next(iter(targets))):
            return Encoded(inputs, targets, None, None)
        with parts.autocast(), parts.encoding(), self._layers:
            features, mask = encode(parts.encoder, inputs)
        if not self._has_looked:
            self._look_at(features)
        return Encoded(inputs, targets, features, mask)

    def _look_at(self, features: Tensor | TaskFeatures) -> None:
        """Log that features are detached from an encoder that is to train; once in a phase."""
        if self._parts.state.part != "all":
            return
        self._has_looked = True
        if isinstance(features, Tensor) and not features.requires_grad:
            say_if_detached(self._parts.encoder)

    def _total(
        self, encoded: list[Encoded], weights_k: Tensor, tasks: Collection[str], shares: Shares | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the total () and losses (K,) of one batch per loader; their tasks are disjoint, so losses add up.

        tasks: those with targets in the step. shares: of these batches in the step, if they are not all of it.
        """
        denominators, of_step = ({}, 1.0) if shares is None else (shares.denominators, shares.step)
        found = [self._losses(each, weights_k, denominators) for each in encoded]
        totals, losses = [out.total for out in found], [out.losses for out in found]
        if (penalty := self._parts.penalty(tasks)) is not None:
            totals.append(penalty * of_step)
        total = totals[0] if len(totals) == 1 else torch.stack(totals).sum()
        return total, losses[0] if len(losses) == 1 else sum(losses)  # type: ignore[return-value]

    def _losses(
        self, encoded: Encoded, weights_k: Tensor, denominators: Mapping[str, Tensor] = MappingProxyType({})
    ) -> MultitaskLoss:
        """Return the losses of one batch, from its features or, for a task on words, from the encoder's table."""
        heads, (inputs, targets, features, mask) = self._parts.heads, encoded
        with self._parts.autocast():
            if features is None:
                name = next(iter(targets))
                return heads.word_loss(name, self._vectors, inputs, targets[name], weights_k)
            return heads(features, targets, weights_k, mask=mask, denominators=denominators)  # type: ignore[no-any-return]

    def _vectors(self, types: Tensor) -> Tensor:
        """(..., D) the vectors of word types."""
        with self._parts.encoding():
            return self._parts.encoder.pool(types)  # type: ignore[operator,no-any-return]

    # --- weights by the losses of the step itself ---------------------------------------------------------

    def _weights(self, encoded: list[Encoded], tasks: Collection[str]) -> Tensor:
        """(K,) the weights of this step with targets of these tasks; with gradient if they are learned by gradient."""
        if self._weigher is None:
            return self._parts.weights(tasks)
        return weights_by_losses(self._weigher, self._parts.heads.active, self._losses_alone(encoded))

    @torch.no_grad()
    def _losses_alone(self, encoded: list[Encoded]) -> Tensor:
        """(K,) the unweighted losses of one batch per loader."""
        ones_k = torch.ones(len(self._parts.heads.active), dtype=torch.float32, device=self._parts.device)
        return torch.stack([self._losses(each, ones_k).losses for each in encoded]).sum(0)

    @torch.no_grad()
    def _losses_now(self, batches: list[PlainBatch]) -> Tensor:
        """(K,) the losses with the parameters as they are now."""
        with keeping_buffers(self._parts.encoder):  # what is measured is no further batch
            return self._losses_alone([self._encoded(batch) for batch in batches])
