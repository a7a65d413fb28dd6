"""Launches of the fused heads and of whole training steps with the Triton kernels, counted in the interpreter.

python -m tests.training.interpret_steps OUT.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from mt2st_fast.data.resident import DeviceTargets, DeviceWindows, ResidentBatch
from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind, multitask_loss
from mt2st_fast.model.encoders import WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.tasks import Classification
from mt2st_fast.training.engines.eager import EagerSteps
from mt2st_fast.training.engines.engine import StepParts, StepState
from mt2st_fast.training.engines.fusing import fuse
from mt2st_fast.training.optimizers.row_sparse import LazyAdam
from mt2st_fast.training.schedules.base import Part
from mt2st_fast.training.trainer import Trainer
from tests.kernels.launches import counted_launches

CPU = torch.device("cpu")
EWT = {"upos": 18, "xpos": 51, "deprel": 52, "feats.Number": 5, "next": 19}  # classes of each task
SMALL = (17, 9, 5, 3, 11)
WIDE = (100, 50, 40, 30, 16, 10, 6, 4)  # 256 outputs


def heads_call(sizes: tuple[int, ...]) -> list[str]:
    """Forward and backward of `multitask_loss`, the plan chosen as on a GPU; counted at its second call."""
    layout = HeadLayout(tuple(HeadSpec(Kind.SOFTMAX, size) for size in sizes))
    features = torch.randn(32, 16, requires_grad=True)
    weight = torch.randn(layout.width, 16, requires_grad=True)
    bias = torch.randn(layout.width, requires_grad=True)
    targets = [torch.zeros(32, dtype=torch.int64) for _ in sizes]
    weights = torch.ones(len(sizes))
    upstream = torch.ones(())

    def call() -> None:
        out = multitask_loss(features, weight, bias, targets, weights, layout, backend="triton")
        torch.autograd.grad(out.total, (features, weight, bias), upstream)

    with counted_launches(execute=False):
        call()  # copies its tables to the device
    with counted_launches(execute=False) as launches:
        call()
    return launches.names


def tagger(active: tuple[str, ...], part: Part = "all") -> tuple[EagerSteps, ResidentBatch]:
    """What `train --device cuda` steps by default on EWT, and a batch of it that lives on the device."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 60_000, (20_000, 12), generator=generator)
    encoder = WindowEncoder(
        20_000, 64, window=2, hidden=128, dropout=0.3, rows_of_type=rows, num_rows=60_000, sparse=True,
        backend="triton",
    )  # fmt: skip
    heads = MultiTaskHeads(
        128, {name: Classification(size) for name, size in EWT.items()}, main="upos", backend="triton"
    )
    heads.set_active(active)
    parameters = [*encoder.parameters(), *heads.parameters()]
    # On CUDA the optimizer steps its dense parameters in one call where it can; a CPU does so where it is told.
    adam = LazyAdam(parameters, lr=torch.tensor(0.01), fused=True)
    parts = StepParts(
        encoder=encoder, heads=heads, learnt=None, optimizer=adam,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        options=Trainer(encoder, heads, device="cpu", backward="fused").options, fixed_batches=False,
        state=StepState(torch.ones(len(active)), part),
    )  # fmt: skip
    parts = replace(parts, fused_tables=fuse(parts, 1, False))
    windows = torch.randint(-1, 20_000, (2_000, 5), generator=generator, dtype=torch.int32)
    columns = {name: np.zeros(2_000, np.int64) for name in active}
    batch = ResidentBatch(torch.arange(512), DeviceWindows(windows), DeviceTargets(columns, CPU), active)
    return EagerSteps(parts), batch


def whole_step(retired: bool = False, part: Part = "all") -> list[str]:
    """A step of the tagger, from the numbers of its rows to the update; counted at its second time."""
    steps, batch = tagger(tuple(EWT)[: 1 if retired else None], part)
    # On CUDA torch's dropout is one operator.
    with mock.patch.object(
        F, "dropout", lambda x, p, training, inplace: torch.native_dropout(x, p, training)[0]
    ):
        with counted_launches(execute=False):
            steps([[batch]])
        with counted_launches(execute=False) as launches:
            steps([[batch]])
    return launches.names


def main(out: str) -> None:
    found: dict[str, Any] = {
        "5 small heads": heads_call(SMALL),
        "8 heads, S=256": heads_call(WIDE),
        "tagger": whole_step(),
        "tagger, after the switch": whole_step(retired=True),
        "tagger, shared turn": whole_step(part="shared"),
        "tagger, task turn": whole_step(part="tasks"),
    }
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
