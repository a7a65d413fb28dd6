"""Recurrent layers of torch within an encoder of your own: the calls that kernels can take, in torch's form."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mt2st_fast.kernels import gru, lstm, recurrent_obstacle
from mt2st_fast.training.engines.usual_calls import PLAIN, TENSORS, are_for_kernels, is_recorded_as_usual


def recurrent_forward(layer: nn.Module, backend: str) -> Callable[..., Any] | None:
    """Return the `forward` of a layer that kernels compute where they can, and else torch; None for other layers."""
    if (type(layer) is not nn.GRU and type(layer) is not nn.LSTM) or layer.proj_size != 0:
        return None
    if recurrent_obstacle(backend) is not None:
        return None

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
    if not set(map(type, of_all)) <= PLAIN or not inputs.numel():
        return None
    given = begin if isinstance(begin, tuple) else () if begin is None else (begin,)
    if given:
        rows = inputs.shape[0 if layer.batch_first else 1]
        wanted = [(len(weights), rows, layer.hidden_size)] * (2 if type(layer) is nn.LSTM else 1)
        if not set(map(type, given)) <= TENSORS or [tuple(state.shape) for state in given] != wanted:
            return None
    if not are_for_kernels(inputs, *given, *of_all) or not is_recorded_as_usual():
        return None
    return _Call(inputs, given, weights)  # type: ignore[arg-type]


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
