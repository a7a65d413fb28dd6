"""Recurrent layers over whole sequences as autograd ops.

torch's own on a CPU are a dozen operators for each step of a sequence, and as many again in the backward pass: for
small batches nearly all of their time is spent between these. Here the steps of a layer are one kernel call, and what
does not depend on the step before it is a few products of large matrices.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..heads.upstream import is_batched
from ..machine.registry import REFERENCE, Op
from . import reference

OP = Op("recurrent", __package__)


@lru_cache
def recurrent_obstacle(hidden: int, backend: str = "auto") -> str | None:
    """Return why no kernel computes layers with states of this size on a CPU, or None."""
    chosen = OP.choose("cpu", torch.float32, backend)
    if chosen.name == REFERENCE:
        return chosen.reason
    if not OP.load(chosen.name, "rows").is_for_kernels(hidden):
        return f"its kernel requires states of whole vectors, not of {hidden} numbers"
    return None


def gru(
    inputs: Tensor,
    first: Tensor | None,
    weight_inputs: Tensor,
    weight_states: Tensor,
    bias_inputs: Tensor | None,
    bias_states: Tensor | None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return the states (T, N, H) of a layer of torch.nn.GRU, and the last one (N, H).

    inputs: (T, N, F). first: (N, H); None: zeros. weight_inputs: (3 H, F). weight_states: (3 H, H). bias_inputs and
    bias_states: (3 H,), both or neither. On a kernel's backend all are float32 on a CPU, and `recurrent_obstacle` has
    none. A second derivative is computed by torch's own operators.
    """
    if OP.choose(inputs.device.type, inputs.dtype, backend).name == REFERENCE:
        return reference.gru(inputs, first, weight_inputs, weight_states, bias_inputs, bias_states)
    return _Gru.apply(inputs, first, weight_inputs, weight_states, bias_inputs, bias_states)  # type: ignore[no-any-return]


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
        kernels = OP.load("numba", "gru")
        T, N, _ = inputs.shape
        H = weight_states.shape[1]
        rows = inputs.reshape(T * N, -1)
        begin = None if first is None else first.contiguous()
        weight = weight_states.contiguous()
        gates = torch.nn.functional.linear(rows, weight_inputs, bias_inputs)
        # Autograd keeps states of its own: what the layer returns may be changed in place, as torch's may.
        candidates, states, kept = (gates.new_empty(T, N, H) for _ in range(3))
        kernels.gru_forward(
            T, N, H, gates.data_ptr(), _address(begin), weight.data_ptr(), _address(bias_states),
            candidates.data_ptr(), states.data_ptr(), kept.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(
            inputs, first, weight_inputs, weight_states, bias_inputs, bias_states, rows, gates, candidates, kept
        )
        ctx.set_materialize_grads(False)
        return states, states[-1].clone()

    @staticmethod
    def backward(ctx: Any, d_states: Tensor | None, d_last: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs, first, weight_inputs, weight_states, bias_inputs, bias_states, rows, gates, candidates, kept = (
            ctx.saved_tensors
        )
        given = inputs, first, weight_inputs, weight_states, bias_inputs, bias_states
        if d_states is None and d_last is None:
            return (None,) * len(given)
        upstream = [gradient for gradient in (d_states, d_last) if gradient is not None]
        if torch.is_grad_enabled() or any(map(is_batched, upstream)):
            return _by_torch(given, ctx.needs_input_grad, d_states, d_last)
        of_inputs, of_first, of_weight_inputs, of_weight_states, of_bias_inputs, of_bias_states = (
            ctx.needs_input_grad
        )
        kernels = OP.load("numba", "gru")
        T, N, H = kept.shape
        begin = None if first is None else first.contiguous()
        if d_states is not None and d_states.stride(2) != 1:
            d_states = d_states.contiguous()
        last = None if d_last is None else d_last.contiguous()
        of_step, of_row = (0, 0) if d_states is None else d_states.stride()[:2]
        d_gates, d_bias = gates.new_empty(T * N, 4 * H), gates.new_empty(4 * H)
        d_first = gates.new_empty(N, H) if of_first else None
        size = gates.element_size()
        kernels.gru_backward(
            T, N, H, gates.data_ptr(), candidates.data_ptr(), kept.data_ptr(), _address(begin),
            weight_states.contiguous().data_ptr(), _address(d_states), size * of_step, size * of_row, _address(last),
            d_gates.data_ptr(), _address(d_first), d_bias.data_ptr(),
        )  # fmt: skip
        # The kernel writes the gradients of x_n, r, z and c: those of the inputs' side are the first three, in another
        # order than the gates', and those of the states' side the last three.
        d_weight_inputs = d_weight_states = d_inputs = None
        if of_weight_inputs:
            together = d_gates[:, : 3 * H].t() @ rows
            d_weight_inputs = torch.cat([together[H:], together[:H]])
        if of_weight_states:
            own = d_gates[:, H:]
            d_weight_states = own[N:].t() @ kept[:-1].view(-1, H)
            if begin is not None:
                d_weight_states.addmm_(own[:N].t(), begin)
        if of_inputs:
            reordered = torch.cat([weight_inputs[2 * H :], weight_inputs[: 2 * H]])
            d_inputs = (d_gates[:, : 3 * H] @ reordered).view(inputs.shape)
        return (
            d_inputs,
            d_first,
            d_weight_inputs,
            d_weight_states,
            torch.cat([d_bias[H : 3 * H], d_bias[:H]]) if of_bias_inputs else None,
            d_bias[H:] if of_bias_states else None,
        )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _by_torch(
    given: tuple[Tensor | None, ...], needs: tuple[bool, ...], d_states: Tensor | None, d_last: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Return the gradients by torch's operators, which can be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        states, last = reference.gru(*given)  # type: ignore[arg-type]
        pairs = [(out, d) for out, d in ((states, d_states), (last, d_last)) if d is not None]
        wanted = [tensor for tensor, need in zip(given, needs, strict=True) if need and tensor is not None]
        found = iter(
            torch.autograd.grad(
                [out for out, _ in pairs], wanted, [d for _, d in pairs], create_graph=again
            )
        )
    return tuple(next(found) if need else None for need in needs)
