"""Recurrent layers of torch within an encoder of your own: in a step on a CPU their kernels compute them.

An encoder calls its layers as it likes, so only the `forward` of such a layer gives way, for as long as the encoder
runs, and only for calls that the kernels can take. Hooks of the layer and of its parameters are torch's as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from operator import attrgetter
from types import MethodType, TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from mt2st_fast.kernels import asked_for, gru, lstm, recurrent_obstacle
from mt2st_fast.training.engines.engine import StepParts

_AS_IT_IS: AbstractContextManager[Any] = nullcontext()
_PLAIN, _TENSORS = {nn.Parameter}, {nn.Parameter, Tensor}
_KIND = attrgetter("is_cpu", "dtype", "layout")
_KERNELS = {(True, torch.float32, torch.strided)}


def layers_by_kernels(parts: StepParts) -> AbstractContextManager[None]:
    """Return the context in which an encoder of this run computes, and kernels compute its recurrent layers."""
    wanted = parts.options.backward != "autograd" and asked_for(parts.heads.backend)[0] in ("auto", "numba")
    if parts.device.type != "cpu" or not wanted:
        return _AS_IT_IS
    found = RecurrentLayers(parts.encoder, parts.heads.backend)
    return found if found else _AS_IT_IS


class RecurrentLayers(AbstractContextManager[None]):
    """The recurrent layers of an encoder; within a `with` block, kernels compute them."""

    def __init__(self, encoder: nn.Module, backend: str) -> None:
        parts = list(encoder.modules())
        # What is compiled has been traced, or will be, as it is.
        is_compiled = any(_is_compiled(part) for part in parts)
        found = [] if is_compiled else [part for part in parts if _is_for_kernels(part, backend)]
        # Bound to their layers: an encoder that is copied while it runs has layers that compute with their own weights.
        forward = _by_kernels(backend)
        self._taken = [(vars(layer), MethodType(forward, layer)) for layer in found]

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._taken)

    def __enter__(self) -> None:
        """Take the place of their `forward`."""
        for own, forward in self._taken:
            own.setdefault("forward", forward)  # somebody's own is theirs

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        for own, forward in self._taken:
            if own.get("forward") is forward:
                del own["forward"]


def _is_compiled(part: nn.Module) -> bool:
    return type(part).__module__.startswith("torch._dynamo") or part._compiled_call_impl is not None


def _is_for_kernels(part: nn.Module, backend: str) -> bool:
    if type(part) is not nn.GRU and type(part) is not nn.LSTM:
        return False
    return part.proj_size == 0 and recurrent_obstacle(backend) is None


def _by_kernels(backend: str) -> Callable[..., Any]:
    """Return the `forward` of a layer that kernels compute where they can, and else torch."""

    def forward(self: Any, *args: Any, **others: Any) -> Any:
        given = (*args, others["hx"]) if len(args) == 1 and others.keys() == {"hx"} else args
        call = _call_of(self, *given) if len(given) == len(args) + len(others) in (1, 2) else None
        return type(self).forward(self, *args, **others) if call is None else _states_of(self, call, backend)

    return forward


class _Call(NamedTuple):
    """A call that kernels can take."""

    inputs: Tensor  # (T, N, F), or (N, T, F) if the layer says so
    begin: tuple[Tensor, ...]  # (layers and directions, N, H): states and, of an LSTM, cells; empty for zeros
    weights: list[list[Tensor]]  # and biases, of every layer and direction


def _call_of(layer: nn.GRU | nn.LSTM, inputs: Any, begin: Any = None) -> _Call | None:
    """Return what kernels need for this call; None if they cannot take it, or torch is to raise its error.

    They take float32 sequences on a CPU, of which autograd records the usual.
    """
    if type(inputs) is not Tensor or inputs.dim() != 3 or inputs.shape[2] != layer.input_size:
        return None
    weights = [[layer._parameters.get(name) for name in names] for names in layer._all_weights]
    of_all = list(chain.from_iterable(weights))
    if not set(map(type, of_all)) <= _PLAIN or not inputs.numel():
        return None
    given = begin if isinstance(begin, tuple) else () if begin is None else (begin,)
    if given:
        rows = inputs.shape[0 if layer.batch_first else 1]
        wanted = [(len(weights), rows, layer.hidden_size)] * (2 if type(layer) is nn.LSTM else 1)
        if not set(map(type, given)) <= _TENSORS or [tuple(state.shape) for state in given] != wanted:
            return None
    if set(map(_KIND, (inputs, *given, *of_all))) != _KERNELS or not _is_recorded_as_usual():
        return None
    return _Call(inputs, given, weights)  # type: ignore[arg-type]


def _is_recorded_as_usual() -> bool:
    return (
        torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        # A checkpoint computes the layer again later, by torch's operators, and compares what they keep.
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None  # type: ignore[attr-defined]
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def _states_of(layer: nn.GRU | nn.LSTM, call: _Call, backend: str) -> tuple[Any, Any]:
    """Return the states of the last layer, and the last ones of each, in the form of torch's layers."""
    is_lstm, directions = type(layer) is nn.LSTM, 2 if layer.bidirectional else 1
    sequence, lasts = call.inputs.transpose(0, 1) if layer.batch_first else call.inputs, []
    none = (None,) * (2 if is_lstm else 1)
    for first in range(0, len(call.weights), directions):
        if first > 0 and layer.dropout and layer.training:
            sequence = torch.dropout(sequence, layer.dropout, True)
        outputs = []
        for own in range(first, first + directions):
            begin = [of_all[own] for of_all in call.begin] or none
            weights = call.weights[own] if layer.bias else [*call.weights[own], None, None]
            given = sequence.flip(0) if own > first else sequence
            compute: Any = lstm if is_lstm else gru
            states, *last = compute(given, *begin, *weights, backend=backend)
            outputs.append(states.flip(0) if own > first else states)
            lasts.append(last)
        sequence = outputs[0] if directions == 1 else torch.cat(outputs, -1)
    of_all = tuple(
        torch.stack(parts) if len(parts) > 1 else parts[0].unsqueeze(0) for parts in zip(*lasts, strict=True)
    )
    return sequence.transpose(0, 1) if layer.batch_first else sequence, of_all if is_lstm else of_all[0]
