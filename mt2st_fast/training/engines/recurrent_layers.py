"""Recurrent layers of torch within an encoder of your own: in a step on a CPU their kernels compute them.

An encoder calls its layers as it likes, so only the `forward` of such a layer gives way, for as long as the encoder
runs, and only for calls that the kernels can take. Hooks of the layer and of its parameters are torch's as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from operator import attrgetter
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from mt2st_fast.kernels import gru, recurrent_obstacle
from mt2st_fast.training.engines.engine import StepParts

_AS_IT_IS: AbstractContextManager[Any] = nullcontext()
_PLAIN = {nn.Parameter}
_KIND = attrgetter("is_cpu", "dtype", "layout")
_KERNELS = {(True, torch.float32, torch.strided)}


def layers_by_kernels(parts: StepParts) -> AbstractContextManager[None]:
    """Return the context in which an encoder of this run computes, and kernels compute its recurrent layers."""
    wanted = parts.options.backward != "autograd" and parts.heads.backend in ("auto", "numba")
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
        self._taken = [(vars(layer), _forward_of(layer, backend)) for layer in found]

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
    return type(part) is nn.GRU and recurrent_obstacle(part.hidden_size, backend) is None


def _forward_of(layer: Any, backend: str) -> Callable[..., Any]:
    """Return what computes this layer where kernels can, and else is its own `forward`."""
    own_forward = type(layer).forward

    def forward(inputs: Any, state: Any = None, **others: Any) -> Any:
        weights = _weights_of(layer)
        if others or weights is None or not _fits(layer, inputs, state, weights):
            return own_forward(layer, *((inputs,) if state is None else (inputs, state)), **others)
        return _all_layers(layer, inputs, state, weights, backend)

    return forward


def _weights_of(layer: nn.GRU) -> list[list[Tensor]] | None:
    """Return the weights and biases of every layer and direction; None if one is not what it was made as."""
    found: list[list[Tensor]] = []
    for names in layer._all_weights:
        own = [layer._parameters.get(name) for name in names]
        if not set(map(type, own)) <= _PLAIN:
            return None
        found.append(own)  # type: ignore[arg-type]
    return found


def _fits(layer: nn.GRU, inputs: Any, state: Any, weights: list[list[Tensor]]) -> bool:
    """Return whether kernels compute this call: float32 sequences on a CPU, of which autograd records the usual."""
    return (
        type(inputs) is Tensor
        and inputs.dim() == 3
        and inputs.shape[2] == layer.input_size
        and inputs.numel() > 0
        and (state is None or _is_state_of(layer, inputs, state))
        and set(map(_KIND, (inputs, *chain.from_iterable(weights)))) == _KERNELS
        and _is_recorded_as_usual()
    )


def _is_state_of(layer: nn.GRU, inputs: Tensor, state: Any) -> bool:
    rows = inputs.shape[0 if layer.batch_first else 1]
    shape = len(layer._all_weights), rows, layer.hidden_size
    return type(state) is Tensor and state.shape == shape and state.dtype is torch.float32 and state.is_cpu


def _is_recorded_as_usual() -> bool:
    # A checkpoint computes the layer again later, by torch's operators, and compares what they keep.
    return (
        torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None  # type: ignore[attr-defined]
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def _all_layers(
    layer: nn.GRU, inputs: Tensor, state: Tensor | None, weights: list[list[Tensor]], backend: str
) -> tuple[Tensor, Tensor]:
    """Return the states of the last layer, and the last one of each, in the form of torch.nn.GRU."""
    directions = 2 if layer.bidirectional else 1
    sequence, lasts = inputs.transpose(0, 1) if layer.batch_first else inputs, []
    for n in range(layer.num_layers):
        if n > 0 and layer.dropout and layer.training:
            sequence = torch.dropout(sequence, layer.dropout, True)
        outputs = []
        for direction in range(directions):
            own = n * directions + direction
            given = sequence.flip(0) if direction else sequence
            biases = weights[own][2:] or [None, None]
            states, last = gru(
                given, None if state is None else state[own], *weights[own][:2], *biases, backend=backend
            )
            outputs.append(states.flip(0) if direction else states)
            lasts.append(last)
        sequence = outputs[0] if directions == 1 else torch.cat(outputs, -1)
    return (
        sequence.transpose(0, 1) if layer.batch_first else sequence,
        lasts[0].unsqueeze(0) if len(lasts) == 1 else torch.stack(lasts),
    )
