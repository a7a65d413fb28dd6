"""Training and evaluation modes of modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mt2st_fast.errors import InputError


def check_records() -> None:
    """Raises InputError where autograd records nothing: a step would compute losses, and nothing would train."""
    if not torch.is_grad_enabled():
        around = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
        raise InputError(
            f"training is called within torch.{around}(), where no gradient is made and nothing would train; call it "
            "outside"
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
