"""The labels of an optimizer step by task, as one row of numbers that processes can exchange whatever batches hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads

BATCHES, LABELLED = 0, 1  # columns: batches of a step, and whether all of them have labels by task
FIRST = 2  # column of the first task; each has two: whether a batch has labels of it, and their number


def step_counts(heads: MultiTaskHeads, labels: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return the number of labels () float32 of every active task that a batch of a step has labels of."""
    counts: dict[str, Tensor] = {}
    for of_batch in labels:
        for name, count in heads.label_counts(of_batch).items():
            counts[name] = counts[name] + count if name in counts else count
    return counts


def row_of(
    heads: MultiTaskHeads, counts: Mapping[str, Tensor], n_batches: int, labelled: bool, device: torch.device
) -> Tensor:
    """Return the row of this process, float32 (FIRST + 2 K,), for all K tasks of the heads, active or not."""
    facts = [n_batches, labelled, *(fact for name in heads.names for fact in (name in counts, 0))]
    row = torch.tensor(facts, dtype=torch.float32, device=device)
    for k, name in enumerate(heads.names):
        if name in counts:
            row[FIRST + 2 * k + 1] = counts[name].to(device)
    return row


def sums_of(heads: MultiTaskHeads, of_all: Tensor) -> dict[str, Tensor]:
    """Return what `step_counts` does for the batches of all processes, from their rows (processes, FIRST + 2 K)."""
    sums = of_all.sum(0)
    has = sums[FIRST::2].tolist()
    return {name: sums[FIRST + 2 * k + 1] for k, name in enumerate(heads.names) if has[k]}


def check_counts(of_all: Tensor) -> None:
    """Raise InputError, in every process, if some have batches for a step and others have none; of_all: their rows.

    Also if labels are by task only in some of them.
    """
    n_batches = of_all[:, BATCHES].tolist()
    if not any(n_batches):
        return
    if not all(n_batches):
        raise InputError(
            f"process {n_batches.index(0)} of {len(n_batches)} has no batch left for a step that others have "
            f"batches for ({', '.join(f'{n:.0f}' for n in n_batches)}); give every process the same number of batches"
        )
    labelled = of_all[:, LABELLED].tolist()
    if any(labelled) and not all(labelled):
        raise InputError(
            f"process {labelled.index(0)} of {len(labelled)} has a batch whose labels are not {{task: labels}}, and "
            "others have such labels; let the collator return a dictionary in every batch"
        )
