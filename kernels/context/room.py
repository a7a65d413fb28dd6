"""The backends of context prediction, and access to what only one of them computes."""

from __future__ import annotations

from typing import Any

import torch

from ..machine.registry import Room

ROOM = Room("context", __package__)


def load_numba(part: str, what: str) -> Any:
    """Load a module of the Numba backend, for `what` no other backend supports.

    Raises RuntimeError if the environment requests another backend, and what `Room.choose` raises.
    """
    chosen = ROOM.choose("cpu", torch.float32, "auto")
    if chosen.name != "numba":
        raise RuntimeError(f"{what} is only supported by numba, not by {chosen.name} ({chosen.reason})")
    return ROOM.load("numba", part)
