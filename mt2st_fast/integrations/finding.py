"""Find the heads in a model of another library."""

from __future__ import annotations

from torch import nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads

ORIGINAL = "original_module"  # where peft keeps the original beside the copy that it trains


def heads_of(model: nn.Module) -> MultiTaskHeads:
    """Return the one MultiTaskHeads in a model, however it is wrapped. Raises InputError for none and for several."""
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, MultiTaskHeads) and ORIGINAL not in name.split(".")
    }
    if len(found) != 1:
        several = f"several: {', '.join(found)}" if found else "none"
        raise InputError(
            f"a model needs exactly one MultiTaskHeads for its phases, but {type(model).__name__} has {several}"
        )
    return next(iter(found.values()))
