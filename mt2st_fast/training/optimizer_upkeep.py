"""Optimizer maintenance beside stepping: release parameters and faded moments, set the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.sharded import is_dtensor, is_sharded, norm_of_all, own_part
from mt2st_fast.training.optim import ROW_STATE

# A moment this small moves no float32 parameter. From here, decaying by 0.9 a step, it takes more than
# FADE_STEPS steps to become subnormal.
FADED = 1e-25
FADE_STEPS = 250
# The mean square of gradients of 1e-18. One of 1e-25 may be all that scales small gradients, if eps is small, too.
FADED_SQUARE = 1e-36
IMPLEMENTATIONS = ("fused", "foreach")  # options for how an optimizer computes a step, not what


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


def put_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Hold the learning rates on the device, so that a step can be captured as a CUDA graph.

    AdamW then counts its steps there.
    """
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float32, device=device)
        if "capturable" in group:
            group["capturable"] = True


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set a group's learning rate, in place if it is a tensor: a captured step reads that tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def rate_as_set(group: dict[str, Any], expected: float) -> float:
    """Return a group's learning rate as a number: `expected`, unless someone else has set another."""
    rate = float(group["lr"])
    # float32 holds 0.002 as 0.0020000001.
    return (
        expected if isinstance(group["lr"], Tensor) and math.isclose(rate, expected, rel_tol=1e-6) else rate
    )


@torch.no_grad()
def drop_faded_moments(optimizer: torch.optim.Optimizer) -> None:
    """Set moments that have faded to 0, as they would soon be subnormal; call it every FADE_STEPS steps on a CPU.

    After a switch, the embedding rows that only auxiliary rows used no longer get a gradient. Their first
    moments decay into the subnormal numbers, on which a CPU computes many times slower: a step took 1.8
    times as long from 700 steps after the switch on.
    """
    for state in optimizer.state.values():
        # These change only with the rows of a batch, and so fade no faster than they are used.
        if any(name.startswith(ROW_STATE) for name in state):
            continue
        for name, moment in state.items():
            if isinstance(moment, Tensor) and moment.dim() > 0 and moment.is_floating_point():
                own = own_part(moment)
                own.masked_fill_(own.abs() < (FADED_SQUARE if name.endswith("_sq") else FADED), 0.0)


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


def optimizer_options(optimizer: torch.optim.Optimizer, names: list[list[str]] | None) -> dict[str, Any]:
    """Return the class of an optimizer and its options, JSON-able.

    {"class": name, "groups": [{option: value}], "names": the parameters in each group, if they have names}.
    """
    plain = (bool, int, float, str)
    groups = []
    for group in optimizer.param_groups:
        told = {name: list(v) if isinstance(v, tuple) else v for name, v in group.items()}
        groups.append(
            {
                name: value
                for name, value in told.items()
                # lr may change during a run; initial_lr is the configured value.
                if name not in ("params", "lr", *IMPLEMENTATIONS)
                and (value is None or isinstance(value, plain) or (name == "betas"))
            }
        )
    return {"class": type(optimizer).__name__, "groups": groups, "names": names}


def check_optimizer(stored: dict[str, Any], own: dict[str, Any]) -> None:
    """Raises InputError if an optimizer, or one of its options, differs from the stored one (`optimizer_options`)."""
    if own["class"] != stored["class"]:
        raise InputError(
            f"the checkpoint was made with {stored['class']}, this run has {own['class']}; use the same optimizer"
        )
    for before, now in _same_groups(stored, own):
        for name in sorted(before.keys() & now.keys()):
            if before[name] != now[name]:
                shown = "lr" if name == "initial_lr" else name
                raise InputError(
                    f"the checkpoint was made with {shown} {before[name]}, this run has {now[name]}; use the same, "
                    "or start a new run"
                )


def _same_groups(
    stored: dict[str, Any], own: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the options of groups that share a parameter; in order of the groups if parameters have no names."""
    if stored["names"] is None or own["names"] is None:
        yield from zip(stored["groups"], own["groups"], strict=False)
        return
    for before, names in zip(stored["groups"], stored["names"], strict=True):
        for now, own_names in zip(own["groups"], own["names"], strict=True):
            if not set(names).isdisjoint(own_names):
                yield before, now


def admit(parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer) -> bool:
    """Have the optimizer also step those parameters that it does not hold yet; returns whether there are any.

    They are added to its first group, as schedulers count groups.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
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
