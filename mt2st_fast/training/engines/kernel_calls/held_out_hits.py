"""Held-out targets that heads hit, counted by the kernel of a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.kernels import HeadSpec
from mt2st_fast.kernels.heads.kinds.softmax import ACCURACY
from mt2st_fast.model.fused_call import HeadBatch
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.tasks import metric_of


def are_counted(heads: MultiTaskHeads, targets: Mapping[str, Tensor]) -> bool:
    """Return whether hits are all that the metrics of these tasks need, and all of them are active."""
    return bool(targets) and all(
        name in heads.active and metric_of(heads.tasks[name]) is ACCURACY for name in targets
    )


def hits_of(
    heads: MultiTaskHeads,
    targets: Mapping[str, Tensor],
    rows: torch.Size,
    device: torch.device,
    correct: Callable[[HeadBatch], Tensor],
) -> dict[str, Tensor] | None:
    """(3,) for each task: correct targets, all targets, and 0 for those out of range; None if a target is out of range.

    correct: (K,) the hits of a batch's heads; raises ValueError for a target out of range.
    """
    batch = heads.batch(targets, rows, None, device)
    try:
        found = correct(batch)
    except ValueError:  # a class outside the head, which the evaluation counts and names
        return None
    counts = [
        (hits, _n_labelled(spec, target), 0)
        for spec, target, hits in zip(batch.layout.heads, batch.targets, found.tolist(), strict=True)
    ]
    # One tensor for all tasks: what is asked of each of them takes longer than the kernel.
    of_task = torch.tensor(counts, dtype=torch.float64, device="cpu").unbind()
    return dict(zip(batch.layout.names, of_task, strict=True))


def _n_labelled(head: HeadSpec, target: Tensor) -> int:
    """Return how many class targets on a CPU are not ignore_index; in torch, that takes three calls."""
    return int(np.count_nonzero(target.numpy() != head.ignore_index))
