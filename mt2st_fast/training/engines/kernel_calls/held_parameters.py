"""The parameters that a one-call step moves: why it may not move them, and where they are and lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

from mt2st_fast.kernels import NOTHING, Moves
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.engines.kernel_calls.bypassed import (
    Watched,
    hook_obstacle,
    hooks_of,
    replaced_obstacle,
)
from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer
from mt2st_fast.training.optimizers.upkeep import are_moved, group_of
from mt2st_fast.training.schedules.base import Part

# What is asked at every step is asked by functions that loop in C: in Python it would take as long as the rest of it.
_TRAINS = attrgetter("requires_grad")

LOSSES_ALONE = NOTHING
MOVES: dict[Part, Moves] = {"all": Moves(), "shared": Moves(heads=False), "tasks": Moves(shared=False)}


def model_obstacle(
    encoder: nn.Module,
    of_types: tuple[type[BagEncoder | WindowEncoder], ...],
    heads: MultiTaskHeads,
    optimizer: torch.optim.Optimizer,
) -> str | None:
    """Return why this word encoder, its heads and this optimizer cannot be stepped without autograd, or None."""
    if type(encoder) not in of_types or type(heads) is not MultiTaskHeads:
        names = " or a ".join(each.__name__ for each in of_types)
        return f"it needs a {names} and MultiTaskHeads, not subclasses"
    if not isinstance(optimizer, RowSparseOptimizer):
        return f"it needs an optimizer with a row rule, which {type(optimizer).__name__} lacks"
    assert isinstance(encoder, WindowEncoder | BagEncoder)
    if not encoder.sparse:
        return "the encoder's table is not row-sparse"
    return heads_obstacle(heads) or bypass_obstacle(encoder, heads, optimizer)


def heads_obstacle(heads: MultiTaskHeads) -> str | None:
    """Return why the active heads cannot be stepped without autograd, or None."""
    if heads.backend not in ("auto", "numba") or heads.plan != "auto":
        return f"the heads ask for backend {heads.backend} and plan {heads.plan}"
    if any(heads.is_open_task(name) for name in heads.active):
        return "an active task computes its own loss"
    if (reason := next(iter(heads.reasons_to_call().items()), None)) is not None:
        return f"the head of {reason[0]} {reason[1]}"
    if any(heads.pooling(name) != "none" for name in heads.active):
        return "an active task pools a sequence"
    return None


def bypass_obstacle(
    encoder: nn.Module, heads: MultiTaskHeads, optimizer: torch.optim.Optimizer
) -> str | None:
    """Return what a kernel call would bypass of this model and optimizer, or None."""
    reason = replaced_obstacle((encoder, heads))
    return reason or hook_obstacle(hooks_of((encoder, heads)), [], optimizer)


def parameter_obstacle(parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> str | None:
    """Return why these parameters cannot be stepped without autograd, or None."""
    if not any(are_moved(parameters, optimizer)):
        return "every parameter is frozen"
    if len(set(map(id, parameters))) < len(parameters):
        return "a parameter occurs twice"
    if len(set(map(Tensor.data_ptr, parameters))) < len(parameters):
        return "two parameters lie in one memory"
    return hook_obstacle([], parameters, optimizer)


def head_parameters(heads: MultiTaskHeads) -> list[nn.Parameter]:
    """Return the parameters of the active heads."""
    linears = [heads.linear(name) for name in heads.active if not heads.is_word_task(name)]
    return [p for linear in linears for p in linear.parameters()]


class HeldParameters:
    """Which parameters move, and the addresses of them and their optimizer state, which were given to kernels.

    modules: those that the parameters were found in. buffers: of them, those whose addresses were given to kernels.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        modules: Sequence[nn.Module] = (),
        buffers: Sequence[Tensor] = (),
    ) -> None:
        self._optimizer, self._parameters, self._buffers = optimizer, list(parameters), list(buffers)
        self._hooks_of_modules = hooks_of(modules)
        parts = [part for module in modules for part in module.modules()]
        self._places: list[dict[str, Any]] = [
            place for part in parts for place in (part._modules, part._parameters)
        ]
        # Those that kernels read have a place from the start, if only for None.
        self._places += [part._buffers for part in parts if part._buffers]
        self._in_place = self._found()
        self._watched = Watched(modules)
        self.moved = are_moved(parameters, optimizer)
        self.group_of = group_of(optimizer)
        self._last = self._now()
        # The tensors themselves: while they are held, no other object gets their id().
        self._states = self._state_values()

    def _found(self) -> list[Any]:
        """Return what is in the modules: modules, parameters and buffers."""
        return list(chain.from_iterable(map(dict.values, self._places)))

    def _now(self) -> list[Any]:
        """Return where and how parameters lie, which of them train, and the parameters and momentum of each group."""
        parameters, groups = self._parameters, self._optimizer.param_groups
        grouped = [(list(map(id, group["params"])), bool(group.get("momentum"))) for group in groups]
        return [
            list(map(Tensor.data_ptr, parameters)), list(map(Tensor.size, parameters)),
            list(map(Tensor.is_contiguous, parameters)), list(map(_TRAINS, parameters)), grouped,
            list(map(Tensor.data_ptr, self._buffers)),
        ]  # fmt: skip

    def _state_values(self) -> list[Any]:
        # Of all parameters: looking up a few would cost more, as a tensor's hash is a call of Python's.
        return list(chain.from_iterable(map(dict.values, self._optimizer.state.values())))

    def obstacle(self) -> str | None:
        """Return an obstacle to this step that may be new in the phase, or None: callbacks may do anything."""
        if not any(self.moved):
            return "every parameter is frozen"
        return hook_obstacle(self._hooks_of_modules, self._parameters, self._optimizer)

    def have_changed(self) -> bool:
        """Return whether a parameter, a buffer or a module has another one in its place, or none.

        Or if a parameter has other memory, another state or group, or was frozen or unfrozen, or if a module is no
        longer what it was: its class, its methods, its options.
        """
        return not (
            _are_the_same(self._found(), self._in_place)
            and not self._watched.have_changed()
            and _are_the_same(self._state_values(), self._states)
            and self._last == self._now()
        )


def _are_the_same(now: list[Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(is_, now, before))
