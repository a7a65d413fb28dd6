"""What recurrent layers as autograd ops share: their backends, and the way of second derivatives.

torch's own on a CPU are a dozen operators for each step of a sequence, and as many again in the backward pass: for
small batches nearly all of their time is spent between these. Here the steps of a layer are one kernel call, and what
does not depend on the step before it is a few products of large matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..heads.upstream import is_batched
from ..machine.registry import REFERENCE, Op

OP = Op("recurrent", __package__)


def recurrent_obstacle(backend: str = "auto") -> str | None:
    """Return why no kernel computes recurrent layers on a CPU, or None."""
    chosen = OP.choose("cpu", torch.float32, backend)
    return chosen.reason if chosen.name == REFERENCE else None


def in_whole_vectors(
    states: Sequence[Tensor | None],
    weight_inputs: Tensor,
    weight_states: Tensor,
    biases: Sequence[Tensor | None],
    gates: int,
) -> list[Tensor | None]:
    """Return [*states, weight_inputs, weight_states, *biases] with states of whole vectors, as kernels read them.

    What is added to a state is 0, and its weights are: it begins as 0 and stays 0.
    """
    H = weight_states.shape[1]
    more = OP.load("numba", "rows").beyond(H)
    if not more:
        return [*states, weight_inputs, weight_states, *biases]
    wide = pad(weight_states.unflatten(0, (gates, H)), (0, more, 0, more)).flatten(0, 1)
    return [
        *(None if state is None else pad(state, (0, more)) for state in states),
        pad(weight_inputs.unflatten(0, (gates, H)), (0, 0, 0, more)).flatten(0, 1),
        wide,
        *(
            None if bias is None else pad(bias.unflatten(0, (gates, H)), (0, more)).flatten()
            for bias in biases
        ),
    ]


def of_width(outputs: Sequence[Tensor], hidden: int) -> list[Tensor]:
    """Return outputs (..., H) without what `in_whole_vectors` has added."""
    return [out if out.shape[-1] == hidden else out[..., :hidden].contiguous() for out in outputs]


def address(tensor: Tensor | None) -> int:
    """Return where a tensor lies; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor without gaps, or None."""
    return None if tensor is None else tensor.contiguous()


class UpstreamStates:
    """The gradient (T, N, H) of all states as kernels read it: from which address, in which strides, in bytes."""

    def __init__(self, gradient: Tensor | None) -> None:
        if gradient is not None and gradient.stride(2) != 1:
            gradient = gradient.contiguous()
        self._kept = gradient
        self.address, self.of_step, self.of_row = address(gradient), 0, 0
        if gradient is not None:
            step, row, _ = gradient.stride()
            self.of_step, self.of_row = step * gradient.itemsize, row * gradient.itemsize


def take_torch(upstream: Sequence[Tensor | None]) -> bool:
    """Return whether a backward pass is to be differentiated again, or has many gradients under vmap."""
    return torch.is_grad_enabled() or any(d is not None and is_batched(d) for d in upstream)


def gradients_by_torch(
    layer: Callable[..., tuple[Tensor, ...]],
    given: Sequence[Tensor | None],
    needs: Sequence[bool],
    upstream: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Return the gradients by torch's operators, of a layer as in `reference`."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        pairs = [(out, d) for out, d in zip(layer(*given), upstream, strict=True) if d is not None]
        wanted = [tensor for tensor, need in zip(given, needs, strict=True) if need and tensor is not None]
        outputs, gradients = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, wanted, gradients, create_graph=again))
    return tuple(next(found) if need else None for need in needs)
