"""The batches of a step as one batch: of rows that do not depend on each other, as those of linear layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.kernels import HeadSpec
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.inputs.batch import PlainBatch


def joined(heads: MultiTaskHeads, batches: Sequence[PlainBatch]) -> PlainBatch:
    """Return one batch (N, F) of the rows of all of these, which are (..., F) on the CPU; one is returned as it is.

    A row of a batch without targets of a task has none in the result. Raises what the heads raise for a batch.
    """
    if len(batches) == 1:
        return batches[0]
    found = [heads.batch(targets, inputs.shape[:-1], None, inputs.device) for inputs, targets in batches]
    specs: dict[str, HeadSpec] = {}
    for each in found:
        for name, spec, target in zip(each.layout.names, each.layout.heads, each.targets, strict=True):
            spec.check_target_type(name, target)  # before rows without a target make them floating point
            specs[name] = spec
    of_batches = [dict(zip(each.layout.names, each.targets, strict=True)) for each in found]
    sizes = [inputs.shape[:-1].numel() for inputs, _ in batches]
    targets = {
        name: torch.cat(
            [
                own[name] if name in own else _missing(spec, n)
                for own, n in zip(of_batches, sizes, strict=True)
            ]
        )
        for name, spec in specs.items()
    }
    # Not by torch, whose threads would then spin on the cores of the kernel's.
    rows = np.concatenate(
        [
            inputs.detach().numpy().reshape(n, inputs.shape[-1])
            for (inputs, _), n in zip(batches, sizes, strict=True)
        ]
    )
    return torch.from_numpy(rows), targets


def _missing(spec: HeadSpec, n: int) -> Tensor:
    """Return the targets of n rows that have none."""
    if spec.kind.takes_classes:
        return torch.full((n,), spec.ignore_index, dtype=torch.int64, device="cpu")
    return torch.full((n, spec.size), float("nan"), dtype=torch.float32, device="cpu")
