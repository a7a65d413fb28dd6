"""What a run's steps are made of: the modules that train, their optimizer, and how a step is taken."""

from __future__ import annotations

import torch
from torch import nn

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.engines import StepParts
from mt2st_fast.training.run_options import RunOptions


def modules_of(encoder: nn.Module, heads: MultiTaskHeads, learnt: nn.Module | None) -> dict[str, nn.Module]:
    """What has parameters, by the names that a checkpoint gives it."""
    return {"encoder": encoder, "heads": heads, **({} if learnt is None else {"schedule": learnt})}


def make_parts(
    encoder: nn.Module,
    heads: MultiTaskHeads,
    options: RunOptions,
    learnt: nn.Module | None,
    *,
    fixed_batches: bool,
) -> StepParts:
    """Of a run that begins: a fresh optimizer of every parameter that is not frozen. learnt: weights as a module."""
    modules = modules_of(encoder, heads, learnt).values()
    trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
    # An encoder may hold the heads as well: they are trained once.
    optimizer = options.make_optimizer([*dict.fromkeys(trainable)])
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", float(group["lr"]))
    return StepParts(
        encoder=encoder,
        heads=heads,
        learnt=learnt,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(options.device.type, enabled=options.precision == "float16"),
        weights_k=torch.empty(0, dtype=torch.float32, device=options.device),
        device=options.device,
        precision=options.precision,
        clip_norm=options.clip_norm,
        accumulate=options.accumulate,
        lr_changes=options.lr_decay != "none",
        graph=options.graph,
        fuse_backward=options.fuse_backward,
        fixed_batches=fixed_batches,
        processes=options.processes,
    )
