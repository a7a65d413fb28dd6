"""What calls of a layer have in common that kernels can take the place of torch's operators in."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

PLAIN, TENSORS = {nn.Parameter}, {nn.Parameter, Tensor}
_KIND = attrgetter("is_cpu", "dtype", "layout")
_KERNELS = {(True, torch.float32, torch.strided)}


def are_for_kernels(*tensors: Tensor | None) -> bool:
    """Return whether all of these are float32 on a CPU."""
    return set(map(_KIND, tensors)) == _KERNELS


def is_recorded_as_usual() -> bool:
    """Return whether autograd records operators here, and nothing else does."""
    return (
        torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        # A checkpoint computes the layer again later, by torch's operators, and compares what they keep.
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None  # type: ignore[attr-defined]
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )
