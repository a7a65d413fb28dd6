"""Turns, weightings and moments a task on a real GPU: with CUDA graphs as without them, and what is launched."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from mt2st_fast import (
    FAMO,
    AdaTask,
    Alternate,
    AlternateSteps,
    DynamicWeightAverage,
    MultiTask,
    TaskAdaptedEncoder,
    Trainer,
    Uncertainty,
)
from tests.on_gpu.helpers import RATE
from tests.on_gpu.test_trainer import assert_same, kernels_of_a_step

MAKE = {
    "epochs": lambda: Alternate(1, 1),
    "steps": lambda: AlternateSteps(2, 1),
    "uncertainty": Uncertainty,
    "dwa": DynamicWeightAverage,
    "famo": FAMO,
    "adatask": AdaTask,
    "taps": MultiTask,
}


@pytest.mark.parametrize("name", MAKE)
def test_history_and_weights_are_those_without_graphs(toy, name):
    ends = []
    for graph in (False, True):
        torch.manual_seed(3)
        encoder, heads = toy.encoder(dropout=0.1), toy.heads()
        trainer = Trainer(
            TaskAdaptedEncoder(encoder, heads.names) if name == "taps" else encoder,
            heads,
            schedule=MAKE[name](),
            device="cuda",
            graph=graph,
            lr=RATE,
            log_every=4,
        )
        history = trainer.fit(toy.batches(6), val=toy.batches(2, seed=7), epochs=6)
        modules = (*trainer.encoder.state_dict().values(), *trainer.heads.state_dict().values())
        ends.append((history, [value.clone() for value in modules]))
    eager, graphed = ends
    assert [phase.graph for phase in graphed[0].phases] == ["captured"]
    for ours, theirs in zip(graphed[0].steps, eager[0].steps, strict=True):
        assert (ours.step, ours.trained) == (theirs.step, theirs.trained)
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-3)
        assert ours.weights == pytest.approx(theirs.weights, rel=1e-3)
    if name in ("epochs", "steps"):
        assert_same(eager, graphed)


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")
@pytest.mark.parametrize("graph", [False, True])
def test_a_turn_launches_less(toy, graph):
    everything, _ = kernels_of_a_step(toy, MultiTask(), 20, graph=graph)
    shared, _ = kernels_of_a_step(toy, AlternateSteps(1, 1), 20, graph=graph)
    tasks, history = kernels_of_a_step(toy, AlternateSteps(1, 1), 21, graph=graph)
    assert not any("weight_gradient" in name for name in shared)
    assert any("weight_gradient" in name for name in tasks)
    assert len(shared) < len(everything)
    assert len(tasks) < len(everything) - 4
    backward = Counter(name for name in everything if "threshold" in name or "dropout_backward" in name)
    assert not set(backward) & set(tasks)
    if graph:
        assert history.phases[0].graph == "captured"
