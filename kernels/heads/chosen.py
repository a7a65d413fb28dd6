"""Which backend and plan compute a call of the heads, and whether autograd has to be part of it."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from ..machine.registry import Op
from .call import Plan
from .layout import HeadLayout
from .plans import Shape, choose_plan

log = logging.getLogger("mt2st_fast")

OP = Op("heads", __package__)


def is_autocast(device: torch.device) -> bool:
    """Return whether autocast is on for a device; torch cannot be asked for tensors without memory (meta)."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def takes_no_autograd(features: Tensor) -> bool:
    """Return whether nothing between the features and the losses has to be recorded."""
    return (
        features.device.type == "cpu"
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def chosen_backend(device: torch.device, dtype: torch.dtype, requested: str) -> str:
    """Return the name of the backend for these features. Raises RuntimeError for a requested one that cannot run."""
    choice = OP.choose(device.type, dtype, requested)
    if choice.name == "reference" and requested == "auto":
        _log_once(choice.reason)
    return choice.name


# Dynamo must not trace into the choice. torch.compiler.assume_constant_result does the same, but loads all of Dynamo.
chosen_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def chosen_plan(backend: str, requested_plan: str, features: Tensor, layout: HeadLayout) -> Plan:
    """Return the plan that computes heads of this shape. Raises ValueError for an unknown one."""
    N, D = features.shape
    sizes = Shape(N, D, layout.width, layout.widest, features.element_size())
    # A size that torch.compile keeps symbolic cannot be a cache key.
    if isinstance(N, int) and isinstance(D, int):
        return _cached_plan(backend, sizes, requested_plan, features.device, torch.get_num_threads())
    return _plan(backend, sizes, requested_plan, features.device)


@lru_cache(maxsize=4096)
def _cached_plan(backend: str, sizes: Shape, requested_plan: str, device: torch.device, threads: int) -> Plan:
    del threads  # only a cache key: a tuned table holds for one number of threads
    return _plan(backend, sizes, requested_plan, device)


def _plan(backend: str, sizes: Shape, requested_plan: str, device: torch.device) -> Plan:
    return cast(Plan, OP.load(backend, choose_plan(backend, sizes, requested_plan, device).name))


@lru_cache
def _log_once(reason: str) -> None:
    log.warning("the heads are computed in plain PyTorch: %s", reason)
