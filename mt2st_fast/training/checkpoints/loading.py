"""Loads the weights of a checkpoint into a new run: all of them, or those that fit, with a reason for each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.module_state import plain_name
from mt2st_fast.model.sharded import StoredTensor, divided_as, whole_shape

MOST_NAMED = 5
Stored = TypeVar("Stored", bound=StoredTensor)
EXTRA_STATE = "_extra_state"  # torch's name for module state beside tensors


@dataclass(frozen=True)
class LoadedWeights:
    """taken: names of the loaded tensors. skipped: the other tensors of checkpoint and modules, with reasons."""

    taken: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Summarize in one line."""
        said = f"{len(self.taken)} of {len(self.taken) + len(self.skipped)} tensors taken"
        named = [f"{name} ({why})" for name, why in self.skipped.items()]
        more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        return said + (f"; left out: {', '.join(named[:MOST_NAMED])}{more}" if named else "")


def load_weights(
    modules: Mapping[str, nn.Module], stored: Mapping[str, StoredTensor], *, partial: bool
) -> LoadedWeights:
    """Load stored tensors, such as "encoder/0.weight", into the modules of those names.

    partial: load what fits in name and shape. Nothing else is compared: the rows of a table for another vocabulary of
    the same size are loaded, too. Raises InputError, with nothing changed, if something does not fit and partial is
    False, or if nothing fits.
    """
    own = {
        f"{part}/{plain_name(name)}": t
        for part, module in modules.items()
        for name, t in module.state_dict(keep_vars=True).items()
    }
    # Which tasks were active is not a weight: a new run begins with all of them.
    own = _without_extra_state(own)
    stored = _without_extra_state({plain_name(name): t for name, t in stored.items()})
    skipped = {name: "is not in this model" for name in stored if name not in own}
    for name, tensor in own.items():
        if name not in stored:
            skipped[name] = "is not in the checkpoint and keeps its value"
        elif tuple(stored[name].shape) != whole_shape(tensor):
            skipped[name] = (
                f"has shape {tuple(stored[name].shape)} in the checkpoint and {whole_shape(tensor)} here"
            )
    taken = tuple(name for name in own if name in stored and name not in skipped)
    found = LoadedWeights(taken, skipped)
    if skipped and not partial:
        raise InputError(f"the checkpoint does not match: {found}; load what matches with partial=True")
    if not taken:
        raise InputError(
            f"nothing in the checkpoint matches: {found}; pass the encoder and heads it was made with"
        )
    with torch.no_grad():
        for name in taken:
            own[name].copy_(divided_as(own[name], stored[name]))
    return found


def _without_extra_state(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    return {name: t for name, t in tensors.items() if not name.endswith(EXTRA_STATE)}
