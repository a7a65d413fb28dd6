"""What every micro-batch of a step counts for, so that all together are one batch, whatever labels are missing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.sources import PlainBatch, to_device


class Shares(NamedTuple):
    """What the micro-steps of a process are of a whole step."""

    labels_mk: Tensor  # (M, K) which part of all labels each has
    tasks: set[str]  # those with targets anywhere in the step
    step: float  # which part of all micro-steps one is


def tasks_in(micro_steps: list[list[PlainBatch]]) -> set[str]:
    """The tasks with targets in these."""
    return {name for batches in micro_steps for _, targets in batches for name in targets}


def label_shares(heads: MultiTaskHeads, micro_steps: list[list[PlainBatch]], device: torch.device) -> Tensor:
    """(M, K) float32: which part of all labels of each active task the batches of each micro-step have.

    A loss is a mean over labels, so that the mean over all is the sum of the means, each times its part. A task that is
    no head says itself how many labels its loss is a mean of (`count`). 0 for a task that has no label in any.
    """
    counts_mk = torch.stack([label_counts(heads, batches, device) for batches in micro_steps])
    return shares_of(counts_mk, counts_mk.sum(0))


def shares_of(counts_mk: Tensor, totals_k: Tensor) -> Tensor:
    """(M, K) the parts that counts are of totals (K,); 0 of nothing."""
    return counts_mk / totals_k.clamp_min(torch.finfo(torch.float32).tiny)


def label_counts(heads: MultiTaskHeads, batches: list[PlainBatch], device: torch.device) -> Tensor:
    """(K,) what the losses of one micro-step are divided by."""
    targets = {
        name: to_device(target, device) for _, of_batch in batches for name, target in of_batch.items()
    }
    counts = heads.label_counts(targets)
    nothing = torch.zeros((), device=device)
    return torch.stack([counts[name].to(device) if name in counts else nothing for name in heads.active])
