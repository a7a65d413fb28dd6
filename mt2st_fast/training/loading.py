"""Weights of a checkpoint for a run of its own: all of them, or those that fit and a word on every other one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.sharded import StoredTensor, divided_as, whole_shape

MOST_NAMED = 5
Stored = TypeVar("Stored", bound=StoredTensor)
EXTRA_STATE = "_extra_state"  # as torch names what a module keeps beside tensors


@dataclass(frozen=True)
class LoadedWeights:
    """taken: names of tensors that the modules now hold. skipped: the others of both sides, each with the reason."""

    taken: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line."""
        said = f"{len(self.taken)} of {len(self.taken) + len(self.skipped)} tensors taken"
        named = [f"{name} ({why})" for name, why in self.skipped.items()]
        more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        return said + (f"; left out: {', '.join(named[:MOST_NAMED])}{more}" if named else "")


def load_weights(
    modules: Mapping[str, nn.Module], stored: Mapping[str, StoredTensor], *, partial: bool
) -> LoadedWeights:
    """Put stored tensors, "encoder/0.weight", into the modules of those names.

    partial: take what fits in name and shape. A name and a shape are all that is compared: rows of a table of another
    vocabulary of the same size are taken, too. Raises InputError, with nothing changed, where something does not fit
    and partial is not asked for, and where nothing fits.
    """
    own = {
        f"{part}/{name}": t
        for part, module in modules.items()
        for name, t in module.state_dict(keep_vars=True).items()
    }
    # Which tasks were active is no weight: a run of its own begins with all of them.
    own, stored = _without_extra_state(own), _without_extra_state(stored)
    skipped = {name: "is not in this model" for name in stored if name not in own}
    for name, tensor in own.items():
        if name not in stored:
            skipped[name] = "is not in the checkpoint, stays as it is"
        elif tuple(stored[name].shape) != whole_shape(tensor):
            skipped[name] = f"is {tuple(stored[name].shape)} there and {whole_shape(tensor)} here"
    taken = tuple(name for name in own if name in stored and name not in skipped)
    found = LoadedWeights(taken, skipped)
    if skipped and not partial:
        raise InputError(f"the checkpoint does not fit: {found}; load what fits with partial=True")
    if not taken:
        raise InputError(f"nothing of the checkpoint fits: {found}; give the encoder and heads of then")
    with torch.no_grad():
        for name in taken:
            own[name].copy_(divided_as(own[name], stored[name]))
    return found


def _without_extra_state(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    return {name: t for name, t in tensors.items() if not name.endswith(EXTRA_STATE)}
