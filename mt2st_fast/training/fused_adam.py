"""The step of torch's fused Adam and AdamW on a CPU, with what they collect anew in every step collected once.

For a small model, collecting parameters and moments costs several times as much as moving them.
"""

from __future__ import annotations

from operator import is_
from typing import Any

import torch
from torch import Tensor

OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW)
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class FusedAdam:
    """Takes the steps of one optimizer, with the same bits, where nothing but plain tensors on a CPU takes part."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._states: list[Any] | None = None  # all values of the optimizer's state, when they were collected
        self._groups: list[
            tuple[list[Tensor], ...]
        ] = []  # of each group: parameters, moments, and steps taken

    def step(self) -> bool:
        """Take the step; returns False, with nothing done, if the optimizer must take it itself."""
        optimizer = self._optimizer
        scaled = getattr(optimizer, "grad_scale", None) is not None
        if scaled or type(optimizer) not in OPTIMIZERS or not all(map(_is_plain, optimizer.param_groups)):
            return False
        states = [value for state in optimizer.state.values() for value in state.values()]
        if (
            self._states is None
            or len(states) != len(self._states)
            or not all(map(is_, states, self._states))
        ):
            self._states = None  # also while the first step has not made them
            if not self._collect():
                return False
            self._states = states
        gradients = []
        for group, (parameters, *_) in zip(optimizer.param_groups, self._groups, strict=False):
            found = [p.grad for p in parameters]
            if len(group["params"]) != len(parameters) or not all(map(is_, group["params"], parameters)):
                self._states = None
                return False
            if not all(map(_takes_part, found)):
                return False
            gradients.append(found)
        if len(gradients) != len(optimizer.param_groups):
            self._states = None
            return False
        with torch.no_grad():
            for group, found, held in zip(optimizer.param_groups, gradients, self._groups, strict=True):
                if found:
                    _move(group, found, held)
        return True

    def _collect(self) -> bool:
        self._groups = []
        for group in self._optimizer.param_groups:
            parameters = list(group["params"])
            states = [self._optimizer.state.get(p) or {} for p in parameters]
            if not all(
                p.is_cpu
                and p.dtype is torch.float32
                and type(p.data) is Tensor
                and set(state) == set(MOMENTS)
                for p, state in zip(parameters, states, strict=True)
            ):
                return False
            self._groups.append((parameters, *([state[name] for state in states] for name in MOMENTS)))
        return True


def _is_plain(group: dict[str, Any]) -> bool:
    """Return whether a group is moved by torch's fused operator alone, at a rate that is a number."""
    return (
        group["fused"] is True
        and not group["amsgrad"]
        and not group["differentiable"]
        and type(group["lr"]) is float
        and type(group["betas"][0]) is float
    )


def _takes_part(gradient: Tensor | None) -> bool:
    return gradient is not None and gradient.dtype is torch.float32 and gradient.layout is torch.strided


def _move(group: dict[str, Any], gradients: list[Tensor], held: tuple[list[Tensor], ...]) -> None:
    parameters, first, second, steps = held
    torch._foreach_add_(steps, 1)
    operator = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    operator(
        parameters, gradients, first, second, [], steps, lr=group["lr"], beta1=group["betas"][0],
        beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False,
        maximize=group["maximize"],
    )  # fmt: skip
