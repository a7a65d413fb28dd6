"""Layers of torch within an encoder of your own: in a step on a CPU, kernels compute those that they know.

An encoder calls its layers as it likes, so only the `forward` of such a layer gives way, for as long as the encoder
runs, and only for calls that the kernels can take. Hooks of the layer and of its parameters are torch's as ever.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import MethodType, TracebackType
from typing import Any

from torch import nn

from mt2st_fast.kernels import asked_for
from mt2st_fast.training.engines.convolution_layers import convolution_forward
from mt2st_fast.training.engines.engine import StepParts
from mt2st_fast.training.engines.recurrent_layers import recurrent_forward

_AS_IT_IS: AbstractContextManager[Any] = nullcontext()


def layers_by_kernels(parts: StepParts) -> AbstractContextManager[None]:
    """Return the context in which an encoder of this run computes, and kernels compute its layers."""
    wanted = parts.options.backward != "autograd" and asked_for(parts.heads.backend)[0] in ("auto", "numba")
    if parts.device.type != "cpu" or not wanted:
        return _AS_IT_IS
    found = LayersByKernels(parts.encoder, parts.heads.backend)
    return found if found else _AS_IT_IS


class LayersByKernels(AbstractContextManager[None]):
    """The layers of an encoder that kernels know; within a `with` block, they compute them."""

    def __init__(self, encoder: nn.Module, backend: str) -> None:
        parts = list(encoder.modules())
        # What is compiled has been traced, or will be, as it is.
        if any(_is_compiled(part) for part in parts):
            parts = []
        # Bound to their layers: an encoder that is copied while it runs has layers that compute with their own weights.
        self._taken = [
            (vars(part), MethodType(forward, part))
            for part in parts
            for forward_of in (recurrent_forward, convolution_forward)
            if (forward := forward_of(part, backend)) is not None
        ]

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
