"""The share of every micro-batch in a step, so that all together count as one batch, whatever labels are missing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.model.denominators import quick_label_count
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.inputs.batch import PlainBatch, to_device


class Shares(NamedTuple):
    """The shares of a process's micro-steps in the whole step."""

    labels_mk: Tensor  # (M, K) the share of all labels that each has; 1 for a task among the denominators
    # Labels in the whole step, () each, of tasks whose losses are added as sums.
    denominators: dict[str, Tensor]
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


def shares_here(heads: MultiTaskHeads, micro_steps: list[list[PlainBatch]], device: torch.device) -> Shares:
    """Return the shares of the micro-steps of one process."""
    counts_mk = torch.stack([label_counts(heads, batches, device) for batches in micro_steps])
    return shares_of(heads, counts_mk, counts_mk.sum(0), tasks_in(micro_steps), 1 / len(micro_steps))


def shares_of(
    heads: MultiTaskHeads, counts_mk: Tensor, totals_k: Tensor, tasks: set[str], step: float
) -> Shares:
    """Return counts (M, K) as shares of totals (K,), 0 if the total is 0.

    A loss is a mean over labels, so the mean over all is the sum of the means, each times its share. A task without a
    head reports itself how many labels its loss is a mean over (`count`). Where labels that count 0 have a loss
    (`heads.uncounted`), no mean tells it: heads divide its sum by the total themselves.
    """
    shares_mk = counts_mk / totals_k.clamp_min(torch.finfo(torch.float32).tiny)
    denominators = {}
    for name in heads.uncounted:
        k = heads.active.index(name)
        shares_mk[:, k] = 1.0
        denominators[name] = totals_k[k]
    return Shares(shares_mk, denominators, tasks, step)


def label_numbers(heads: MultiTaskHeads, batches: list[PlainBatch], device: torch.device) -> list[float]:
    """Return `label_counts` as numbers, K of them: without an operator of torch, if these are classes on a CPU."""
    targets = {name: target for _, of_batch in batches for name, target in of_batch.items()}
    found = []
    for name in heads.active:
        count: float | None = 0.0
        if name in targets:
            spec, target = heads.spec(name), targets[name]
            count = None
            if spec is not None and isinstance(target, Tensor):
                count = quick_label_count(spec, target)
        if count is None:
            return label_counts(heads, batches, device).tolist()  # type: ignore[no-any-return]
        found.append(count)
    return found


def shares_of_numbers(
    heads: MultiTaskHeads,
    counts: list[list[float]],
    totals: list[float],
    tasks: set[str],
    step: float,
    device: torch.device,
) -> Shares:
    """Return `shares_of` numbers (M of K, and K), as float32 on the device."""
    if not heads.uncounted:
        shares = [
            [count / (total or 1.0) for count, total in zip(own, totals, strict=True)] for own in counts
        ]
        # Without an operator of torch, as in `label_numbers`.
        shares_mk = torch.from_numpy(np.array(shares, np.float32).reshape(-1, len(totals))).to(device)
        return Shares(shares_mk, {}, tasks, step)
    counts_mk = torch.tensor(counts, dtype=torch.float64, device="cpu").view(-1, len(totals))
    totals_k = torch.tensor(totals, dtype=torch.float64, device="cpu")
    found = shares_of(heads, counts_mk, totals_k, tasks, step)
    return found._replace(labels_mk=found.labels_mk.float().to(device))


def label_counts(heads: MultiTaskHeads, batches: list[PlainBatch], device: torch.device) -> Tensor:
    """(K,) the divisors of the losses of one micro-step."""
    targets = {
        name: to_device(target, device) for _, of_batch in batches for name, target in of_batch.items()
    }
    counts = heads.label_counts(targets)
    nothing = torch.zeros((), device=device)
    return torch.stack([counts[name].to(device) if name in counts else nothing for name in heads.active])
