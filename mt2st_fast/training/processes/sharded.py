"""Parameters of which every process has a part (FSDP2's `fully_shard`): what the Trainer asks of them and of all.

torch exchanges their gradients itself, as it gathers them for a forward pass: every process makes as many passes as the
others, or one waits for ever. What is here works on tensors that are whole, too, so that nobody has to ask.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Key = TypeVar("Key")


def is_sharded(value: object) -> bool:
    """Whether this is a tensor of which other processes have parts (a DTensor)."""
    # Not imported: it takes its time, and without it there is none.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def has_sharded(module: nn.Module) -> bool:
    """Whether any parameter of a module is sharded."""
    return any(map(is_sharded, module.parameters()))


def own_part(value: Tensor) -> Tensor:
    """This process's part of a tensor, on the same memory; all of one that is whole."""
    return value.to_local() if is_sharded(value) else value  # type: ignore[attr-defined,no-any-return]


def gathered(value: Tensor) -> Tensor:
    """All of a tensor. Of a sharded one all processes call it."""
    return value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined,no-any-return]


def divided_as(like: object, whole: Tensor) -> Tensor:
    """A whole tensor, which every process has, as `like` is: this process's part of it where that is sharded."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(whole.to(like.device), mesh, placements, src_data_rank=None)  # type: ignore[attr-defined]


def divided_as_all(like: Mapping[Key, Any], whole: Mapping[Key, Any]) -> dict[Key, Any]:
    """Each tensor as the one under its name in `like` is; what is no tensor there, or of another shape, as it is."""
    return {
        key: divided_as(like.get(key), value)
        if getattr(like.get(key), "shape", None) == value.shape
        else value
        for key, value in whole.items()
    }


def let_go_of_gathered(module: nn.Module) -> None:
    """Have a module hold its parts alone: after a pass without gradients torch leaves the outermost ones whole."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        for part in module.modules():
            if isinstance(part, fsdp.FSDPModule):
                part.reshard()


@torch.no_grad()
def sum_instead_of_mean(parameters: Iterable[nn.Parameter], count: int) -> None:
    """Make gradients, which FSDP2 has made the mean over `count` processes, their sum: a step is made of that."""
    for parameter in parameters:
        if parameter.grad is not None:
            own_part(parameter.grad).mul_(count)


def norm_of_all(parts: Iterable[Tensor], add_up: Callable[[Tensor], Tensor]) -> float:
    """The 2-norm of tensors of which each process has given its parts; add_up: sums over processes."""
    squares = sum(float(part.double().square().sum()) for part in parts)
    return math.sqrt(float(add_up(torch.tensor([squares], dtype=torch.float64))))
