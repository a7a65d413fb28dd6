"""A layer of torch.nn.LSTM over whole sequences as an autograd op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..machine.registry import REFERENCE
from . import reference
from .op import (
    OP,
    UpstreamStates,
    address,
    contiguous,
    gradients_by_torch,
    in_whole_vectors,
    of_width,
    take_torch,
)


def lstm(
    inputs: Tensor,
    first: Tensor | None,
    first_cell: Tensor | None,
    weight_inputs: Tensor,
    weight_states: Tensor,
    bias_inputs: Tensor | None,
    bias_states: Tensor | None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states (T, N, H) of all steps, and the last state and cell (N, H).

    inputs: (T, N, F). first, first_cell: (N, H), both or neither; None: zeros. weight_inputs: (4 H, F). weight_states:
    (4 H, H). bias_inputs and bias_states: (4 H,), both or neither. With kernels all are float32 on a CPU. A
    second derivative is computed by torch's own operators.
    """
    given = inputs, first, first_cell, weight_inputs, weight_states, bias_inputs, bias_states
    if OP.choose(inputs.device.type, inputs.dtype, backend).name == REFERENCE:
        return reference.lstm(*given)
    whole = in_whole_vectors(
        [first, first_cell], weight_inputs, weight_states, [bias_inputs, bias_states], gates=4
    )
    states, last, cell = of_width(_Lstm.apply(inputs, *whole), weight_states.shape[1])
    return states, last, cell


class _Lstm(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        inputs: Tensor,
        first: Tensor | None,
        first_cell: Tensor | None,
        weight_inputs: Tensor,
        weight_states: Tensor,
        bias_inputs: Tensor | None,
        bias_states: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        T, N, _ = inputs.shape
        H = weight_states.shape[1]
        rows, weight = inputs.reshape(T * N, -1), weight_states.contiguous()
        begin, begin_cell = contiguous(first), contiguous(first_cell)
        gates = torch.nn.functional.linear(rows, weight_inputs, bias_inputs)
        # Autograd keeps states of its own: what the layer returns may be changed in place, as torch's may.
        cells, states, kept = (gates.new_empty(T, N, H) for _ in range(3))
        OP.load("numba", "lstm").lstm_forward(
            T, N, H, gates.data_ptr(), address(begin), address(begin_cell), weight.data_ptr(),
            address(bias_states), cells.data_ptr(), states.data_ptr(), kept.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(
            inputs,
            first,
            first_cell,
            weight_inputs,
            weight_states,
            bias_inputs,
            bias_states,
            rows,
            gates,
            cells,
            kept,
        )
        ctx.set_materialize_grads(False)
        return states, states[-1].clone(), cells[-1].clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *given, rows, gates, cells, kept = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if all(gradient is None for gradient in upstream):
            return (None,) * len(needs)
        if take_torch(upstream):
            return gradients_by_torch(reference.lstm, given, needs, upstream)
        inputs, first, first_cell, weight_inputs, weight_states, _, _ = given
        T, N, H = kept.shape
        begin, begin_cell, weight = contiguous(first), contiguous(first_cell), weight_states.contiguous()
        of_states, last, last_cell = (
            UpstreamStates(upstream[0]),
            contiguous(upstream[1]),
            contiguous(upstream[2]),
        )
        d_gates, d_bias = gates.new_empty(T * N, 4 * H), gates.new_empty(4 * H)
        d_first, d_first_cell = (gates.new_empty(N, H) if need else None for need in needs[1:3])
        OP.load("numba", "lstm").lstm_backward(
            T, N, H, gates.data_ptr(), cells.data_ptr(), address(begin_cell), weight.data_ptr(), of_states.address,
            of_states.of_step, of_states.of_row, address(last), address(last_cell), d_gates.data_ptr(),
            address(d_first), address(d_first_cell), d_bias.data_ptr(),
        )  # fmt: skip
        d_inputs = d_weight_inputs = d_weight_states = None
        if needs[0]:
            d_inputs = (d_gates @ weight_inputs).view(inputs.shape)
        if needs[3]:
            d_weight_inputs = d_gates.t() @ rows
        if needs[4]:
            d_weight_states = d_gates[N:].t() @ kept[:-1].view(-1, H)
            if begin is not None:
                d_weight_states.addmm_(d_gates[:N].t(), begin)
        biases = d_bias if needs[5] else None, d_bias.clone() if needs[6] else None
        return d_inputs, d_first, d_first_cell, d_weight_inputs, d_weight_states, *biases
