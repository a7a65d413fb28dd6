"""How Triton kernels are launched: on whose device, with which options."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which may not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def launch_options(warps: int, registers: int | None = None) -> dict[str, int]:
    """Options of a launch; `registers` a thread at most, which only NVIDIA's compiler takes."""
    if registers is None or torch.version.hip is not None:
        return {"num_warps": warps}
    return {"num_warps": warps, "maxnreg": registers}
