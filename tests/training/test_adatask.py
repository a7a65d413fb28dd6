"""AdaTask against one plain optimizer a task, its moments in checkpoints, and what it rules out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from mt2st_fast import (
    AdaTask,
    Classification,
    MultiTaskHeads,
    Switch,
    Trainer,
    WindowEncoder,
    WordSimilarity,
)
from mt2st_fast.errors import InputError
from mt2st_fast.training.optimizers.row_sparse import LazyAdam
from mt2st_fast.training.schedules import RunFacts, find_strategy
from tests.training.graphs_on_cpu import GraphedOnCpu
from tests.training.small_runs import assert_goes_on_with_the_same_bits
from tests.training.three_tasks import LOSSES, TASKS, data
from tests.training.turn_runs import OPTIMIZERS, batches, parameters_of, trainer_of

RATE = 0.01


def model(sparse=False):
    torch.manual_seed(1)
    if sparse:
        return WindowEncoder(50, 6, window=1, hidden=8, sparse=True), MultiTaskHeads(8, TASKS, "a")
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh()), MultiTaskHeads(8, TASKS, "a")


def adam(parameters, sparse=False):
    parameters = [*parameters]
    kind = LazyAdam if sparse else torch.optim.AdamW
    return kind(parameters, lr=RATE, weight_decay=0.0)


def one_optimizer_a_task(sparse, epochs):
    """The algorithm by hand: every task has an Adam of its own on the encoder and on its head."""
    encoder, heads = model(sparse)
    by_task = {
        name: adam([*encoder.parameters(), *heads.linear(name).parameters()], sparse) for name in TASKS
    }
    for inputs, targets in data(sparse) * epochs:
        gradients = {}
        for name, target in targets.items():
            loss = LOSSES[name](heads.logits(encoder(inputs), name), target)
            own = [*encoder.parameters(), *heads.linear(name).parameters()]
            gradients[name] = list(zip(own, torch.autograd.grad(loss, own), strict=True))
        for name, found in gradients.items():
            for parameter, gradient in found:
                parameter.grad = gradient
            by_task[name].step()
            by_task[name].zero_grad()
    return encoder, heads


def trained(sparse=False, epochs=3, schedule=None, kind=Trainer, callbacks=(), **options):
    encoder, heads = model(sparse)
    options = {"optimizer": lambda p: adam(p, sparse), "device": "cpu", "log_every": 2} | options
    fit = {key: options.pop(key) for key in ("checkpoint", "resume") if key in options}
    trainer = kind(encoder, heads, schedule=schedule or AdaTask(), callbacks=list(callbacks), **options)
    return trainer, trainer.fit(data(sparse), epochs=epochs, **fit)


@pytest.mark.parametrize("sparse", [False, True])
def test_it_is_one_optimizer_a_task(sparse):
    encoder, heads = one_optimizer_a_task(sparse, 3)
    trainer, history = trained(sparse)
    assert history.phases[0].engine == "a pass a task"
    wanted = [*encoder.parameters(), *heads.parameters()]
    found = [*trainer.encoder.parameters(), *trainer.heads.parameters()]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in found)


def test_the_encoder_runs_forward_once_a_step():
    calls = []

    class Counted(nn.Linear):
        def forward(self, inputs):
            calls.append(1)
            return super().forward(inputs)

    heads = MultiTaskHeads(8, TASKS, "a")
    trainer = Trainer(Counted(5, 8), heads, schedule=AdaTask(), optimizer=adam, device="cpu")
    trainer.fit(data(), epochs=1)
    assert len(calls) == 4


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("stop", [1, 5, 8])
def test_a_resumed_run_ends_with_the_same_bits(sparse, stop, tmp_path):
    assert_goes_on_with_the_same_bits(partial(trained, sparse), stop, tmp_path)


@dataclass(frozen=True, kw_only=True)
class SwitchByTask(Switch):
    """A Switch with moments a task."""

    moments_per_task = True


def test_the_moments_of_a_retired_task_are_let_go():
    trainer, history = trained(schedule=SwitchByTask(at=0.5))
    assert [phase.active for phase in history.phases] == [("a", "b", "c"), ("a",)]
    state = trainer.run.optimizer.state[trainer.encoder[0].weight]
    assert set(state) == {"step", "step:0", "exp_avg:0", "exp_avg_sq:0"}
    assert state["step:0"] == 12, "its own steps, through the switch"


def test_graphs_replay_it():
    by_hand = {"optimizer": lambda p: torch.optim.AdamW(p, lr=RATE, weight_decay=0.0, capturable=False)}
    sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=2.0**-4, momentum=0.5)}
    (eager, history), (graphed, again) = (trained(kind=k, epochs=9, **sgd) for k in (Trainer, GraphedOnCpu))
    assert again == history
    assert again.phases[0].graph == "captured"
    assert graphed.capturer.replayed > 5
    for name, value in parameters_of(eager).items():
        assert torch.equal(parameters_of(graphed)[name], value), name
    _, adams = trained(kind=GraphedOnCpu, epochs=1, **by_hand)
    assert "AdamW is not capturable" in adams.phases[0].passed_over["cuda graph"]


def test_a_task_on_words_moves_the_table_by_moments_of_its_own():
    torch.manual_seed(0)
    encoder = WindowEncoder(50, 6, window=1, hidden=8, sparse=True)
    heads = MultiTaskHeads(8, {"a": Classification(4), "words": WordSimilarity()}, "a")
    trainer = Trainer(
        encoder, heads, schedule=AdaTask(), optimizer=lambda p: adam(p, sparse=True), device="cpu"
    )
    a = [(inputs, {"a": targets["a"]}) for inputs, targets in data(windows=True)]
    words = [(torch.randint(0, 50, (9, 2)), {"words": torch.rand(9)}) for _ in range(4)]
    run = trainer.begin({"a": a, "words": words}, epochs=1)
    losses = run.step()
    assert (losses > 0).all()
    state = trainer.run.optimizer.state[encoder.table]
    assert {key.partition(":")[2] for key in state if ":" in key} == {"0", "1"}


def test_a_default_run_of_the_command_line_takes_it():
    schedule = find_strategy("adatask").make({}, RunFacts(9.0))
    trainer = trainer_of("window", lambda p: LazyAdam(p, lr=0.02, weight_decay=0.0), schedule=schedule)
    history = trainer.fit(batches("window"), epochs=5)
    assert history.steps[-1].losses["main"] < history.steps[0].losses["main"]
    reason = "an accumulator per task needs a backward pass per task"
    assert history.phases[0].passed_over["one kernel call"] == reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 2}, "rules out accumulate=2"),
        ({"clip_norm": 1.0}, "rules out clip_norm=1.0"),
        ({"precision": "float16"}, "rules out precision float16"),
        ({"backward": "fused"}, 'rules out backward="fused"; use backward="auto"'),
        ({"optimizer": OPTIMIZERS["adam"]}, "rules out weight_decay"),
    ],
)
def test_what_a_step_a_task_cannot_do_is_refused(options, message):
    options = {"optimizer": lambda p: LazyAdam(p, lr=0.02, weight_decay=0.0)} | options
    trainer = trainer_of("window", options.pop("optimizer"), schedule=AdaTask(), **options)
    with pytest.raises(
        InputError, match=f"AdaTask steps the shared parameters once per task, which {message}"
    ):
        trainer.fit(batches("window"), epochs=1)
