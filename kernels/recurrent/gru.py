"""A layer of torch.nn.GRU over whole sequences as an autograd op."""

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


def gru(
    inputs: Tensor,
    first: Tensor | None,
    weight_inputs: Tensor,
    weight_states: Tensor,
    bias_inputs: Tensor | None,
    bias_states: Tensor | None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return the states (T, N, H) of all steps, and the last one (N, H).

    inputs: (T, N, F). first: (N, H); None: zeros. weight_inputs: (3 H, F). weight_states: (3 H, H). bias_inputs and
    bias_states: (3 H,), both or neither. With kernels all are float32 on a CPU. A second derivative is computed by
    torch's own operators.
    """
    given = inputs, first, weight_inputs, weight_states, bias_inputs, bias_states
    if OP.choose(inputs.device.type, inputs.dtype, backend).name == REFERENCE:
        return reference.gru(*given)
    whole = in_whole_vectors([first], weight_inputs, weight_states, [bias_inputs, bias_states], gates=3)
    states, last = of_width(_Gru.apply(inputs, *whole), weight_states.shape[1])
    return states, last


class _Gru(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        inputs: Tensor,
        first: Tensor | None,
        weight_inputs: Tensor,
        weight_states: Tensor,
        bias_inputs: Tensor | None,
        bias_states: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        T, N, _ = inputs.shape
        H = weight_states.shape[1]
        rows, begin, weight = inputs.reshape(T * N, -1), contiguous(first), weight_states.contiguous()
        gates = torch.nn.functional.linear(rows, weight_inputs, bias_inputs)
        # Autograd keeps states of its own: what the layer returns may be changed in place, as torch's may.
        candidates, states, kept = (gates.new_empty(T, N, H) for _ in range(3))
        OP.load("numba", "gru").gru_forward(
            T, N, H, gates.data_ptr(), address(begin), weight.data_ptr(), address(bias_states),
            candidates.data_ptr(), states.data_ptr(), kept.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(
            inputs,
            first,
            weight_inputs,
            weight_states,
            bias_inputs,
            bias_states,
            rows,
            gates,
            candidates,
            kept,
        )
        ctx.set_materialize_grads(False)
        return states, states[-1].clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *given, rows, gates, candidates, kept = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if all(gradient is None for gradient in upstream):
            return (None,) * len(needs)
        if take_torch(upstream):
            return gradients_by_torch(reference.gru, given, needs, upstream)
        inputs, first, weight_inputs, weight_states, _, _ = given
        T, N, H = kept.shape
        begin, weight = contiguous(first), weight_states.contiguous()
        of_states, last = UpstreamStates(upstream[0]), contiguous(upstream[1])
        d_gates, d_bias = gates.new_empty(T * N, 4 * H), gates.new_empty(4 * H)
        d_first = gates.new_empty(N, H) if needs[1] else None
        OP.load("numba", "gru").gru_backward(
            T, N, H, gates.data_ptr(), candidates.data_ptr(), kept.data_ptr(), address(begin), weight.data_ptr(),
            of_states.address, of_states.of_step, of_states.of_row, address(last), d_gates.data_ptr(),
            address(d_first), d_bias.data_ptr(),
        )  # fmt: skip
        # Of x_n, r, z and c: those of the inputs' side are the first three, in another order than the gates have, and
        # those of the states' side the last three.
        of_inputs, of_states_side = d_gates[:, : 3 * H], d_gates[:, H:]
        d_inputs = d_weight_inputs = d_weight_states = None
        if needs[0]:
            reordered = torch.cat([weight_inputs[2 * H :], weight_inputs[: 2 * H]])
            d_inputs = (of_inputs @ reordered).view(inputs.shape)
        if needs[2]:
            reordered = of_inputs.t() @ rows
            d_weight_inputs = torch.cat([reordered[H:], reordered[:H]])
        if needs[3]:
            d_weight_states = of_states_side[N:].t() @ kept[:-1].view(-1, H)
            if begin is not None:
                d_weight_states.addmm_(of_states_side[:N].t(), begin)
        d_bias_inputs = torch.cat([d_bias[H : 3 * H], d_bias[:H]]) if needs[4] else None
        return (
            d_inputs,
            d_first,
            d_weight_inputs,
            d_weight_states,
            d_bias_inputs,
            d_bias[H:] if needs[5] else None,
        )
