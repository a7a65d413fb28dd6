"""The backends of context prediction, and access to what only one of them computes."""

from __future__ import annotations

from typing import Any

import torch

from ..machine.registry import Op

OP = Op("context", __package__)


def load_numba(part: str, what: str) -> Any:
    """Load a module of the Numba backend, for `what` no other backend supports.

    Raises RuntimeError if the environment requests another backend, and what `Op.choose` raises.
    """
    chosen = OP.choose("cpu", torch.float32, "auto")
    if chosen.name != "numba":
        raise RuntimeError(f"{what} is only supported by numba, not by {chosen.name} ({chosen.reason})")
    return OP.load("numba", part)
