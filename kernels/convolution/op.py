"""torch.nn.Conv1d as an autograd op, for sequences of a few dozen positions.

torch's own on a CPU computes the whole backward pass, although after a maximum over time all but one gradient in each
channel are 0, and turns its inputs around for it, which an embedding gives with the channels of a position together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d as reference

from ..heads.upstream import gradients_by_torch, is_for_torch
from ..machine.registry import REFERENCE, Op

OP = Op("convolution", __package__)


def convolution_obstacle(backend: str = "auto") -> str | None:
    """Return why no kernel computes convolutions on a CPU, or None."""
    chosen = OP.choose("cpu", torch.float32, backend)
    return chosen.reason if chosen.name == REFERENCE else None


def conv1d(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, backend: str = "auto"
) -> Tensor:
    """Return the outputs (B, C, T) of inputs (B, E, L) for weight (C, E, K) and bias (C,), as torch's conv1d.

    With kernels all are float32 on a CPU. A second derivative is computed by torch's own operators.
    """
    if OP.choose(inputs.device.type, inputs.dtype, backend).name == REFERENCE:
        return reference(inputs, weight, bias, stride, padding)
    return _Conv1d.apply(inputs, weight, bias, stride, padding)  # type: ignore[no-any-return]


class _Conv1d(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
    ) -> Tensor:
        B, E, L = inputs.shape
        C, _, K = weight.shape
        T = (L + 2 * padding - K) // stride + 1
        ctx.sizes = sizes = B, E, L, C, T, K, stride, padding
        rows, by_position = inputs.transpose(1, 2).contiguous(), weight.transpose(1, 2).contiguous()
        outputs = rows.new_empty(B, C, T)
        OP.load("numba", "forward").convolve(
            sizes, rows.data_ptr(), by_position.data_ptr(), 0 if bias is None else bias.data_ptr(), outputs.data_ptr()
        )
        ctx.save_for_backward(inputs, weight, bias, rows, by_position)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        needs = ctx.needs_input_grad[:3]
        if upstream is None:
            return (None,) * 5
        inputs, weight, bias, rows, by_position = ctx.saved_tensors
        sizes = B, E, L, C, T, K, stride, padding = ctx.sizes
        if is_for_torch([upstream]):
            by_torch = gradients_by_torch(
                lambda *given: (reference(*given, stride, padding),), (inputs, weight, bias), needs, [upstream]
            )
            return *by_torch, None, None
        d = upstream if upstream.stride(2) == 1 else upstream.contiguous()
        of_weights = needs[1] or needs[2]
        d_rows = rows.new_empty(B, L, E) if needs[0] else None
        d_weight, d_bias = (rows.new_empty(C, K, E), rows.new_empty(C)) if of_weights else (None, None)
        row, channel, _ = d.stride()
        are_few = OP.load("numba", "backward").few_gradients(
            sizes, d.data_ptr(), row * d.itemsize, channel * d.itemsize, rows.data_ptr(), by_position.data_ptr(),
            *(0 if tensor is None else tensor.data_ptr() for tensor in (d_rows, d_weight, d_bias)),
        )  # fmt: skip
        if not are_few:
            found = torch.ops.aten.convolution_backward(
                d, inputs, weight, [C], [stride], [padding], [1], False, [0], 1, needs
            )
            return *(gradient if need else None for gradient, need in zip(found, needs, strict=True)), None, None
        return (
            None if d_rows is None else d_rows.transpose(1, 2),
            d_weight.transpose(1, 2).contiguous() if d_weight is not None and needs[1] else None,
            d_bias if needs[2] else None,
            None,
            None,
        )
