"""torch.nn.Conv1d as an autograd op: torch's outputs, and gradients without what is 0.

After a maximum over time, as text classifiers take it, one output of each channel has a gradient. torch's backward pass
multiplies all the others, which are 0, just the same, and takes most of a step's time for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..heads.upstream import gradients_by_torch, is_for_torch
from ..machine.registry import REFERENCE, Op
from . import reference

# One gradient in this many may be another than 0: with more, products of matrices are as fast.
FEW = 4
# Products of a forward pass from which on it does not count what looking at gradients takes, also where all are wanted.
LEAST_PRODUCTS = 20_000_000

OP = Op("convolution", __package__)


def convolution_obstacle(backend: str = "auto") -> str | None:
    """Return why no kernel computes convolutions on a CPU, or None."""
    chosen = OP.choose("cpu", torch.float32, backend)
    return chosen.reason if chosen.name == REFERENCE else None


def conv1d(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, backend: str = "auto"
) -> Tensor:
    """Return the outputs (B, C, T) of inputs (B, E, L) for weight (C, E, K) and bias (C,), as torch's conv1d.

    With kernels all are float32 on a CPU. Small ones are torch's own with any backend, and so is a second
    derivative.
    """
    T = (inputs.shape[2] + 2 * padding - weight.shape[2]) // stride + 1
    is_small = len(inputs) * T * weight.numel() < LEAST_PRODUCTS
    if is_small or OP.choose(inputs.device.type, inputs.dtype, backend).name == REFERENCE:
        return reference.conv1d(inputs, weight, bias, stride, padding)
    return _Conv1d.apply(inputs, weight, bias, stride, padding)  # type: ignore[no-any-return]


class _Conv1d(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
    ) -> Tensor:
        ctx.stride, ctx.padding = stride, padding
        ctx.save_for_backward(inputs, weight, bias)
        ctx.set_materialize_grads(False)
        return reference.conv1d(inputs, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if upstream is None:
            return (None,) * 5
        stride, padding, needs = ctx.stride, ctx.padding, ctx.needs_input_grad[:3]
        inputs, weight, bias = given = ctx.saved_tensors
        if is_for_torch([upstream]):
            found = gradients_by_torch(
                lambda *own: (reference.conv1d(own[0], own[1], own[2], stride, padding),),
                given,
                needs,
                [upstream],
            )
            return *found, None, None
        d = upstream if upstream.stride(2) == 1 else upstream.contiguous()
        gradients: Sequence[Tensor | None] | None = _of_few(d, inputs, weight, stride, padding, needs)
        if gradients is None:
            # Of images of one row, as torch's own call is.
            gradients = torch.ops.aten.convolution_backward(
                d.unsqueeze(2), inputs.unsqueeze(2), weight.unsqueeze(2), None if bias is None else [len(bias)],
                [1, stride], [0, padding], [1, 1], False, [0, 0], 1, needs,
            )  # fmt: skip
            gradients = [g if g is None or g.dim() == 1 else g.squeeze(2) for g in gradients]
        return (
            *(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)),
            None,
            None,
        )


def _of_few(
    d: Tensor, inputs: Tensor, weight: Tensor, stride: int, padding: int, needs: Sequence[bool]
) -> tuple[Tensor | None, ...] | None:
    """Return the gradients of inputs, weight and bias, perhaps of unneeded ones; None if too many of d are not 0."""
    (B, E, L), (C, _, K), T = inputs.shape, weight.shape, d.shape[2]
    row, channel, _ = d.stride()
    sizes = B, E, L, C, T, K, stride, padding, row * d.itemsize, channel * d.itemsize
    kernels = OP.load("numba", "few_gradients")
    found = np.empty((B, C + 1), np.int32), np.empty((B, C * T // FEW), np.int32)
    if not kernels.find(sizes, d.data_ptr(), *found):
        return None
    # The channels of a position lie together, as an embedding gives them.
    rows, by_position = inputs.transpose(1, 2).contiguous(), weight.transpose(1, 2).contiguous()
    d_rows = torch.empty_like(rows) if needs[0] else None
    of_weight = needs[1] or needs[2]
    d_weight, d_bias = (torch.empty_like(by_position), rows.new_empty(C)) if of_weight else (None, None)
    kernels.few_gradients(
        sizes, d.data_ptr(), *found, rows.data_ptr(), by_position.data_ptr(),
        *(0 if each is None else each.data_ptr() for each in (d_rows, d_weight, d_bias)),
    )  # fmt: skip
    return (
        None if d_rows is None else d_rows.transpose(1, 2),
        None if d_weight is None else d_weight.transpose(1, 2).contiguous(),
        d_bias,
    )
