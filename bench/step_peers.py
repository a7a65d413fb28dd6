"""Whole training steps by other libraries for multi-task learning, each on the same encoder, heads and optimizer.

A library that is not installed is skipped. The release of LibMTL on PyPI is older than its repository, which has the
same version: install the latter, with torch_geometric and cvxpy, which it imports.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.step_models import StepModel
from mt2st_fast import MultiTask, MultiTaskHeads, Trainer

LIBRARIES = "step, libraries"  # what the records call it
# By how much the weights after one step may differ. AdamW moves a weight by its learning rate of 0.001, whatever the
# size of the gradient, so that a gradient near 0 that is rounded differently makes a part of that.
MOST_OFF = 1e-5
SEED = 1


class DifferentStepError(Exception):
    """Two candidates that should take the same step do not."""


class TakenSteps(NamedTuple):
    """A step to take again and again, and the encoder and heads that it trains, in the order of the tasks."""

    step: Callable[[], object]
    encoder: nn.Module
    heads: list[nn.Linear]

    def weights(self) -> Tensor:
        """Return all weights and biases in one vector."""
        parameters = [*self.encoder.parameters(), *(p for head in self.heads for p in head.parameters())]
        return torch.cat([p.detach().flatten() for p in parameters])


Build = Callable[[StepModel], TakenSteps]


def ours(model: StepModel) -> TakenSteps:
    """The steps of our Trainer."""
    encoder, heads = copy.deepcopy(model.encoder), copy.deepcopy(model.heads)
    trainer = Trainer(
        encoder, heads, schedule=MultiTask(), optimizer=model.make_optimizer, device=model.device.type
    )
    run = trainer.begin(model.batches, epochs=10**9)
    return TakenSteps(run.step, encoder, _linears_of(heads))


def eager(model: StepModel) -> TakenSteps:
    """The usual loop: one nn.Linear and one F.cross_entropy per task."""
    encoder, linears = _copies(model)
    optimizer = model.make_optimizer([*encoder.parameters(), *linears.parameters()])
    batches = cycle(model.batches)

    def step() -> None:
        inputs, targets = next(batches)
        sum(_losses(encoder(inputs), linears, targets)).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return TakenSteps(step, encoder, list(linears.values()))  # type: ignore[arg-type]


def libmtl(model: StepModel) -> TakenSteps:
    """The steps of LibMTL's Trainer: equal weights, hard parameter sharing, and accuracy as the metric.

    What its `train` does between epochs (scores, printing, a pass over test rows) is left out. Its optimizer is
    replaced by that of all candidates, which is faster than the one that it makes.
    """
    library = importlib.import_module("LibMTL")
    encoder, linears = _copies(model)
    tasks = {}
    for name in linears:
        metric = library.metrics.AccMetric()
        tasks[name] = {
            "metrics": ["Acc"],
            "metrics_fn": metric,
            "loss_fn": library.loss.CELoss(),
            "weight": [1],
        }

    class Steps(library.Trainer):  # type: ignore[misc, name-defined]
        device = property(lambda self: model.device, lambda self, value: None)  # it sets "cuda:0" by itself

        def begin(self) -> None:
            self.optimizer = model.make_optimizer(self.model.parameters())
            self.loader, _ = self._prepare_dataloaders(model.batches)
            self.task_weights = np.zeros([len(tasks), 1, 1])
            self.model.train()

        def step(self) -> None:
            inputs, targets = self._process_data(self.loader)
            losses, logits = self.forward4loss(self.model, inputs, targets, return_preds=True)
            losses = torch.stack([losses]).squeeze(0)
            self.meter.update(logits, targets)
            self.optimizer.zero_grad(set_to_none=False)
            self.task_weights[:, 0, 0] = self.model.backward(losses)
            self.optimizer.step()

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # it prints tables of its own
        trainer = Steps(
            tasks,
            weighting="EW",
            architecture="HPS",
            encoder_class=lambda: encoder,
            decoders=linears,
            rep_grad=False,
            multi_input=False,
            optim_param={"optim": "adam", "lr": 1e-3},
            scheduler_param=None,
            weight_args={},
            arch_args={},
        )
    trainer.begin()
    return TakenSteps(trainer.step, encoder, list(linears.values()))  # type: ignore[arg-type]


def torchjd(aggregator: str) -> Build:
    """Steps by TorchJD on separate heads: a gradient per task, then one of its aggregators."""

    def build(model: StepModel) -> TakenSteps:
        encoder, linears = _copies(model)
        return _jacobian_steps(
            model, aggregator, encoder, linears, lambda features, targets: _losses(features, linears, targets)
        )

    return build


def task_losses(aggregator: str) -> Build:
    """The same on our heads and their `task_losses`."""

    def build(model: StepModel) -> TakenSteps:
        encoder, heads = copy.deepcopy(model.encoder), copy.deepcopy(model.heads)
        return _jacobian_steps(
            model,
            aggregator,
            encoder,
            heads,
            lambda features, targets: [*heads.task_losses(features, targets).values()],
        )

    return build


def _jacobian_steps(
    model: StepModel,
    aggregator: str,
    encoder: nn.Module,
    heads: nn.Module,
    losses_of: Callable[[Tensor, dict[str, Tensor]], list[Tensor]],
) -> TakenSteps:
    autojac = importlib.import_module("torchjd.autojac")
    aggregate = getattr(importlib.import_module("torchjd.aggregation"), aggregator)()
    shared = [*encoder.parameters()]
    optimizer = model.make_optimizer([*shared, *heads.parameters()])
    batches = cycle(model.batches)

    def step() -> None:
        inputs, targets = next(batches)
        features = encoder(inputs)
        autojac.mtl_backward(losses_of(features, targets), features=features)
        autojac.jac_to_grad(shared, aggregate)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    linears = _linears_of(heads) if isinstance(heads, MultiTaskHeads) else list(heads.values())  # type: ignore[operator]
    return TakenSteps(step, encoder, linears)


_UPGRAD = ("torchjd", "qpsolvers", "quadprog")  # the extra quadprog_projector of torchjd has the last two
# By name: the modules that it needs, how it is built, and the candidate that must take the same step.
PEERS: dict[str, tuple[tuple[str, ...], Build, str]] = {
    "LibMTL": (("LibMTL",), libmtl, "ours"),
    "TorchJD, Sum": (("torchjd",), torchjd("Sum"), "ours"),
    "TorchJD, UPGrad": (_UPGRAD, torchjd("UPGrad"), "TorchJD, UPGrad"),
    "ours, UPGrad": (_UPGRAD, task_losses("UPGrad"), "TorchJD, UPGrad"),
    "TorchJD, PCGrad": (("torchjd",), torchjd("PCGrad"), "TorchJD, PCGrad"),
    "ours, PCGrad": (("torchjd",), task_losses("PCGrad"), "TorchJD, PCGrad"),
}
RATIOS = {
    "eager": ("eager", "ours"),
    "LibMTL": ("LibMTL", "ours"),
    "TorchJD, Sum": ("TorchJD, Sum", "ours"),
    "TorchJD, UPGrad": ("TorchJD, UPGrad", "ours, UPGrad"),
    "TorchJD, PCGrad": ("TorchJD, PCGrad", "ours, PCGrad"),
}


def obstacle(name: str) -> str | None:
    """Return why a peer cannot run here, or None."""
    missing = [module for module in PEERS[name][0] if importlib.util.find_spec(module) is None]
    return f"the package {missing[0]} is not installed" if missing else None


def library_steps(model: StepModel, skip: Callable[[str, str], None]) -> dict[str, Callable[[], object]]:
    """Return the steps of ours, of the usual loop, and of the installed peers that take the step that they should.

    None at all without a peer. skip: called with the name of a peer that is left out, and the reason.
    """
    peers: dict[str, Callable[[], object]] = {}
    for name, (_, build, like) in PEERS.items():
        try:
            if reason := obstacle(name):
                raise ModuleNotFoundError(reason)
            check_same_step(name, build, ours if like == "ours" else PEERS[like][1], model)
            peers[name] = build(model).step
        except Exception as error:  # a peer is third-party code and may raise anything
            what = "" if isinstance(error, ModuleNotFoundError) else f"{type(error).__name__}: "
            skip(name, what + (str(error).splitlines() or [""])[0][:200])
    if not peers:
        return {}
    check_same_step("eager", eager, ours, model)
    return {"ours": ours(model).step, "eager": eager(model).step, **peers}


def check_same_step(name: str, build: Build, like: Build, model: StepModel) -> None:
    """Take one step by both from the same start. Raises DifferentStepError if weights differ by more than MOST_OFF."""
    found = []
    for each in (build, like):
        taken = each(model)
        torch.manual_seed(SEED)  # PCGrad draws the order of the tasks
        before = taken.weights()
        taken.step()
        found.append(taken.weights())
        if torch.equal(before, found[-1]):
            raise DifferentStepError(f"a step of {name} changes no weight")
    off = float((found[0] - found[1]).abs().max())
    if not off <= MOST_OFF:
        raise DifferentStepError(
            f"after one step, a weight of {name} is off by {off:.2g}; at most {MOST_OFF:g} may be"
        )


def _copies(model: StepModel) -> tuple[nn.Module, nn.ModuleDict]:
    linears = nn.ModuleDict({name: copy.deepcopy(model.heads.linear(name)) for name in model.heads.tasks})
    return copy.deepcopy(model.encoder).train(), linears


def _losses(features: Tensor, linears: nn.ModuleDict, targets: dict[str, Any]) -> list[Tensor]:
    return [F.cross_entropy(linears[name](features), target) for name, target in targets.items()]


def _linears_of(heads: MultiTaskHeads) -> list[nn.Linear]:
    return [heads.linear(name) for name in heads.tasks]
