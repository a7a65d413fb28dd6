"""A recurrent layer as an autograd function, for every cell: its kernels, and the way of second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from ..heads.upstream import gradients_by_torch, is_for_torch
from ..machine.registry import REFERENCE, Op

OP = Op("recurrent", __package__)


class Cell(NamedTuple):
    """What is known of a cell here.

    Kernels write the gradients of 4 H numbers: of the gates, or if there are three (of which the last has one part by
    the inputs and one by the states), of the last by the inputs, of all by the states.
    """

    name: str  # of its kernels
    oracle: Callable[
        ..., tuple[Tensor, ...]
    ]  # (inputs, *first, weights, biases): states (T, N, H), and the last
    gates: int
    states: int  # 1, or 2 with a cell

    def sides(self, gradient: Tensor, H: int) -> tuple[Tensor, Tensor]:
        """Return the parts (..., gates H) of a gradient (..., 4 H): by the inputs, in an own order, and the states."""
        if self.gates == 4:
            return gradient, gradient
        return gradient[..., : 3 * H], gradient[..., H:]

    def turned(self, weight: Tensor, H: int) -> Tensor:
        """Return what belongs to gates (gates H, ...) in the order of gradients by the inputs."""
        return weight if self.gates == 4 else torch.cat([weight[2 * H :], weight[: 2 * H]])

    def turned_back(self, gradient: Tensor, H: int) -> Tensor:
        """Return gradients by the inputs (gates H, ...) in the order of the gates."""
        return gradient if self.gates == 4 else torch.cat([gradient[H:], gradient[:H]])


def computed(cell: Cell, given: Sequence[Tensor | None], backend: str) -> Sequence[Tensor]:
    """Return the outputs of a layer for (inputs, *first, weight_inputs, weight_states, bias_inputs, bias_states)."""
    inputs, weight_states = given[0], given[-3]
    assert inputs is not None
    assert weight_states is not None
    if OP.choose(inputs.device.type, inputs.dtype, backend).name == REFERENCE:
        return cell.oracle(*given)
    H = weight_states.shape[1]
    outputs = _Layer.apply(cell, inputs, *_in_whole_vectors(cell, given[1:], H))
    return [out if out.shape[-1] == H else out[..., :H].contiguous() for out in outputs]


def _in_whole_vectors(cell: Cell, given: Sequence[Tensor | None], H: int) -> Sequence[Tensor | None]:
    """Return (*first, weight_inputs, weight_states, *biases) with states of whole vectors, as kernels read them.

    What is added to a state is 0, and its weights are: it begins as 0 and stays 0.
    """
    more = OP.load("numba", "rows").beyond(H)
    if not more:
        return given

    def wider(tensor: Tensor | None, *on_sides: int) -> Tensor | None:
        return None if tensor is None else pad(tensor.unflatten(0, (cell.gates, H)), on_sides).flatten(0, 1)

    *first, weight_inputs, weight_states, bias_inputs, bias_states = given
    return [
        *(None if state is None else pad(state, (0, more)) for state in first),
        wider(weight_inputs, 0, 0, 0, more),
        wider(weight_states, 0, more, 0, more),
        wider(bias_inputs, 0, more),
        wider(bias_states, 0, more),
    ]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, cell: Cell, inputs: Tensor, *given: Tensor | None
    ) -> tuple[Tensor, ...]:
        *first, weight_inputs, weight_states, bias_inputs, bias_states = given
        assert weight_inputs is not None
        assert weight_states is not None
        T, N, _ = inputs.shape
        H = weight_states.shape[1]
        rows, weight, begin = inputs.reshape(T * N, -1), weight_states.contiguous(), _contiguous(first)
        gates = linear(rows, weight_inputs, bias_inputs)
        # Autograd keeps states of its own: what the layer returns may be changed in place, as torch's may.
        extra, states, kept = (gates.new_empty(T, N, H) for _ in range(3))
        OP.load("numba", cell.name).forward(
            (cell.gates, T, N, H, cell.states - 1),
            (
                gates.data_ptr(), _address(begin[0]), _address(begin[-1]), weight.data_ptr(), _address(bias_states),
                extra.data_ptr(), states.data_ptr(), kept.data_ptr(),
            ),
        )  # fmt: skip
        ctx.cell = cell
        ctx.save_for_backward(inputs, *given, rows, gates, extra, kept)
        ctx.set_materialize_grads(False)
        last = states[-1].clone()
        return (states, last) if cell.states == 1 else (states, last, extra[-1].clone())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cell, needs = ctx.cell, ctx.needs_input_grad[1:]
        *given, rows, gates, extra, kept = ctx.saved_tensors
        if all(gradient is None for gradient in upstream):
            return (None,) * (1 + len(needs))
        if is_for_torch(upstream):
            return None, *gradients_by_torch(cell.oracle, given, needs, upstream)
        inputs, *first, weight_inputs, weight_states, _, _ = given
        T, N, H = kept.shape
        weight, begin = weight_states.contiguous(), _contiguous(first)
        of_states, last = _UpstreamStates(upstream[0]), _contiguous(upstream[1:])
        d_gates, d_bias = gates.new_empty(T * N, 4 * H), gates.new_empty(4 * H)
        d_first = [gates.new_empty(N, H) if need else None for need in needs[1:-4]]
        memories, has_cells = (kept, False) if cell.states == 1 else (extra, True)
        OP.load("numba", cell.name).backward(
            (cell.gates, T, N, H, cell.states - 1),
            (
                gates.data_ptr(), extra.data_ptr(), memories.data_ptr(), _address(begin[-1]), weight.data_ptr(),
                *of_states.strided, _address(last[0]), _address(last[1]) if has_cells else 0, d_gates.data_ptr(),
                _address(d_first[0]), _address(d_first[1]) if has_cells else 0, d_bias.data_ptr(),
            ),
        )  # fmt: skip
        by_inputs, by_states = cell.sides(d_gates, H)
        d_inputs = d_weight_inputs = d_weight_states = d_bias_inputs = None
        d_bias_states: Tensor | None = None
        if needs[0]:
            d_inputs = (by_inputs @ cell.turned(weight_inputs, H)).view(inputs.shape)
        if needs[-4]:
            d_weight_inputs = cell.turned_back(by_inputs.t() @ rows, H)
        if needs[-3]:
            d_weight_states = by_states[N:].t() @ kept[:-1].view(-1, H)
            if begin[0] is not None:
                d_weight_states.addmm_(by_states[:N].t(), begin[0])
        if needs[-2] or needs[-1]:
            bias_by_inputs, bias_by_states = cell.sides(d_bias, H)
            d_bias_inputs = cell.turned_back(bias_by_inputs, H) if needs[-2] else None
            # Not one for both: a user may change one of them in place.
            d_bias_states = bias_by_states.clone() if cell.gates == 4 else bias_by_states
        return None, d_inputs, *d_first, d_weight_inputs, d_weight_states, d_bias_inputs, d_bias_states


def _contiguous(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return tensors without gaps."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _address(tensor: Tensor | None) -> int:
    """Return where a tensor lies; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


class _UpstreamStates:
    """The gradient (T, N, H) of all states as kernels read it: its address, and its strides in bytes."""

    def __init__(self, gradient: Tensor | None) -> None:
        if gradient is not None and gradient.stride(2) != 1:
            gradient = gradient.contiguous()
        self._kept = gradient
        self.strided = 0, 0, 0
        if gradient is not None:
            step, row, _ = gradient.stride()
            self.strided = gradient.data_ptr(), step * gradient.itemsize, row * gradient.itemsize
