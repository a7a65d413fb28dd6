"""Which device is measured, and the one line that says there is no GPU."""

from __future__ import annotations

import torch

NO_GPU = "no GPU: torch sees no CUDA device here, so nothing was {done}"


def find(requested: str = "auto") -> torch.device:
    """The device by name; "auto" takes CUDA where there is one. Raises ValueError where it is missing."""
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    if requested not in ("cpu", "cuda"):
        raise ValueError(f"device {requested} is unknown; there are auto, cpu, cuda")
    if requested == "cuda" and not torch.cuda.is_available():
        raise ValueError(NO_GPU.format(done="measured"))
    return torch.device(requested)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
