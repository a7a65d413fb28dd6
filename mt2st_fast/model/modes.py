"""Training and evaluation modes of modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
