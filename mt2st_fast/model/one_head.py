"""A single small softmax head in training on a CPU, by torch's own operators: the step of a run on its main task.

Beside an encoder of torch's layers, Python's part of a kernel call for one small head costs more than the head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt2st_fast.kernels import REFERENCE, HeadSpec, Kind, asked_for

# Multiply-adds for the logits, N D C. Behind a linear layer of 128 outputs (`python -m bench.limits`; 2 cores, EPYC
# family 25), torch took 0.83 to 0.92 of the kernels' time up to 2^19.6, and 0.98 to 1.13 beyond.
MOST_PRODUCTS = 1 << 20


_SOFTMAX = Kind.SOFTMAX


def is_for_torch(spec: HeadSpec, backend: str, plan: str) -> bool:
    """Return whether torch has this head's loss, and nobody asked for another way by name."""
    return (
        spec.kind is _SOFTMAX
        and spec.options.column_weights is None
        and plan == "auto"
        and asked_for(backend)[0] in ("auto", REFERENCE)
    )


def backward_of_one(
    features: Tensor, layer: nn.Module, target: Tensor, task_weight: Tensor, spec: HeadSpec
) -> Tensor | None:
    """Compute the loss of one head and its weighted gradients; returns the loss (1,).

    features: (..., D). task_weight: (1,). None, with nothing done, for what kernels do better or say better: large
    heads, a weight of 0, a batch without a label (torch's loss is then NaN), and targets of another type or shape, or
    out of range.
    """
    weight, bias, options = layer._parameters["weight"], layer._parameters["bias"], spec.options
    if not (
        features.is_cpu
        and features.dtype is torch.float32
        and weight is not None
        and weight.dtype is torch.float32
        and isinstance(target, Tensor)
        and target.dtype is torch.int64
        and target.is_cpu
        and target.shape == features.shape[:-1]
        and features.numel() * spec.size <= MOST_PRODUCTS
        and features.shape[-1] == weight.shape[-1]
        and (scale := task_weight.item()) != 0.0
    ):
        return None
    logits = F.linear(features, weight, bias)
    if logits.dim() > 2:
        logits, target = logits.flatten(0, -2), target.flatten()
    try:
        loss = F.cross_entropy(
            logits,
            target,
            ignore_index=options.ignore_index,  # type: ignore[attr-defined]
            label_smoothing=options.label_smoothing,  # type: ignore[attr-defined]
        )
    except IndexError:  # a class out of range, which kernels name
        return None
    if not loss.requires_grad or math.isnan(loss.item()):
        return None
    loss.backward(None if scale == 1.0 else task_weight.view(()))  # type: ignore[no-untyped-call]
    return loss.detach().view(1)
