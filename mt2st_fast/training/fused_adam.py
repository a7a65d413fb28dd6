"""Steps of torch's own AdamW and Adam with fused=True on a CPU, by the operators that they consist of.

For a small model, torch's Python around these two operators takes several times as long as they do.
"""

from __future__ import annotations

from ctypes import c_float
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

# With one of these torch does something else, or more.
_OTHER = ("amsgrad", "maximize", "capturable", "differentiable")
# What torch puts around the `step` of every class of optimizers, at the first of its objects.
_AROUND = torch.optim.Optimizer.profile_hook_step(lambda *_: None).__code__
_NOW: Any = torch.optim.Adam.step
_STEP = _NOW.__wrapped__ if _NOW.__code__ is _AROUND else _NOW
# Whoever has put something in its place before this was imported waits for the call, too.
_IS_TORCHS = _STEP.__code__.co_filename == torch_optimizer.__file__


def step_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Do what `optimizer.step()` does, bit for bit, if nothing else hangs on it; return whether it is done.

    Else nothing is: for other optimizers, options and devices, at the first step of a parameter, where hooks or a
    scheduler wait for the call, or a profiler for its name.
    """
    if not _is_as_torch_made_it(optimizer):
        return False
    state, calls = optimizer.state, []
    for group in optimizer.param_groups:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        if not group["fused"] or True in [bool(group[name]) for name in _OTHER]:
            return False
        if isinstance(lr, Tensor) or isinstance(beta1, Tensor) or isinstance(beta2, Tensor):
            return False
        held: tuple[list[Tensor], ...] = [], [], [], [], []
        parameters, gradients, means, squares, steps = held
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            of_it = state.get(parameter)
            if not of_it:
                return False
            parameters.append(parameter)
            gradients.append(gradient)
            means.append(of_it["exp_avg"])
            squares.append(of_it["exp_avg_sq"])
            steps.append(of_it["step"])
        if parameters:
            if not _are_plain(parameters, gradients):
                return False
            calls.append((group, held))
    with torch.no_grad():
        for group, (parameters, gradients, means, squares, steps) in calls:
            beta1, beta2 = group["betas"]
            operator = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
            _count(steps)
            operator(
                parameters, gradients, means, squares, [], steps, amsgrad=False, lr=group["lr"], beta1=beta1,
                beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
            )  # fmt: skip
    return True


def _count(steps: list[Tensor]) -> None:
    """Add 1 to each.

    For tensors of one number on a CPU, the operator takes longer by tensor than all of Adam does by parameter.
    """
    if set(map(_KIND, steps)) != _PLAIN:
        torch._foreach_add_(steps, 1)
        return
    for address in map(Tensor.data_ptr, steps):
        number = c_float.from_address(address)
        number.value += 1.0


# By functions that loop in C: in Python, asking every tensor would take as long as the rest.
_KIND = attrgetter("is_cpu", "dtype", "layout")
_PLAIN = {(True, torch.float32, torch.strided)}


def _are_plain(parameters: list[Tensor], gradients: list[Tensor]) -> bool:
    """Return whether these are what torch gives to one call of its operator, on a CPU."""
    return (
        set(map(type, parameters)) == {nn.Parameter}
        and set(map(type, gradients)) == {Tensor}
        and set(map(_KIND, parameters)) == set(map(_KIND, gradients)) == _PLAIN
    )


def _is_as_torch_made_it(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether calling `optimizer.step()` is nothing but the step of torch's Adam or AdamW."""
    own = type(optimizer)
    if own is not torch.optim.AdamW and own is not torch.optim.Adam:
        return False
    step = own.step
    return not (
        not _IS_TORCHS
        or step.__code__ is not _AROUND
        or step.__wrapped__ is not _STEP  # type: ignore[attr-defined]
        or "step" in vars(optimizer)  # as a learning rate scheduler puts there
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
        or getattr(optimizer, "grad_scale", None) is not None
        or getattr(optimizer, "found_inf", None) is not None
        or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    )
