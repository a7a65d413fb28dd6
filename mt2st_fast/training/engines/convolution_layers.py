"""Conv1d layers of torch within an encoder of your own: the calls whose gradients kernels can compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mt2st_fast.kernels import conv1d, convolution_obstacle
from mt2st_fast.training.engines.usual_calls import PLAIN, are_for_kernels, is_recorded_as_usual


def convolution_forward(layer: nn.Module, backend: str) -> Callable[..., Any] | None:
    """Return the `forward` of a layer whose gradients are a kernel's where it can; None for other layers."""
    if type(layer) is not nn.Conv1d or convolution_obstacle(backend) is not None:
        return None

    def forward(self: Any, *args: Any, **others: Any) -> Any:
        padding = _padding_of(self, *args) if len(args) == 1 and not others else None
        if padding is None:
            return nn.Conv1d.forward(self, *args, **others)
        return conv1d(args[0], self.weight, self.bias, self.stride[0], padding, backend=backend)

    return forward


def _padding_of(layer: nn.Conv1d, inputs: Any) -> int | None:
    """Return by how many zeros a call pads; None if the kernel cannot take it, or torch is to raise its error."""
    if layer.groups != 1 or layer.dilation != (1,) or layer.padding_mode != "zeros":
        return None
    if "_conv_forward" in vars(layer) or not is_recorded_as_usual():
        return None
    of_layer = [layer._parameters.get(name) for name in ("weight", "bias")]
    parameters = [each for each in of_layer if each is not None]
    if type(inputs) is not Tensor or inputs.dim() != 3 or not set(map(type, parameters)) <= PLAIN:
        return None
    if of_layer[0] is None or not inputs.numel() or not are_for_kernels(inputs, *parameters):
        return None
    width, padding = layer.kernel_size[0], layer.padding
    if padding == "same" and width % 2 == 0:
        return None  # torch pads one side more than the other
    zeros = {"same": width // 2, "valid": 0}[padding] if isinstance(padding, str) else padding[0]
    is_fitting = inputs.shape[1] == layer.in_channels and inputs.shape[2] + 2 * zeros >= width
    return zeros if is_fitting else None
