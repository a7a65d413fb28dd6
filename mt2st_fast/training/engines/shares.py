"""The share of every micro-batch in a step, so that all together count as one batch, whatever labels are missing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.batch import PlainBatch, to_device


class Shares(NamedTuple):
    """The shares of a process's micro-steps in the whole step."""

    labels_mk: Tensor  # (M, K) the share of all labels that each has
    tasks: set[str]  # tasks with labels anywhere in the step, see `labelled_in`
    step: float  # the share of one micro-step in all micro-steps


def tasks_in(micro_steps: list[list[PlainBatch]]) -> set[str]:
    """Return the tasks with targets in these micro-steps."""
    return {name for batches in micro_steps for _, targets in batches for name in targets}


def labelled_in(heads: MultiTaskHeads, micro_steps: list[list[PlainBatch]], device: torch.device) -> set[str]:
    """Return the tasks with labels in these micro-steps, for which learned weights count.

    On a CPU; on another device those with targets, as looking for labels would wait for it.
    """
    tasks = tasks_in(micro_steps)
    if device.type != "cpu":
        return tasks
    counts_k = torch.stack([label_counts(heads, batches, device) for batches in micro_steps]).sum(0)
    return {name for name, count in zip(heads.active, counts_k.tolist(), strict=True) if count > 0}


def label_shares(heads: MultiTaskHeads, micro_steps: list[list[PlainBatch]], device: torch.device) -> Tensor:
    """(M, K) float32: the share of all labels of each active task that the batches of each micro-step have.

    A loss is a mean over labels, so the mean over all is the sum of the means, each times its share. A task without a
    head reports itself how many labels its loss is a mean over (`count`). 0 for a task without any label.
    """
    counts_mk = torch.stack([label_counts(heads, batches, device) for batches in micro_steps])
    return shares_of(counts_mk, counts_mk.sum(0))


def shares_of(counts_mk: Tensor, totals_k: Tensor) -> Tensor:
    """(M, K) counts as shares of totals (K,); 0 if the total is 0."""
    return counts_mk / totals_k.clamp_min(torch.finfo(torch.float32).tiny)


def label_counts(heads: MultiTaskHeads, batches: list[PlainBatch], device: torch.device) -> Tensor:
    """(K,) the divisors of the losses of one micro-step."""
    targets = {
        name: to_device(target, device) for _, of_batch in batches for name, target in of_batch.items()
    }
    counts = heads.label_counts(targets)
    nothing = torch.zeros((), device=device)
    return torch.stack([counts[name].to(device) if name in counts else nothing for name in heads.active])
