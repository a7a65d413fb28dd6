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
from .call import Needs, Plan
from .layout import HeadLayout
from .parts import Rows

MOST_KNOWN = 1024  # calls of different shapes; beyond, all are forgotten


class Known(NamedTuple):
    """What a call found out."""

    plan: Plan
    needs: Needs  # where gradients are recorded


Key = tuple[Any, ...]
_FACTS = attrgetter("__class__", "dtype", "shape", "device", "requires_grad")
_PLAIN = {Tensor, nn.Parameter}
_known: dict[Key, Known] = {}


def key_of(
    features: Tensor,
    weight: Rows,
    bias: Rows | None,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
    backend: str,
    plan: str,
) -> Key | None:
    """Return all that the checks and choices of a call look at; None for one that something transforms or traces."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return None
    tensors = [features, task_weights, *targets]
    if isinstance(weight, Tensor):
        n_parts = 0
        tensors.append(weight)
        if bias is not None:
            tensors.append(bias)  # type: ignore[arg-type]
    else:
        n_parts = len(weight)
        tensors += weight
        if bias is not None:
            tensors += bias
    try:
        if torch.is_autocast_enabled(features.device.type):
            return None
        facts = tuple(map(_FACTS, tensors))
    except AttributeError:  # something is no tensor, which the checks name
        return None
    threads = torch.get_num_threads()  # a tuned table holds for one number of threads
    return layout.key, n_parts, bias is None, backend, asked_for(backend)[0], plan, threads, facts


def known_call(key: Key | None) -> Known | None:
    """Return what an earlier call with this key has found out."""
    return None if key is None else _known.get(key)


def remember(key: Key | None, found: Known) -> None:
    """Keep what a call with this key has found out, if its tensors are torch's own."""
    if key is None or not {facts[0] for facts in key[-1]} <= _PLAIN:
        return
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    _known[key] = found
