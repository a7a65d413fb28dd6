"""Three tasks on rows or on windows of words, of which the second batch lacks one."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mt2st_fast import Classification, Regression

TASKS = {"a": Classification(4), "b": Classification(3), "c": Regression(2)}
LOSSES = {"a": F.cross_entropy, "b": F.cross_entropy, "c": F.mse_loss}


def data(windows=False, n_batches=4, rows=24):
    generator = torch.Generator().manual_seed(2)
    found = []
    for number in range(n_batches):
        inputs = torch.randn(rows, 5, generator=generator)
        if windows:
            inputs = torch.randint(-1, 50, (rows, 3), generator=generator, dtype=torch.int32)
        targets = {
            "a": torch.randint(0, 4, (rows,), generator=generator),
            "b": torch.randint(0, 3, (rows,), generator=generator),
            "c": torch.randn(rows, 2, generator=generator),
        }
        if number == 1:
            del targets["b"]
        found.append((inputs, targets))
    return found
