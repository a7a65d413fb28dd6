"""Training and evaluation modes of modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mt2st_fast.errors import InputError


def check_records() -> None:
    """Raises InputError where autograd records nothing: a step would compute losses, and nothing would train."""
    if not torch.is_grad_enabled():
        around = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
        raise InputError(
            f"training is called within torch.{around}(), where no gradient is made and nothing would train; call it "
            "outside"
        )


def check_autocast(device: torch.device, wanted: torch.dtype | None) -> None:
    """Raises InputError within an autocast of another dtype than `wanted` (None: of any dtype).

    It would reach some engines of a step and not others, and no evaluation.
    """
    if not torch.is_autocast_enabled(device.type):
        return
    around = torch.get_autocast_dtype(device.type)
    if around != wanted:
        name = str(around).removeprefix("torch.")
        raise InputError(
            f"training is called within torch.autocast({name}), but the Trainer's precision= says what a step computes "
            f'in: call it outside, and pass precision="{name}" for that'
        )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluate a module within the block; afterwards every part has its previous mode, even a frozen BatchNorm."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        # This may do more than set the flags that are set below: LoRA layers merge their weights.
        module.train(modes[module])
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def keeping_buffers(module: nn.Module) -> Iterator[None]:
    """Run a module in training mode within the block as a measurement: BatchNorm's statistics are as before.

    So is whatever else a forward pass writes to its buffers.
    """
    # By value: batch_norm writes to running statistics without counting a version of them.
    held = [
        (part, name, buffer, buffer.clone() if _may_be_written(buffer) else None)
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for part, name, buffer, before in held:
            if before is not None:
                buffer.copy_(before)
            part._buffers[name] = buffer


def _may_be_written(buffer: Tensor) -> bool:
    """Return whether a forward pass can write to a buffer in place: an expanded or a sparse one it cannot."""
    if buffer.layout != torch.strided:
        return False
    return all(stride or size <= 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))
