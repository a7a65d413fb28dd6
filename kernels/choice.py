"""Who computes the fused op, and how: every choice carries its reason."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from functools import lru_cache

import torch

BACKENDS = ("reference", "triton", "numba")
PLANS = ("packed",)
BACKEND_VARIABLE = "MT2ST_BACKEND"

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Choice:
    """What was chosen and why."""

    name: str
    reason: str


def choose_backend(device: torch.device, dtype: torch.dtype, requested: str = "auto") -> Choice:
    """The backend for tensors of this device and dtype.

    `requested` wins over the environment variable MT2ST_BACKEND, which wins over "auto". Only "auto" falls
    back. Raises ValueError for an unknown name and RuntimeError for a backend that was
    asked for and cannot run here.
    """
    asked_by = "backend="
    if requested == "auto":
        asked_by = f"{BACKEND_VARIABLE}="
        requested = os.environ.get(BACKEND_VARIABLE, "auto") or "auto"
    return _choose_backend(device.type, dtype, requested, asked_by)


@lru_cache(maxsize=256)
def _choose_backend(device_type: str, dtype: torch.dtype, requested: str, asked_by: str) -> Choice:
    if requested not in ("auto", *BACKENDS):
        raise ValueError(f"{asked_by}{requested} is unknown; there are auto, {', '.join(BACKENDS)}")
    if requested == "reference":
        return Choice("reference", f"asked for by {asked_by}reference")
    if requested != "auto":
        obstacle = _obstacle(requested, device_type, dtype)
        if obstacle:
            raise RuntimeError(f"{asked_by}{requested} cannot be honoured: {obstacle}")
        return Choice(requested, f"asked for by {asked_by}{requested}")
    fused = "triton" if device_type == "cuda" else "numba"
    obstacle = _obstacle(fused, device_type, dtype)
    if obstacle:
        return Choice("reference", f"{fused} cannot run: {obstacle}")
    return Choice(fused, f"tensors are on {device_type}")


def _obstacle(backend: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Why `backend` cannot serve these tensors, or None."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    home = "cuda" if backend == "triton" else "cpu"
    if device_type != home and not (backend == "triton" and interpreted):
        return f"it computes on {home}, the tensors are on {device_type}"
    if dtype not in KERNEL_DTYPES:
        return f"it has no kernel for {dtype}"
    if importlib.util.find_spec(backend) is None:
        return f"the package {backend} is not installed"
    return None


def choose_plan(requested: str = "auto") -> Choice:
    """How the heads are computed. Raises ValueError for an unknown plan."""
    if requested not in ("auto", *PLANS):
        raise ValueError(f"plan={requested} is unknown; there are auto, {', '.join(PLANS)}")
    if requested == "auto":
        return Choice("packed", "the only plan so far: one GEMM for all heads, one loss kernel")
    return Choice(requested, f"asked for by plan={requested}")
