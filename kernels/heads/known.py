"""Calls like an earlier one: what was checked and chosen for that is neither checked nor chosen again.

A batch of a few hundred rows takes less time in the kernels than the checks of its arguments do. All that these look
at is dtype, shape and device of the tensors, so what they have found holds for the next call with the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..machine.registry import asked_for
from .call import AtOnce, Given, Needs, Plan
from .layout import HeadLayout

MOST_KNOWN = 1024  # calls of different shapes; beyond, all are forgotten


class Known(NamedTuple):
    """What a call found out."""

    plan: Plan
    needs: Needs  # where gradients are recorded
    at_once: AtOnce | None  # the plan's own way for such tensors, if it has one


class Lookup(NamedTuple):
    """A call's tensors, and all that its checks and choices look at."""

    tensors: list[Tensor]  # features, task weights, K targets, n_weights weights, and as many biases or none
    n_weights: int  # 1 for all heads together
    key: tuple[Any, ...]


_FACTS = attrgetter("__class__", "dtype", "shape", "device", "requires_grad")
_PLAIN = {Tensor, nn.Parameter}
_known: dict[tuple[Any, ...], Known] = {}


def look_up(given: Given) -> Lookup | None:
    """Return what identifies a call; None for one that something transforms or traces."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return None
    features, weight, bias, targets, task_weights, layout, backend, plan = given
    tensors = [features, task_weights, *targets]
    if isinstance(weight, Tensor):
        n_parts, n_weights = 0, 1
        tensors.append(weight)
        if bias is not None:
            tensors.append(bias)  # type: ignore[arg-type]
    else:
        n_parts = n_weights = len(weight)
        tensors += weight
        if bias is not None:
            tensors += bias
    try:
        if torch.is_autocast_enabled(features.device.type):
            return None
        facts = tuple(map(_FACTS, tensors))
    except (AttributeError, RuntimeError):  # something is no tensor, which the checks name, or is on meta
        return None
    threads = torch.get_num_threads()  # a tuned table holds for one number of threads
    key = layout.key, n_parts, bias is None, backend, asked_for(backend)[0], plan, threads, facts
    return Lookup(tensors, n_weights, key)


def known_call(found: Lookup | None) -> Known | None:
    """Return what an earlier call of this key has found out."""
    return None if found is None else _known.get(found.key)


def remember(found: Lookup | None, plan: Plan, needs: Needs, layout: HeadLayout) -> Known:
    """Keep what a checked call has found out for the next one, if its tensors are torch's own."""
    if found is None or not {type(tensor) for tensor in found.tensors} <= _PLAIN:
        return Known(plan, needs, None)
    way: AtOnce | None = getattr(plan, "at_once", None)
    known = Known(plan, needs, way if _are_as_kernels_read(found.tensors, layout) else None)
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    _known[found.key] = known
    return known


def _are_as_kernels_read(tensors: Sequence[Tensor], layout: HeadLayout) -> bool:
    """Return whether classes are int64 and everything else is float32."""
    classes = [torch.int64 if takes_classes else torch.float32 for takes_classes in layout.takes_classes]
    of_kernels = [torch.float32, torch.float32, *classes]
    of_kernels += [torch.float32] * (len(tensors) - len(of_kernels))
    return [tensor.dtype for tensor in tensors] == of_kernels
