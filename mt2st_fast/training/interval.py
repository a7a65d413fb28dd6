"""What the steps since the last record have left to be read: losses on the device, seconds, and which tasks weighed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Interval:
    """The steps since the last record.

    losses: (K,) of each step, on the device. weighted: tasks with a weight in some step. choosing_seconds: spent
    on choosing which parts train, on labelling rows, and on what a schedule wants to know of held-out rows.
    """

    losses: list[Tensor] = field(default_factory=list)
    step_seconds: float = 0.0
    choosing_seconds: float = 0.0
    weighted: set[str] = field(default_factory=set)

    def read(self) -> Tensor:
        """(M, K) float64, the losses of M steps; waits for the device, which counts as part of the steps."""
        started = time.perf_counter()
        losses_mk = torch.stack(self.losses).double().cpu()
        self.step_seconds += time.perf_counter() - started
        return losses_mk

    def state(self) -> dict[str, Any]:
        """Return it JSON-able: a run stopped between two records continues to exactly the record it would have made."""
        return {
            "unread_losses": [losses_k.tolist() for losses_k in self.losses],
            "interval_seconds": self.step_seconds,
            "choosing_seconds": self.choosing_seconds,
            "weighted": sorted(self.weighted),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> Interval:
        """Restore what `state` returned."""
        losses = [torch.tensor(k, dtype=torch.float64, device=device) for k in state["unread_losses"]]
        return cls(losses, state["interval_seconds"], state["choosing_seconds"], set(state["weighted"]))
