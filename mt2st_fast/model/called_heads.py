"""Heads that have to be called: layers that are more than a weight and a bias, and losses of single rows.

The kernels read only a head's weight and bias, and so would bypass anything wrapped around it. Such a layer is called,
and its loss is computed in plain torch: this is slower, and logged once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from mt2st_fast.kernels import REFERENCE, HeadSpec, accepted_targets, asked_for, head_correct, row_losses

logger = logging.getLogger("mt2st_fast")


class RowLosses(NamedTuple):
    """Losses of one head, of rows in the order of its flattened features."""

    losses: Tensor  # (N,) float32, 0 for a row without a valid target
    counts: Tensor  # (N,) what each counts for in the mean
    correct: Tensor  # () int64

    def loss(self, by_row: Tensor | None, *, as_sum: bool) -> Tensor:
        """Return their mean, or their sum, (): each times its weight (N,) if there are any; 0 where nothing counts."""
        losses, counts = self.losses, self.counts
        if by_row is not None:
            losses, counts = losses * by_row, counts * by_row
        total, count = losses.sum(), counts.sum()
        if as_sum:
            return total
        return torch.where(count > 0, total / count.clamp_min(torch.finfo(torch.float32).tiny), total * 0)


def reason_to_call(layer: nn.Module) -> str | None:
    """Return why a head cannot be computed from its weight and bias; None for a plain torch.nn.Linear."""
    if type(layer) is not nn.Linear:
        return f"is a {type(layer).__module__}.{type(layer).__qualname__}, not a plain torch.nn.Linear"
    if not _has_own_parameters(layer):
        return "has another tensor in the place of a parameter"
    return reason_to_call_module(layer)


def _has_own_parameters(layer: nn.Module) -> bool:
    """Return whether the layer computes with its parameters, not with tensors set in their place (as by MAML)."""
    own = layer._parameters
    return own.get("weight") is not None and "bias" in own


def reason_to_call_module(module: nn.Module) -> str | None:
    """Return why calling a module does more than its class's forward does, or None."""
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return "has hooks"
    if "forward" in module.__dict__:
        return "overrides forward"
    return "is affected by global module hooks" if torch_module._has_any_global_hook() else None


def are_plain(layers: Iterable[nn.Module]) -> bool:
    """Return whether `reason_to_call` gives none for any of them, and all have a bias or none has."""
    if torch_module._has_any_global_hook():
        return False
    biased = set()
    for layer in layers:
        own = layer._parameters
        if (
            type(layer) is not nn.Linear
            or layer._forward_hooks
            or layer._forward_pre_hooks
            or layer._backward_hooks
            or layer._backward_pre_hooks
            or "forward" in layer.__dict__
            or own.get("weight") is None
            or "bias" not in own
        ):
            return False
        biased.add(own["bias"] is not None)
    return len(biased) < 2


def take_gradients_directly(parameters: Sequence[Tensor]) -> bool:
    """Return whether nobody is told when autograd adds to their gradients, so that these can be set instead."""
    return set(map(type, parameters)) == {nn.Parameter} and not have_gradient_hooks(parameters)


def have_gradient_hooks(parameters: Sequence[Tensor]) -> bool:
    """Return whether hooks take the gradient of any of these parameters."""
    return any(map(_HOOKS, parameters)) or any(map(_ACCUMULATION_HOOKS, parameters))


_HOOKS, _ACCUMULATION_HOOKS = attrgetter("_backward_hooks"), attrgetter("_post_accumulate_grad_hooks")


def say_once(name: str, reason: str, backend: str, plan: str) -> None:
    """Log that a head is not fused. Raises RuntimeError if kernels were requested by name."""
    asked, by = asked_for(backend)
    if asked == REFERENCE:
        return
    asked, by = (plan, "plan=") if asked == "auto" else (asked, by)
    if asked != "auto":
        raise RuntimeError(
            f"{by}{asked} cannot be honoured: head {name} {reason}, so it must be called as a module; use {by}auto"
        )
    if not torch.compiler.is_compiling():
        _log_once(name, reason)


@lru_cache(maxsize=256)
def _log_once(name: str, reason: str) -> None:
    logger.warning(
        "the head of %s %s, so it is called as a module instead of being fused (slower)", name, reason
    )


def call_layer(layer: nn.Module, features: Tensor) -> Tensor:
    """Return a head's outputs, for features of another floating dtype than its weight's as well, as kernels do.

    `layer.weight` is not looked at: where it is computed, as by spectral_norm with a step of its iteration, it would
    be computed twice.
    """
    weight = layer._parameters.get("weight")
    if weight is None:
        weight = next(layer.parameters(), None)
    if weight is None or weight.dtype == features.dtype or not weight.is_floating_point():
        return layer(features)  # type: ignore[no-any-return]
    if not torch.is_autocast_enabled(features.device.type):
        features = features.to(weight.dtype)
    return layer(features)  # type: ignore[no-any-return]


def called(name: str, layer: nn.Module, features: Tensor, target: Tensor, head: HeadSpec) -> RowLosses:
    """Return the losses of features (N, D), by the layer's own forward pass, with autograd.

    Raises TypeError for targets of another type than kernels take, and ValueError for one outside the range of the
    head; on a GPU the loss of that row is NaN instead, since checking would wait for the device.
    """
    head.check_target_type(name, target)
    target, refused = accepted_targets(name, target, head)
    logits = call_layer(layer, features)
    losses, counts = row_losses(logits, target, head)
    if refused is not None:
        losses = torch.where(refused, float("nan"), losses)
    return RowLosses(losses, counts, head_correct(logits.detach(), target, head))
