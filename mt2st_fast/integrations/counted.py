"""The labels of an optimizer step by task, as one row of numbers that processes can exchange whatever batches hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads

BATCHES, LABELLED = 0, 1  # columns: batches of a step, and whether all of them have labels by task
FIRST = 2  # column of the first task; each has two, the batches with its labels and their number


def step_counts(
    heads: MultiTaskHeads, labels: Sequence[Mapping[str, Any]], n_batches: int, device: torch.device
) -> Tensor:
    """Return the row of this process, float32 (FIRST + 2 K,), for all K tasks of the heads, active or not.

    labels: by task, of every batch; none, if those of some batch are anything else.
    """
    pairs = torch.zeros(len(heads.names), 2, dtype=torch.float32, device=device)
    for of_batch in labels:
        for name, count in heads.label_counts(of_batch).items():
            pair = pairs[heads.names.index(name)]
            pair += torch.stack([torch.ones_like(pair[0]), count.to(pair)])
    facts = torch.tensor([n_batches, len(labels) == n_batches], dtype=torch.float32, device=device)
    return torch.cat([facts, pairs.flatten()])


def counts_of(heads: MultiTaskHeads, row: Tensor) -> dict[str, Tensor]:
    """Return the number of labels () of every task that any batch has labels of; row: of one, or a sum of several."""
    has = row[FIRST::2].tolist()
    return {name: row[FIRST + 2 * k + 1] for k, name in enumerate(heads.names) if has[k]}


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
