"""accelerate's loop of docs/libraries.md, which one process and several can take on the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from mt2st_fast import Classification, MultiTaskHeads, PhaseController, Switch
from tests.training.processes.runs import rank_and_count

STEPS, BATCHES, ROWS = 8, 2, 8
TASKS = {"tag": Classification(5), "genre": Classification(3)}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.heads = nn.Linear(8, 16), MultiTaskHeads(16, TASKS, main="tag")

    def forward(self, inputs: Tensor, targets: dict[str, Tensor], denominators: dict[str, Tensor]) -> Tensor:
        return self.heads(self.encoder(inputs), targets, denominators=denominators).total


def batch(number: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Every second batch has main labels in the first of two processes alone."""
    chance = torch.Generator().manual_seed(number)
    targets = {
        name: torch.randint(0, task.classes, (ROWS,), generator=chance) for name, task in TASKS.items()
    }
    targets["genre"][: number % ROWS] = -100
    if number % 2:
        targets["tag"][1::2] = -100
    return torch.randn(ROWS, 8, generator=chance), targets


def trained(folder: Path) -> dict[str, Any]:
    """With clipped gradients."""
    rank, count = rank_and_count()
    model = Model()
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=BATCHES, kwargs_handlers=[unused])
    wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    controller = PhaseController(model.heads, Switch(at=0.6), optimizer)
    for step in range(STEPS):
        controller.step(step, STEPS, STEPS)
        whole = [batch(BATCHES * step + i) for i in range(BATCHES)]
        batches = [(x[rank::count], {name: y[rank::count] for name, y in t.items()}) for x, t in whole]
        counted = [model.heads.label_counts(targets) for _, targets in batches]
        counts = {
            name: sum(found.get(name, torch.zeros(())) for found in counted) for name in model.heads.active
        }
        denominators = {name: accelerator.reduce(n, "mean") for name, n in counts.items()}
        for inputs, targets in batches:
            with accelerator.accumulate(wrapped):
                accelerator.backward(wrapped(inputs, targets, denominators) * BATCHES)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(wrapped.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
    return {name: value.detach().clone() for name, value in model.named_parameters()}
