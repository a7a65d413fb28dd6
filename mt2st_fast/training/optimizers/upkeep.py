"""The parameters that an optimizer holds: retired ones leave with their state, new ones join, gradients are dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mt2st_fast.model.sharded import is_dtensor

IMPLEMENTATIONS = ("fused", "foreach")  # options for how an optimizer computes a step, not what


def are_moved(parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> list[bool]:
    """Return which parameters a step moves: those that are not frozen, and that the optimizer holds."""
    held = group_of(optimizer)
    return [p.requires_grad and id(p) in held for p in parameters]


def group_of(optimizer: torch.optim.Optimizer) -> dict[int, int]:
    """Return the index of each parameter's group, by the parameter's id()."""
    return {id(p): g for g, group in enumerate(optimizer.param_groups) for p in group["params"]}


def release(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Make an optimizer drop its state of retired parameters, and drop their gradients.

    They keep their places in its groups: an optimizer skips a parameter without a gradient, moments and weight decay
    included. A scheduler thus finds the same groups, and a state dict from before or after fits an optimizer
    that was made of all parameters.
    """
    gone = list(parameters)
    for parameter in gone:
        parameter.grad = None
    known = {id(parameter) for parameter in gone}
    for held in [p for p in optimizer.state if id(p) in known]:
        del optimizer.state[held]


def drop_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Do what `zero_grad` does, which spends most of its time on telling a profiler: a fifth of a small step's Python.

    An optimizer that does anything else there is called.
    """
    if type(optimizer).zero_grad is not _ZERO_GRAD or "zero_grad" in vars(optimizer):
        optimizer.zero_grad(set_to_none=True)
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


_ZERO_GRAD = torch.optim.Optimizer.zero_grad


def remove(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Remove parameters and their state from an optimizer; an empty group stays, as schedulers count groups.

    For a run whose checkpoints name the parameters of each group.
    """
    gone = list(parameters)
    release(optimizer, gone)
    known = {id(parameter) for parameter in gone}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in known]


def row_sparse_tables(module: nn.Module) -> list[nn.Parameter]:
    """Return the embedding tables whose gradients are sparse, in this package's encoders and in torch's own layers."""
    sparse = [part for part in module.modules() if getattr(part, "sparse", False) is True]
    return [part.table if hasattr(part, "table") else part.weight for part in sparse]  # type: ignore[misc]


def undecayed(optimizer: torch.optim.Optimizer, tables: Iterable[nn.Parameter]) -> float:
    """Return the weight decay configured for row-sparse tables, which is not applied; 0 if there is none."""
    sparse = {id(table) for table in tables}
    told = [
        float(group.get("weight_decay") or 0.0)
        for group in optimizer.param_groups
        if any(id(p) in sparse for p in group["params"])
    ]
    return max(told, default=0.0)


def admit(parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer) -> bool:
    """Have the optimizer also step those parameters that it does not hold yet; returns whether there are any.

    They are added to its first group, as schedulers count groups.
    """
    held = group_of(optimizer)
    new = [p for p in parameters if id(p) not in held]
    if not new:
        return False
    for parameter in new:
        parameter.grad = None  # nobody has stepped or cleared it
    optimizer.param_groups[0]["params"].extend(new)
    step_mixed_groups_singly(optimizer)
    return True


def step_mixed_groups_singly(optimizer: torch.optim.Optimizer) -> None:
    """Have groups with whole and sharded parameters stepped one by one: torch has no operator that takes both."""
    for group in optimizer.param_groups:
        if len({is_dtensor(parameter) for parameter in group["params"]}) > 1:
            group.update({name: False for name in IMPLEMENTATIONS if name in group})
