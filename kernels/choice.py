"""Who computes the fused op, and how: every choice carries its reason."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch

BACKENDS = ("reference", "triton", "numba")
PLANS = ("tile", "packed", "chunked")
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


class Shape(NamedTuple):
    """What a plan is chosen by."""

    N: int
    D: int
    S: int
    widest: int  # outputs of the widest head
    itemsize: int  # bytes of a feature


class Rule(NamedTuple):
    """A plan, what it is for, and why: the first rule that fits a shape decides."""

    plan: str
    fits: Callable[[Shape], bool]
    reason: str


# Padded outputs that the Triton tile kernel holds in registers.
TRITON_TILE_OUTPUTS = 128
# Logits of more bytes than this are made in chunks on a GPU.
TRITON_LOGITS_BYTES = 4 << 30
# On a CPU a head this wide is computed by chunks of rows whose logits all threads share.
NUMBA_WIDE_HEAD = 4096

RULES: dict[str, tuple[Rule, ...]] = {
    "numba": (
        Rule(
            "chunked",
            lambda shape: shape.widest > NUMBA_WIDE_HEAD,
            f"a head has more than {NUMBA_WIDE_HEAD:,} outputs: a weight gradient for every thread would not fit",
        ),
        Rule("tile", lambda shape: True, "logits, losses and gradients of a tile of rows fit the cache"),
    ),
    "triton": (
        Rule(
            "chunked",
            lambda shape: shape.N * shape.S * shape.itemsize > TRITON_LOGITS_BYTES,
            f"the logits of all rows would take more than {TRITON_LOGITS_BYTES >> 30} GiB",
        ),
        Rule("packed", lambda shape: True, "one GEMM for all heads' logits, one segmented loss kernel"),
    ),
}


def check_plan(requested: str) -> None:
    """Raises ValueError for an unknown plan."""
    if requested not in ("auto", *PLANS):
        raise ValueError(f"plan={requested} is unknown; there are auto, {', '.join(PLANS)}")


def choose_plan(backend: str, shape: Shape, requested: str = "auto") -> Choice:
    """How `backend` ("numba" or "triton") computes heads of this shape. Raises ValueError for an unknown plan."""
    check_plan(requested)
    if requested != "auto":
        return Choice(requested, f"asked for by plan={requested}")
    rule = next(rule for rule in RULES[backend] if rule.fits(shape))
    return Choice(rule.plan, rule.reason)
