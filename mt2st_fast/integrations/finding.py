"""Find the heads in a model of another library."""

from __future__ import annotations

import logging

from torch import nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads

logger = logging.getLogger("mt2st_fast")
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


def say_frozen(heads: MultiTaskHeads) -> None:
    """Warn of active tasks whose heads have parameters, none of which trains: peft freezes all but its adapters."""
    frozen = []
    for name in heads.active:
        parameters = list(heads.linear(name).parameters()) if name in heads.tasks else []
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            frozen.append(name)
    if frozen:
        logger.warning(
            "the heads of %s are frozen, so they stay as they are now; to train them beside adapters of peft, pass "
            'modules_to_save=["heads"] to its configuration',
            ", ".join(frozen),
        )
