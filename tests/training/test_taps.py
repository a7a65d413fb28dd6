"""Training with layers that tasks make their own: against a loop by hand, over a switch, resumed, and refusals."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mt2st_fast import (
    FAMO,
    AdaptiveSwitch,
    AdaptiveTaskSelector,
    AdaTask,
    Alternate,
    Classification,
    InputError,
    LazyAdam,
    MultiTask,
    MultiTaskHeads,
    OpenTask,
    PhaseController,
    Switch,
    TaskAdaptedEncoder,
    Trainer,
    Uncertainty,
    WindowEncoder,
    WordSimilarity,
)
from mt2st_fast.training.schedules import RunFacts, find_strategy
from tests.training.graphs_on_cpu import GraphedOnCpu
from tests.training.small_runs import Stop, assert_goes_on_with_the_same_bits
from tests.training.three_tasks import LOSSES, TASKS, data
from tests.training.turn_runs import parameters_of

RATE, PENALTY = 0.02, 0.5
BY_SWITCH, TO_THE_END = Switch(at=0.5), MultiTask()


def model(sparse=True):
    torch.manual_seed(1)
    encoder = WindowEncoder(50, 6, window=1, hidden=8, sparse=sparse, dropout=0.0)
    return TaskAdaptedEncoder(encoder, TASKS, penalty=PENALTY), MultiTaskHeads(8, TASKS, "a")


def adam(parameters):
    return LazyAdam([*parameters], lr=RATE, weight_decay=0.0)


def trained(schedule=TO_THE_END, epochs=6, kind=Trainer, callbacks=(), sparse=True, **options):
    encoder, heads = model(sparse)
    options = {"optimizer": adam, "device": "cpu", "log_every": 2} | options
    fit = {key: options.pop(key) for key in ("checkpoint", "resume") if key in options}
    trainer = kind(encoder, heads, schedule=schedule, callbacks=list(callbacks), **options)
    return trainer, trainer.fit(data(True), val=data(True, 2), epochs=epochs, **fit)


def test_it_is_the_loop_by_hand():
    encoder, heads = model()
    optimizer = adam([*encoder.parameters(), *heads.parameters()])
    scores = {name: p for name, p in encoder.named_parameters() if ".score." in name}
    losses = []
    for inputs, targets in data(True) * 6:
        features = encoder(inputs)
        found = [LOSSES[t](heads.logits(features, t), target) for t, target in targets.items()]
        drawn = [s.abs().sum() for name, s in scores.items() if name.rpartition(".")[2] in targets]
        total = sum(found) + PENALTY * sum(drawn)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append([float(loss.detach()) for loss in found])
    trainer, history = trained()
    assert history.phases[0].engine == "eager"
    for ours, theirs in zip(
        [*trainer.encoder.parameters(), *trainer.heads.parameters()],
        [*encoder.parameters(), *heads.parameters()],
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    last = history.steps[-1].losses["a"]
    assert last == pytest.approx((losses[-1][0] + losses[-2][0]) / 2, rel=1e-3)
    assert history.steps[-1].losses["a"] < history.steps[0].losses["a"]


def test_a_task_that_gains_nothing_by_it_shares():
    """Of a task whose labels say nothing the penalty alone moves the score."""
    encoder, heads = model()
    batches = [(inputs, {"a": targets["a"], "b": torch.zeros(24).long()}) for inputs, targets in data(True)]
    trainer = Trainer(encoder, heads, schedule=TO_THE_END, optimizer=adam, device="cpu")
    history = trainer.fit(batches, val=batches, epochs=10)
    assert encoder.own_layers()["b"] == ()
    scores = {
        name.rpartition(".")[2]: float(p.detach())
        for name, p in encoder.named_parameters()
        if ".score." in name
    }
    assert scores["b"] < encoder.threshold <= scores["c"] == pytest.approx(0.2), "c was never trained"
    assert history.evaluations[-1].metrics["b"] == 1.0


def test_after_the_switch_nothing_of_the_others_is_left():
    trainer, history = trained(BY_SWITCH)
    assert [phase.active for phase in history.phases] == [("a", "b", "c"), ("a",)]
    named = dict(trainer.encoder.named_parameters())
    retired = {p for name, p in named.items() if name.endswith((".b", ".c"))}
    assert len(retired) == 4
    assert not any(p.requires_grad or p.grad is not None for p in retired)
    optimizer = trainer.run.optimizer
    assert not retired & {p for group in optimizer.param_groups for p in group["params"]}
    assert not retired & set(optimizer.state)
    assert {p for name, p in named.items() if name.endswith(".a")} <= set(optimizer.state)
    before = {name: p.clone() for name, p in named.items() if p in retired}
    run = trainer.begin(data(True), epochs=1)
    assert all(p.requires_grad for p in retired), "a run begins with all tasks"
    run.close()
    assert all(torch.equal(named[name], p) for name, p in before.items())


@pytest.mark.parametrize("schedule", [TO_THE_END, BY_SWITCH])
@pytest.mark.parametrize("stop", [3, 12, 17])
def test_a_resumed_run_ends_with_the_same_bits(schedule, stop, tmp_path):
    assert_goes_on_with_the_same_bits(partial(trained, schedule), stop, tmp_path)


@pytest.mark.parametrize("schedule", [Uncertainty, FAMO])
def test_weights_that_are_learnt_go_with_it(schedule):
    trainer, history = trained(schedule())
    assert history.steps[-1].losses["a"] < history.steps[0].losses["a"]
    assert len(set(history.steps[-1].weights.values())) == 3, "weights are learned"
    if schedule is Uncertainty:  # its own penalty and the encoder's
        parts = trainer.run._parts
        own = trainer.schedule.penalty(("a",))
        torch.testing.assert_close(parts.penalty({"a"}), own + trainer.encoder.penalty(("a",)))


def test_accumulated_batches_are_penalised_once_a_step():
    def one_step(accumulate, batches):
        encoder, heads = model()
        trainer = Trainer(encoder, heads, schedule=TO_THE_END, optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
                          device="cpu", accumulate=accumulate)  # fmt: skip
        trainer.fit(batches, steps=1)
        return parameters_of(trainer)

    inputs, targets = data(True, 1)[0]
    targets["b"][12:] = -100
    whole = one_step(1, [(inputs, targets)])
    halves = [
        (inputs[part], {n: t[part] for n, t in targets.items()}) for part in (slice(0, 12), slice(12, 24))
    ]
    del halves[1][1]["b"]  # its whole loss is in the other half, and so is its penalty
    for name, value in one_step(2, halves).items():
        torch.testing.assert_close(value, whole[name])


def test_graphs_replay_it():
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=2.0**-5, momentum=0.5), "sparse": False}
    eager, history = trained(epochs=9, **options)
    graphed, again = trained(epochs=9, kind=GraphedOnCpu, **options)
    assert again.phases[0].graph == "captured"
    assert again == history
    for name, value in parameters_of(eager).items():
        assert torch.equal(parameters_of(graphed)[name], value), name


def test_a_task_on_words_reads_the_shared_table():
    torch.manual_seed(0)
    tasks = {"a": Classification(4), "words": WordSimilarity()}
    encoder = TaskAdaptedEncoder(WindowEncoder(50, 6, window=1, hidden=8, sparse=True), tasks)
    trainer = Trainer(encoder, MultiTaskHeads(8, tasks, "a"), schedule=TO_THE_END, device="cpu")
    a = [(inputs, {"a": targets["a"]}) for inputs, targets in data(True)]
    words = [(torch.randint(0, 50, (9, 2)), {"words": torch.rand(9)}) for _ in range(4)]
    history = trainer.fit({"a": a, "words": words}, epochs=2)
    assert history.steps[-1].losses["words"] > 0
    assert not hasattr(TaskAdaptedEncoder(nn.Sequential(nn.Linear(2, 2)), ["a"]), "pool")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": AdaptiveSwitch()}, "AdaptiveSwitch compares the tasks' gradients on held-out batches"),
        ({"schedule": AdaptiveTaskSelector()}, "AdaptiveTaskSelector selects which parts of the model train"),
        ({"schedule": Alternate()}, "Alternate trains the encoder and the tasks in turns"),
        ({"schedule": AdaTask()}, "AdaTask keeps optimizer moments per task"),
        ({"backward": "fused"}, 'backward="fused" steps a table that is read once a step'),
    ],
)  # fmt: skip
def test_what_needs_shared_features_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        trained(**options)


def test_the_strategy_adapts_the_layers_of_its_encoder():
    strategy = find_strategy("taps")
    assert strategy.make({"aux_weight": 0.5}, RunFacts(2.0)) == MultiTask(weights=0.5)
    words = WindowEncoder(50, 6, window=1, hidden=8)
    encoder = strategy.encoder_of(words, ("a", "b"), {"sharing_penalty": 0.25})
    assert (encoder.encoder, encoder.tasks, encoder.penalty_weight) == (words, ("a", "b"), 0.25)
    with pytest.raises(
        InputError, match=r"^strategy taps adapts the hidden layer to tasks, but there is none"
    ):
        strategy.encoder_of(WindowEncoder(50, 6, window=1, hidden=None), ("a", "b"), {})
    other = WindowEncoder(50, 6, window=1, hidden=8)
    assert find_strategy("mtl").encoder_of(other, ("a", "b"), {}) is other


def test_a_copy_trains_apart():
    encoder, heads = model()
    copied = copy.deepcopy(encoder)
    Trainer(copied, heads, schedule=TO_THE_END, optimizer=adam, device="cpu").fit(data(True), epochs=2)
    assert all(
        not difference.any() for name, difference in encoder.named_parameters() if ".difference." in name
    )
    inputs = data(True, 1)[0][0]
    assert not torch.allclose(encoder(inputs)["a"], copied(inputs)["a"])


def opposed(n_batches=6):
    """Two tasks that want the opposite of one narrow layer: what is 0 for the one is 1 for the other."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(n_batches):
        x = torch.randn(64, 4, generator=generator)
        found.append((x, {"a": (x[:, 0] > 0).long(), "b": (x[:, 1] > 0).long()}))
    return found


