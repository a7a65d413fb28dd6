"""PhaseController: phases in loops that are not ours, with schedulers, accumulation and resumes bit for bit."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from mt2st_fast import (
    AdaptiveSwitch,
    AdaTask,
    Alternate,
    AlternateSteps,
    Classification,
    Diminish,
    InputError,
    MultiTask,
    MultiTaskHeads,
    PhaseController,
    Switch,
    Trainer,
)
from mt2st_fast.training.optimizers.upkeep import release

TOTAL, EPOCH, SWITCH = 12, 4, 7
TASKS = {"a": Classification(4), "b": Classification(3), "c": Classification(2)}
OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.05, weight_decay=0.1),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.1),
    "fused": lambda groups: torch.optim.AdamW(groups, lr=0.05, weight_decay=0.1, fused=True),
}


def groups_of(encoder, heads, how):
    if how == "a group a head":
        return [{"params": [*encoder.parameters()]}] + [
            {"params": [*heads.linear(name).parameters()]} for name in heads.names
        ]
    parameters = [*encoder.parameters(), *heads.parameters()]
    return [p for p in parameters if p.requires_grad] if how == "what is trainable" else parameters


class Loop:
    """A training loop as people write them."""

    def __init__(self, schedule=None, optimizer="adamw", groups="one group", load=None):
        torch.manual_seed(0)
        self.encoder, self.heads = nn.Linear(5, 8), MultiTaskHeads(8, TASKS, "a")
        if load is not None and groups == "what is trainable":
            self._load_modules(load)
        self.optimizer = OPTIMIZERS[optimizer](groups_of(self.encoder, self.heads, groups))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda i: 1 - i / (2 * TOTAL))
        self.controller = PhaseController(self.heads, schedule or Switch(at_step=SWITCH), self.optimizer)
        self.done, self.losses, self.phases = 0, [], []
        if load is not None:
            self.load(load)

    def run(self, until):
        while self.done < until:
            phase = self.controller.step(self.done, TOTAL, EPOCH)
            self.phases += [] if phase is None else [phase]
            generator = torch.Generator().manual_seed(self.done)
            inputs = torch.randn(6, 5, generator=generator)
            targets = {
                name: torch.randint(0, task.classes, (6,), generator=generator)
                for name, task in TASKS.items()
            }
            out = self.heads(self.encoder(inputs), targets)
            out.total.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            self.losses.append(out.total.item())
            self.done += 1
        return self

    def save(self):
        return copy.deepcopy(
            {
                "modules": [self.encoder.state_dict(), self.heads.state_dict()],
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "controller": json.loads(json.dumps(self.controller.state_dict())),
                "done": self.done,
            }
        )

    def _load_modules(self, stored):
        for module, state in zip((self.encoder, self.heads), stored["modules"], strict=True):
            module.load_state_dict(state)

    def load(self, stored, order=("modules", "optimizer", "controller")):
        stored = copy.deepcopy(stored)  # torch's optimizers take over the tensors of a state
        for part in order:
            if part == "modules":
                self._load_modules(stored)
            elif part == "optimizer":
                self.optimizer.load_state_dict(stored["optimizer"])
            else:
                self.controller.load_state_dict(stored["controller"])
        self.scheduler.load_state_dict(stored["scheduler"])
        self.done = stored["done"]
        return self

    def end(self):
        tensors = [p.detach() for m in (self.encoder, self.heads) for p in m.parameters()]
        tensors += [
            value
            for state in self.optimizer.state.values()
            for value in state.values()
            if torch.is_tensor(value)
        ]
        return [t.clone() for t in tensors], [group["lr"] for group in self.optimizer.param_groups]


def test_it_takes_the_steps_that_the_trainer_takes():
    def batch(step):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(6, 5, generator=generator)
        return inputs, {n: torch.randint(0, t.classes, (6,), generator=generator) for n, t in TASKS.items()}

    torch.manual_seed(0)
    encoder, heads = nn.Linear(5, 8), MultiTaskHeads(8, TASKS, "a")
    schedule = Diminish(eta=0.5, nu=2.0, unit="step", floor=1e-3)
    trainer = Trainer(encoder, heads, schedule=schedule, lr=0.05, weight_decay=0.1, log_every=1, device="cpu")
    history = trainer.fit([batch(step) for step in range(TOTAL)], epochs=1)
    loop = Loop(schedule)
    loop.scheduler = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, lambda i: 1.0)
    loop.run(TOTAL)
    assert loop.losses == pytest.approx([record.total for record in history.steps], rel=1e-5)
    assert [p.first_step for p in loop.phases] == [p.first_step for p in history.phases] == [0, 4]
    for own, other in zip(loop.encoder.parameters(), encoder.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", ["one group", "a group a head"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_has_retired_is_not_computed_not_moved_and_not_remembered(optimizer, groups):
    loop = Loop(optimizer=optimizer, groups=groups).run(SWITCH)
    before = [len(group["params"]) for group in loop.optimizer.param_groups]
    retired = [p for name in ("b", "c") for p in loop.heads.linear(name).parameters()]
    assert all(p in loop.optimizer.state for p in retired)
    weights = [p.clone() for p in retired]
    loop.run(TOTAL)
    assert [p.active for p in loop.phases] == [("a", "b", "c"), ("a",)]
    assert loop.phases[1] == (SWITCH, ("a",), ("b", "c"), {})
    assert loop.controller.phase == loop.phases[1]
    assert not any(p in loop.optimizer.state or p.requires_grad or p.grad is not None for p in retired)
    assert all(torch.equal(p, w) for p, w in zip(retired, weights, strict=True))
    assert [len(group["params"]) for group in loop.optimizer.param_groups] == before
    assert len(loop.optimizer.state) == 4  # encoder and main head


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("groups", ["one group", "a group a head", "what is trainable"])
@pytest.mark.parametrize("at", [1, SWITCH - 1, SWITCH, SWITCH + 1, TOTAL - 1])
def test_a_resumed_run_goes_on_bit_for_bit(at, groups, optimizer):
    undisturbed = Loop(optimizer=optimizer, groups=groups).run(TOTAL)
    stored = Loop(optimizer=optimizer, groups=groups).run(at).save()
    resumed = Loop(optimizer=optimizer, groups=groups, load=stored).run(TOTAL)
    (own, own_rates), (other, other_rates) = resumed.end(), undisturbed.end()
    assert len(own) == len(other)
    assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))
    assert own_rates == other_rates
    assert resumed.losses == undisturbed.losses[at:]
    assert resumed.heads.active == ("a",)
    retired = [p for name in ("b", "c") for p in resumed.heads.linear(name).parameters()]
    assert not any(p.requires_grad or p in resumed.optimizer.state for p in retired)


@pytest.mark.parametrize("at", [SWITCH - 1, SWITCH, SWITCH + 1])
def test_parts_may_be_loaded_in_any_order_and_twice_resumed(at):
    undisturbed = Loop().run(TOTAL).end()[0]
    stored = Loop().run(at).save()
    for order in (
        ("modules", "optimizer", "controller"),
        ("controller", "optimizer", "modules"),
        ("optimizer", "controller", "modules"),
        ("modules", "optimizer"),  # the schedule goes by the step: all but its phases is known
    ):
        again = Loop().load(stored, order).run(TOTAL - 2).save()
        end = Loop().load(again, order).run(TOTAL).end()[0]
        assert all(torch.equal(a, b) for a, b in zip(end, undisturbed, strict=True)), order


def test_a_phase_that_goes_on_is_not_announced_again():
    stored = Loop().run(SWITCH + 2).save()
    resumed = Loop(load=stored)
    assert resumed.controller.phase.first_step == SWITCH
    assert resumed.controller.weights == {"a": 1.0}
    resumed.run(TOTAL)
    assert resumed.phases == []


def test_a_second_run_begins_with_all_tasks():
    loop = Loop().run(TOTAL)
    phase = loop.controller.step(0, TOTAL, EPOCH)
    assert phase.active == loop.heads.active == ("a", "b", "c")
    assert all(p.requires_grad for p in loop.heads.parameters())


def test_weights_of_a_step_are_what_the_heads_use():
    loop = Loop(Diminish(eta=1.0, gamma={"b": 2.0}, unit="step", floor=0.0)).run(3)
    assert loop.controller.weights == pytest.approx({"a": 1.0, "b": 2 * 0.1353, "c": 0.1353}, rel=1e-3)
    features = torch.randn(2, 8)
    targets = {name: torch.zeros(2, dtype=torch.long) for name in TASKS}
    used = loop.heads(features, targets).total
    assert torch.equal(used, loop.heads(features, targets, loop.controller.weights).total)


def test_tasks_retire_one_after_the_other_and_a_schedule_says_why():
    class Told:
        reasons = {"c": "nobody reads it"}  # noqa: RUF012 (as a schedule of one's own may have it)

        def task_weights(self, moment, main, auxiliary):
            return {main: 1.0} | {name: 1.0 for name in auxiliary if moment.step < {"b": 5, "c": 3}[name]}

    loop = Loop(Told()).run(TOTAL)
    assert [(p.first_step, p.retired, p.reasons) for p in loop.phases] == [
        (0, (), {}),
        (3, ("c",), {"c": "nobody reads it"}),
        (5, ("b",), {}),
    ]


def test_several_optimizers_or_none():
    torch.manual_seed(0)
    heads = MultiTaskHeads(8, TASKS, "a")
    optimizers = [torch.optim.AdamW(heads.linear(name).parameters()) for name in TASKS]
    controller = PhaseController(heads, Switch(at_step=1))
    for step in range(2):
        controller.optimizer = iter(optimizers) if step == 0 else optimizers
        controller.step(step, 2, 1)
        targets = {name: torch.zeros(2, dtype=torch.long) for name in heads.active}
        heads(torch.randn(2, 8), targets).total.backward()
        for optimizer in optimizers:
            optimizer.step()
    assert [len(optimizer.state) for optimizer in optimizers] == [2, 0, 0]


def test_release_keeps_the_places_of_what_it_forgets():
    loop = Loop(MultiTask()).run(2)
    gone = [*loop.heads.linear("b").parameters()]
    places = [len(group["params"]) for group in loop.optimizer.param_groups]
    gone[0].grad = torch.ones_like(gone[0])
    release(loop.optimizer, iter(gone))
    assert [len(group["params"]) for group in loop.optimizer.param_groups] == places
    assert gone[0].grad is None
    assert not any(p in loop.optimizer.state for p in gone)
    assert len(loop.optimizer.state) == 6


class Learnt(nn.Module):
    def task_weights(self, moment, main, auxiliary):
        return dict.fromkeys((main, *auxiliary), 1.0)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (AdaptiveSwitch(), "AdaptiveSwitch compares the tasks' gradients on held-out batches"),
        (Learnt(), "Learnt learns its weights"),
        (Alternate(), "Alternate trains the encoder and the tasks in turns"),
        (AlternateSteps(), "AlternateSteps trains the encoder and the tasks in turns"),
        (AdaTask(), "AdaTask keeps optimizer moments per task"),
    ],
)
def test_a_schedule_that_does_more_than_weigh_by_the_step_is_for_the_trainer(schedule, message):
    with pytest.raises(ValueError, match=message):
        PhaseController(MultiTaskHeads(8, TASKS, "a"), schedule)


@pytest.mark.parametrize("arguments", [(-1, 10, 5), (0, 0, 5), (0, 10, 0), (1.5, 10, 5), (True, 10, 5)])
def test_what_is_no_number_of_steps_is_refused(arguments):
    controller = PhaseController(MultiTaskHeads(8, TASKS, "a"), Switch())
    with pytest.raises(InputError, match=r"must be (a whole number|positive)"):
        controller.step(*arguments)
    assert controller.phase is None


def test_the_state_of_another_run_is_refused_by_name():
    state = PhaseController(MultiTaskHeads(8, TASKS, "a"), Switch(at_step=3)).state_dict()
    with pytest.raises(
        InputError, match=r"made with schedule Switch\(.*at_step=3.*this controller has .*at_step=4"
    ):
        PhaseController(MultiTaskHeads(8, TASKS, "a"), Switch(at_step=4)).load_state_dict(state)
    others = {"a": TASKS["a"], "d": TASKS["b"]}
    with pytest.raises(
        InputError, match=r"made with tasks \['a', 'b', 'c'\], this controller has \['a', 'd'\]"
    ):
        PhaseController(MultiTaskHeads(8, others, "a"), Switch(at_step=3)).load_state_dict(state)
