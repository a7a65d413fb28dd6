"""How optimizers move dense parameters, as rules for kernels: torch's own AdamW, Adam and SGD, and this package's."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.kernels import FROZEN, Decay, Dense, RowRule, RowState, Trained
from mt2st_fast.kernels.bags import rules
from mt2st_fast.kernels.bags.rules import packed
from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer, adam_state

_ADAMS, _SGD = (torch.optim.AdamW, torch.optim.Adam), torch.optim.SGD
# Options under which torch computes something else than the rule.
_OTHER = {
    **dict.fromkeys(_ADAMS, ("amsgrad", "maximize", "capturable", "differentiable")),
    _SGD: ("maximize", "differentiable"),
}


def optimizer_obstacle(optimizer: torch.optim.Optimizer) -> str | None:
    """Return why no rule of a kernel is what this optimizer does, or None; its options are another question."""
    if isinstance(optimizer, RowSparseOptimizer) or type(optimizer) in _OTHER:
        return None
    return f"its kernel has no rule for {type(optimizer).__name__}"


def option_obstacle(optimizer: torch.optim.Optimizer, *, decays: bool = True) -> str | None:
    """Return which option of the optimizer a kernel does not know, or None; decays: whether it knows weight_decay.

    Cheap enough for every step: callbacks and schedulers may change options at any time.
    """
    for group in optimizer.param_groups:
        if not group["params"]:  # all retired
            continue
        if (option := _other_rule(optimizer, group)) is not None:
            return f"its kernel does not support {option}={group[option]} of {type(optimizer).__name__}"
        if not decays and group.get("weight_decay"):
            return "its kernel does not support weight_decay"
    return None


def _other_rule(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> str | None:
    if isinstance(optimizer, RowSparseOptimizer):
        return optimizer.other_rule(group)
    if group.get("momentum") and group["dampening"]:
        return "dampening"
    for name in _OTHER[type(optimizer)]:  # no generator: asked at every step
        if group[name]:
            return name
    return None


def rules_of(optimizer: torch.optim.Optimizer) -> tuple[list[RowRule], list[Decay]]:
    """Return, for every group, the rule that currently moves its parameters, and how it decays dense ones."""
    groups = optimizer.param_groups
    if isinstance(optimizer, RowSparseOptimizer):
        return [optimizer.rule(group) for group in groups], [_decoupled(group) for group in groups]
    if isinstance(optimizer, _SGD):
        return [RowRule(rules.SGD, group["lr"]) for group in groups], [
            # Without momentum both kinds of decay are the same.
            _with_momentum(group) if group["momentum"] else _decoupled(group)
            for group in groups
        ]
    return [_adam(group) for group in groups], [
        # Otherwise torch adds it to the gradient, whose moments it then enters.
        _decoupled(group) if group["decoupled_weight_decay"] else Decay(added=float(group["weight_decay"]))
        for group in groups
    ]


class KeptRules:
    """The rules and decays of an optimizer's groups as kernels read them, packed anew where an option has changed.

    of_table: the group of a table, for which a copy of its rule follows, without decay; None: without.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, of_table: int | None = None) -> None:
        self._optimizer, self._of_table = optimizer, of_table
        self._options: list[Any] | None = None  # those for which the following were packed
        self._rates: list[float] = []
        self._decays_by_rate = False

    def now(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (rules, decays) as the fields of `Updates`. Callers may write to the counts of steps in rules."""
        groups = self._optimizer.param_groups
        options = [[of for name, of in group.items() if name not in _OF_EVERY_STEP] for group in groups]
        rates = [float(group["lr"]) for group in groups]
        if options != self._options or (self._decays_by_rate and rates != self._rates):
            self._pack(options)
        elif rates != self._rates:
            self._rules["lr"] = rates if self._of_table is None else [*rates, rates[self._of_table]]
        self._rates = rates
        return self._rules, self._decays

    def _pack(self, options: list[Any]) -> None:
        rules, decays = rules_of(self._optimizer)
        if self._of_table is not None:
            rules.append(rules[self._of_table])
            decays.append(Decay())
        self._rules, self._decays = packed(rules), np.array(decays, np.float32)
        self._decays_by_rate = any(group.get("weight_decay") for group in self._optimizer.param_groups)
        # A tensor may change without being another object; a list, too, but that can be copied.
        self._options = None if any(map(_holds_tensors, chain.from_iterable(options))) else deepcopy(options)


_OF_EVERY_STEP = ("params", "lr", "initial_lr")


def _holds_tensors(option: Any) -> bool:
    return isinstance(option, Tensor) or (
        isinstance(option, tuple | list) and any(map(_holds_tensors, option))
    )


def _adam(group: dict[str, Any]) -> RowRule:
    beta1, beta2 = map(float, group["betas"])
    return RowRule(rules.ADAM, group["lr"], beta1=beta1, beta2=beta2, eps=group["eps"])


def _with_momentum(group: dict[str, Any]) -> Decay:
    return Decay(1.0, float(group["weight_decay"]), float(group["momentum"]), float(group["nesterov"]))


def _decoupled(group: dict[str, Any]) -> Decay:
    return Decay(1.0 - float(group["lr"]) * float(group.get("weight_decay", 0.0)))


def state_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> tuple[RowState, bool] | None:
    """Return the state of a dense parameter, made as at its first step, and whether it is of the whole as one row.

    None if no rule moves it.
    """
    if isinstance(optimizer, RowSparseOptimizer):
        whole = optimizer.whole_state(parameter)
        state = optimizer.dense_state(parameter) if whole is None else whole
        return None if state is None else (state, whole is not None)
    if isinstance(optimizer, _SGD):
        return _momentum_state(optimizer, parameter), False
    return adam_state(optimizer.state[parameter], parameter), True


def dense_of(optimizer: torch.optim.Optimizer, parameter: Tensor, rule: int) -> Dense:
    """Return a dense parameter with its state, for the rule of this index; FROZEN: without any."""
    if rule == FROZEN:
        return Dense(parameter.detach(), RowState(), FROZEN, False)
    found = state_of(optimizer, parameter)
    assert found is not None  # see `state_obstacle`
    return Dense(parameter.detach(), found[0], rule, found[1])


def table_of(optimizer: RowSparseOptimizer, table: Tensor, rule: int) -> Trained:
    """Return a table with the state of its rows, for the rule of this index; FROZEN: without any."""
    state = RowState() if rule == FROZEN else optimizer.row_state(table)
    return Trained(table.detach(), state, rule)


def state_obstacle(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> str | None:
    """Return why a kernel cannot move dense parameters with their state, or None; makes what is missing of that."""
    for parameter in parameters:
        found = state_of(optimizer, parameter)
        if found is None:
            return f"{type(optimizer).__name__} steps dense parameters by another rule"
        # Made for what the parameter was before, perhaps: kernels read and write it by its address.
        for part in (found[0].first, found[0].second):
            if part is None:
                continue
            if (
                part.dtype is not torch.float32
                or not part.is_contiguous()
                or part.numel() != parameter.numel()
            ):
                return "its kernel requires contiguous float32 state, as large as the parameter"
    return None


def _momentum_state(optimizer: torch.optim.SGD, parameter: Tensor) -> RowState:
    """Return the sum of gradients that SGD keeps with momentum; zeros, to which torch adds like to none."""
    groups = (group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
    if not next(groups)["momentum"]:
        return RowState()
    state = optimizer.state[parameter]
    if state.get("momentum_buffer") is None:
        state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return RowState(first=state["momentum_buffer"])
