"""Loops of one's own under FSDP2 and DDP, with a PhaseController over a switch; each as one process does it, too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mt2st_fast import Classification, MultiTaskHeads, PhaseController, Switch

STEPS, SWITCH, ROWS, WIDTH = 12, 7, 32, 16
TASKS = {"a": Classification(7), "b": Classification(5), "c": Classification(3)}


class Model(nn.Module):
    """An encoder and heads whose losses are returned by a forward of the whole, as wrappers of modules want it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, WIDTH))
        self.heads = MultiTaskHeads(WIDTH, TASKS, main="a")

    def forward(self, x: Tensor, y: dict[str, Tensor], denominators: dict[str, float]) -> Tensor:
        return self.heads(self.encoder(x), y, denominators=denominators).total


def batch(step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Labels are missing, in some processes more than in others."""
    chance = torch.Generator().manual_seed(step)
    targets = {name: torch.randint(0, t.classes, (ROWS,), generator=chance) for name, t in TASKS.items()}
    targets["b"][torch.rand(ROWS, generator=chance) < 0.5] = -100
    targets["c"][: ROWS // 2] = -100
    return torch.randn(ROWS, 20, generator=chance), targets


def train(model: Model, wrap: Callable[[Model], nn.Module], rank: int, world: int) -> dict[str, Any]:
    """Losses of the whole batches, and all weights, of a process that sees every `world`-th row."""
    wrapped = wrap(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    controller = PhaseController(model.heads, Switch(at_step=SWITCH), optimizer)
    losses = []
    for step in range(STEPS):
        phase = controller.step(step, STEPS, STEPS)
        if phase is not None and phase.retired:
            wrapped = wrap(model)
        inputs, targets = batch(step)
        targets = {name: targets[name] for name in model.heads.active}
        # Both wrappers take the mean of the processes' gradients.
        counts = {name: n / world for name, n in model.heads.label_counts(targets).items()}
        loss = wrapped(inputs[rank::world], {n: y[rank::world] for n, y in targets.items()}, counts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach() / world)
    total = torch.stack(losses)
    if world > 1:
        dist.all_reduce(total)
    weights = {name: whole(value) for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    moments = {name: sorted(optimizer.state.get(weight, {})) for name, weight in model.named_parameters()}
    return {"losses": total, "weights": weights, "moments": moments}


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def sharded(model: Model) -> nn.Module:
    """Its heads are one unit. Nothing is made anew at a switch."""
    if not isinstance(next(model.parameters()), DTensor):
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for module in (model.encoder, model.heads, model):
            fully_shard(module, mesh=mesh)
    return model


def _beside_one(wrap: Callable[[Model], nn.Module]) -> dict[str, Any]:
    model = Model()
    alone = train(copy.deepcopy(model), lambda unwrapped: unwrapped, 0, 1)
    return {"alone": alone, "together": train(model, wrap, dist.get_rank(), dist.get_world_size())}


def fsdp2(folder: Path) -> dict[str, Any]:
    return _beside_one(sharded)


def ddp(folder: Path) -> dict[str, Any]:
    return _beside_one(DistributedDataParallel)
