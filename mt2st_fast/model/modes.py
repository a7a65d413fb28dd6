"""Training and evaluation modes of modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    is_plain = all(map(_has_plain_modes, modes))
    if is_plain:
        _set_flags(dict.fromkeys(modes, False))
    else:
        module.eval()
    try:
        yield
    finally:
        if not is_plain:  # this may do more than set flags: LoRA layers merge their weights
            module.train(modes[module])
        _set_flags(modes)


def _has_plain_modes(part: nn.Module) -> bool:
    """Return whether changing the mode of a module sets a flag and does nothing else."""
    kind = type(part)
    own = kind.train, kind.eval, kind.__setattr__, kind.modules, kind.children
    return own == _TORCHS and not ("train" in part.__dict__ or "eval" in part.__dict__)


_TORCHS = nn.Module.train, nn.Module.eval, nn.Module.__setattr__, nn.Module.modules, nn.Module.children


def _set_flags(modes: Mapping[nn.Module, bool]) -> None:
    for part, mode in modes.items():
        if part.training is not mode:  # an assignment takes ten times as long
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
