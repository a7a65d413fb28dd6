"""Clipping of gradients by their joint norm, among them row-sparse and sharded ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mt2st_fast.model.sharded import is_sharded, norm_of_all, own_part


def clip_gradients(
    parameters: Iterable[nn.Parameter], most: float, add_up: Callable[[Tensor], Tensor] = lambda own: own
) -> None:
    """Scale all gradients so that their joint 2-norm is at most `most`; row-sparse ones count by their rows.

    add_up: sums over the processes that have parts of sharded gradients; all of them must call this.
    """
    values: list[Tensor] = []
    parts: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        own = own_part(parameter.grad)
        if own.is_sparse:
            parameter.grad = own.coalesce()
            own = parameter.grad._values()
        (parts if is_sharded(parameter) else values).append(own)
    if values or parts:
        # Like torch.nn.utils.clip_grad_norm_, which does not support sparse gradients.
        norm = nn.utils.get_total_norm(values)
        if parts:
            norm = torch.hypot(
                norm.double(), torch.tensor(norm_of_all(parts, add_up)).to(norm.device)
            ).float()
        scale = (most / (norm + 1e-6)).clamp_max(1.0)
        torch._foreach_mul_([*values, *parts], scale)
