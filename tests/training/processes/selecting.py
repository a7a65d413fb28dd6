"""Runs that choose parts of the model, as several processes can make them; each returns what it learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mt2st_fast import AdaptiveTaskSelector, Classification, LazyAdam, MultiTaskHeads, Switch, Trainer
from tests.training.processes.runs import learnt, rank_and_count, words


def selecting(folder: Path) -> dict[str, Any]:
    """Rows of the table are frozen."""
    return words("token", schedule=AdaptiveTaskSelector(schedule=Switch(at=0.5), skip=0.1))


def selecting_apart(folder: Path) -> dict[str, Any]:
    """By held-out batches of each process's own, by which they would not choose the same rows."""
    torch.manual_seed(1)
    first = 20 * rank_and_count()[0]
    held_out = [(torch.arange(first, first + n), {"main": torch.arange(n) % 3}) for n in (10, 15)]
    data = [(torch.arange(40), {"main": torch.arange(40) % 3, "aux": torch.arange(40) % 2})] * 4
    heads = MultiTaskHeads(8, {"main": Classification(3), "aux": Classification(2)}, "main")
    encoder = nn.Sequential(nn.Embedding(40, 8, sparse=True), nn.Linear(8, 8))
    schedule = AdaptiveTaskSelector(schedule=Switch(at=0.5), skip=0.1)
    trainer = Trainer(
        encoder, heads, schedule=schedule, optimizer=lambda p: LazyAdam(p, lr=0.01), device="cpu"
    )
    trainer.fit(data, val=held_out, epochs=2)
    return learnt(trainer)