def test_a_task_that_gains_by_it_keeps_its_own():
    """Of a layer one wide each of two tasks needs another direction."""
    best = {}
    for adapts in (False, True):
        torch.manual_seed(0)
        heads = MultiTaskHeads(1, {"a": Classification(2), "b": Classification(2)}, "a")
        encoder = nn.Linear(4, 1)
        encoder = TaskAdaptedEncoder(encoder, heads.names) if adapts else encoder
        trainer = Trainer(encoder, heads, schedule=TO_THE_END, lr=0.05, device="cpu")
        history = trainer.fit(opposed(), val=opposed(2), epochs=30)
        best[adapts] = history.evaluations[-1].metrics
    assert encoder.own_layers()["a"] == encoder.own_layers()["b"] == ("",)
    assert min(best[True].values()) > 0.95
    assert min(best[False].values()) < 0.9


class Within(nn.Module):
    """Somebody's own module around it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, types):
        return self.inner(types)


def test_within_another_module_it_trains_as_alone():
    alone, history = trained(BY_SWITCH)
    encoder, heads = model()
    trainer = Trainer(Within(encoder), heads, schedule=BY_SWITCH, optimizer=adam, device="cpu", log_every=2)
    assert trainer.fit(data(True), val=data(True, 2), epochs=6).steps == history.steps
    for ours, theirs in zip(encoder.parameters(), alone.encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.requires_grad == theirs.requires_grad
    trainer = Trainer(Within(model()[0]), heads, schedule=Alternate(), device="cpu")
    with pytest.raises(InputError, match="Alternate trains the encoder and the tasks in turns"):
        trainer.fit(data(True), epochs=2)


def test_a_checkpoint_of_other_layers_is_refused(tmp_path):
    trained(callbacks=[Stop(3)], checkpoint=tmp_path / "c")
    encoder, heads = model()
    encoder.threshold = 0.3
    trainer = Trainer(encoder, heads, schedule=TO_THE_END, optimizer=adam, device="cpu", log_every=2)
    with pytest.raises(
        InputError, match=r"layers of tasks' own threshold 0\.1, .* this run has threshold 0\.3"
    ):
        trainer.fit(data(True), epochs=6, checkpoint=tmp_path / "c", resume=True)


def test_a_head_without_layers_is_refused():
    encoder = TaskAdaptedEncoder(WindowEncoder(50, 6, window=1, hidden=8), ["a", "b"])
    trainer = Trainer(encoder, MultiTaskHeads(8, TASKS, "a"), schedule=TO_THE_END, device="cpu")
    with pytest.raises(
        InputError, match=r"was made for a, b, and has no layers of c: make it for heads\.names"
    ):
        trainer.fit(data(True), epochs=1)


def test_a_loop_of_one_s_own_lets_go_of_the_same():
    encoder, heads = model(sparse=False)
    optimizer = torch.optim.Adam([*encoder.parameters(), *heads.parameters()], lr=RATE)
    controller = PhaseController(heads, BY_SWITCH, optimizer, Within(encoder))
    for step, (inputs, targets) in enumerate(data(True, 4)):
        controller.step(step, 4, 4)
        total = heads(encoder(inputs.long()), targets).total
        (total + encoder.penalty(heads.active)).backward()
        optimizer.step()
        optimizer.zero_grad()
    own = {name: p for name, p in encoder.named_parameters() if name.endswith((".b", ".c"))}
    assert len(own) == 4
    assert not any(p.requires_grad or optimizer.state.get(p) for p in own.values())


@pytest.mark.parametrize("options", [{"clip_norm": 0.5}, {"precision": "bfloat16"}])
def test_it_goes_with_other_options(options):
    _, history = trained(epochs=12, optimizer=lambda p: torch.optim.Adam(p, lr=0.01), sparse=False, **options)
    assert history.steps[-1].losses["a"] < history.steps[0].losses["a"]
    assert history.phases[0].engine == "eager"


class Length(OpenTask):
    """The mean of the features, towards a number a row."""

    def loss(self, features, target, mask):
        return F.mse_loss(features.mean(1), target)

    def sums(self, features, target, mask):
        return torch.stack(
            [F.mse_loss(features.mean(1), target, reduction="sum"), torch.tensor(len(target))]
        ).double()

    def value(self, sums):
        return -float(sums[0] / sums[1])


def test_a_loss_of_one_s_own_has_features_of_its_own():
    torch.manual_seed(0)
    tasks = {"a": Classification(4), "length": Length()}
    encoder = TaskAdaptedEncoder(WindowEncoder(50, 6, window=1, hidden=8), tasks)
    batches = [(x, {"a": t["a"], "length": torch.rand(24)}) for x, t in data(True)]
    trainer = Trainer(encoder, MultiTaskHeads(8, tasks, "a"), schedule=TO_THE_END, lr=0.02, device="cpu")
    history = trainer.fit(batches, val=batches, epochs=8)
    first, last = history.evaluations[0], history.evaluations[-1]
    assert last.metrics["length"] > first.metrics["length"]
    differences = {n: p for n, p in encoder.named_parameters() if ".difference." in n}
    assert all(p.any() for p in differences.values())
